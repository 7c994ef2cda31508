"""Every change made to Ultralytics from outside: what a row of the table is, and how rows act and are taken back."""

from .rows import Row, activated

__all__ = ["Row", "activated"]

"""Windows' registry, read without starting a program."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["Registry", "values"]

Registry = Callable[[str, str], "list[str]"]
"""Returns the texts of one name in all subkeys of a key, as `values` does."""


def values(key: str, name: str) -> list[str]:
    r"""Return the texts that a name has in the subkeys of a key; none outside Windows.

    Args:
        key: A key below HKEY_LOCAL_MACHINE, such as "SYSTEM\\CurrentControlSet\\Services".
        name: The name of a value. A subkey that lacks it, or may not be opened by this user, is left out.
    """
    try:
        winreg: Any = importlib.import_module("winreg")
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, key) as opened:
            return list(_values(winreg, opened, name))
    except (ImportError, OSError):
        return []


def _values(winreg: Any, opened: Any, name: str) -> Iterator[str]:
    for i in range(winreg.QueryInfoKey(opened)[0]):
        try:
            with winreg.OpenKey(opened, winreg.EnumKey(opened, i)) as subkey:
                text, _ = winreg.QueryValueEx(subkey, name)
        except OSError:
            continue
        if isinstance(text, str):
            yield text

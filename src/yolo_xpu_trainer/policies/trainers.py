"""Our own trainers, registered as anybody's are: "xpu" stands for Ultralytics' trainer of the model's task."""

from __future__ import annotations

from ..hookspecs import hookimpl

__all__: list[str] = []


@hookimpl
def xpu_trainers(upstream: type) -> dict[str, type]:
    """Return the trainer of ours that extends Ultralytics' own, where there is one."""
    from .. import trainers

    for name, (module, base) in trainers.TRAINERS.items():
        if (upstream.__module__, upstream.__name__) == (f"ultralytics.models.{module}", base):
            return {"xpu": getattr(trainers, name)}
    return {}

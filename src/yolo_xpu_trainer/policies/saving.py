"""A checkpoint is written from copies on the host, made a few MiB at a time, instead of tensor by tensor."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..hookspecs import hookimpl
from ..options import Option
from ..own_code import is_known
from ..patches import Patch, applied, patch
from ..run import Run
from ..transfer import to_host

__all__: list[str] = []

HOST_SAVE = Option("host_save", True, "a checkpoint is written from copies on the host, made in a few large copies")


@hookimpl
def xpu_options() -> list[Option[bool]]:
    return [HOST_SAVE]


@hookimpl(trylast=True)  # what others change in the model, such as its arguments, is to be copied
@contextmanager
def xpu_around_save(trainer: Any) -> Iterator[None]:
    """Let `save_model` find the averaged model and the optimizer's state on the host, in contiguous tensors.

    Plain Ultralytics 8.4.190 waits for the device 1500 times to save a YOLO11n, half of it to look for NaN. Where there
    is any, the averaged model is left to Ultralytics, which repairs it on the device.
    """
    run: Run = trainer.xpu
    if not run.options[HOST_SAVE]:
        yield
        return
    model = trainer.ema.ema if getattr(trainer, "ema", None) else None
    state = trainer.optimizer.state_dict()
    of_model = _tensors(model) if model is not None else {}
    of_optimizer = [v for entry in state["state"].values() for v in entry.values() if isinstance(v, torch.Tensor)]
    host = iter(to_host([*of_model.values(), *of_optimizer]))
    copies = {key: next(host) for key in of_model}
    state["state"] = {
        index: {name: next(host) if isinstance(v, torch.Tensor) else v for name, v in entry.items()}
        for index, entry in state["state"].items()
    }
    averaged, shown = trainer.ema, trainer.ema
    if model is not None and _are_finite(copies.values()):
        memo: dict[int, Any] = {
            key: torch.nn.Parameter(tensor, of_model[key].requires_grad)
            if isinstance(of_model[key], torch.nn.Parameter)
            else tensor
            for key, tensor in copies.items()
        }
        shown = copy.copy(averaged)
        shown.ema = copy.deepcopy(model, memo)
    held = vars(trainer.optimizer)
    own = held.get("state_dict")
    patches = [_handed_out(trainer, averaged, shown, state)] if _is_upstreams(trainer) else []
    try:
        trainer.ema = shown
        held["state_dict"] = lambda: state
        with applied(patches, run):
            yield
    finally:
        trainer.ema = averaged
        held.pop("state_dict", None)
        if own is not None:
            held["state_dict"] = own


def _are_finite(copies: Iterable[torch.Tensor]) -> bool:
    """Whether copies have no NaN and no infinity: each of the large ones that they are parts of is looked at once."""
    whole = [tensor if tensor._base is None else tensor._base for tensor in copies]
    return all(bool(torch.isfinite(tensor).all()) for tensor in {id(tensor): tensor for tensor in whole}.values())


def _is_upstreams(trainer: Any) -> bool:
    """Whether nobody else's code sees the copies, which Ultralytics changes while it writes a checkpoint.

    Users' methods in front of this package's run before and after.
    """
    methods = [vars(owner)["save_model"] for owner in type(trainer).__mro__ if "save_model" in vars(owner)]
    package = __name__.partition(".")[0]
    behind = itertools.dropwhile(lambda method: str(method.__module__).partition(".")[0] != package, methods)
    return all(is_known(method) for method in behind)


def _handed_out(trainer: Any, averaged: Any, shown: Any, state: dict[str, Any]) -> Patch:
    """Let Ultralytics have the copies themselves, instead of copies of them.

    It rounds them to 16 bits where they are. Who asks for the averaged model later, as a policy does that keeps more in
    a checkpoint, finds the one that is averaged; the optimizer's tensors stay what they are.
    """

    @patch(
        "ultralytics.engine.trainer:deepcopy",
        why="what was copied for a checkpoint would be copied once more",
        everywhere=False,
    )
    def deepcopy(original: Callable[..., Any], x: Any, *args: Any, **kwargs: Any) -> Any:
        """Copy something, unless it is a copy that nobody else has."""
        if x is state:
            groups = [{**group, "params": list(group["params"])} for group in state["param_groups"]]
            entries = {index: dict(entry) for index, entry in state["state"].items()}
            return {**state, "state": entries, "param_groups": groups}
        if shown is not averaged and trainer.ema is shown and x is shown.ema:
            trainer.ema = averaged
            return x
        return original(x, *args, **kwargs)

    return deepcopy


def _tensors(model: torch.nn.Module) -> dict[int, torch.Tensor]:
    """Return every tensor that a model's modules hold, by its id: parameters, buffers, and others such as anchors."""
    return {
        id(value): value
        for module in model.modules()
        for values in (module._parameters, module._buffers, vars(module))
        for value in values.values()
        if isinstance(value, torch.Tensor)
    }

"""`model.tune(use_ray=True)`: Ray Tune runs one trial on each XPU, in a process that sees no other.

Ray counts Intel GPUs where dpctl is installed, and none elsewhere. So it is told how many there are; which of them a
trial got, its process knows by Ray's numbers, and makes a mask of. Ray isn't imported before a search asks for it.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from .. import affinity, devices
from ..errors import NoSuchXPUError
from ..patches import Patch, applied, patch
from ..ranks import CHILD_VARIABLE
from .tuning import handed_down

__all__ = ["PATCHES"]

_LOGGER = logging.getLogger("ultralytics")
_HIDING = (affinity.MASK, affinity.SELECTOR, "CUDA_VISIBLE_DEVICES")  # by which Ray numbers GPUs


@patch(
    "ultralytics.utils.tuner:run_ray_tune",
    why="Ray counts no XPU, every trial would train on the first one, and without the options asked for",
)
def run_ray_tune(original: Callable[..., Any], model: Any, *args: Any, **kwargs: Any) -> Any:
    """Search with Ray Tune, on XPUs with one trial on each."""
    environment = handed_down(kwargs)
    asked = kwargs.get("device", model.overrides.get("device"))
    indices = devices.resolve(asked, prefer_xpu=False)
    if not _is_there():
        return original(model, *args, **kwargs)
    given = inspect.signature(original).bind_partial(model, *args, **kwargs).arguments.get("gpu_per_trial")
    gpus = 1 if given is None else given
    if indices is None or not gpus:  # with 0 the trials share what they see, as the user wants it
        with applied([_trials(None, environment, None)] if environment else [], None):
            return original(model, *args, **kwargs)
    if given is None:
        kwargs["gpu_per_trial"] = gpus
    if str(asked) in ("None", "", "xpu"):
        indices = tuple(range(devices.count()))
    names = affinity.names()
    named, cpus = _connect({names[i]: str(devices.info(i)) for i in indices}, gpus)
    # A trial's own XPUs are the first ones that it sees.
    kwargs["device"] = "xpu" if gpus <= 1 else "xpu:" + ",".join(map(str, range(int(gpus))))
    with applied([_trials(named, environment, cpus)], None), _on_the_host(model):
        return original(model, *args, **kwargs)


def _is_there() -> bool:
    """Whether Ray is installed, as Ultralytics does by itself where its settings allow it."""
    if importlib.util.find_spec("ray") is None:
        from ultralytics.utils.checks import check_requirements

        check_requirements("ray[tune]")
        importlib.invalidate_caches()
    return importlib.util.find_spec("ray") is not None


def _ray() -> Any:
    return importlib.import_module("ray")  # it isn't among the packages that this one needs


def _connect(xpus: Mapping[str, str], gpus: float) -> tuple[list[str] | None, float]:
    """Start Ray with the XPUs as its GPUs, unless it runs.

    Args:
        xpus: What the XPUs are, by what a mask calls them.
        gpus: How many of them a trial gets.

    Returns:
        What a mask calls the XPU of each of Ray's numbers, or None where only a trial's machine can tell; and how many
        CPUs there are for each trial, where all XPUs are in use.

    Raises:
        NoSuchXPUError: Ray has fewer GPUs than a trial asks for.
    """
    ray = _ray()
    known: list[str] | None = None
    if not ray.is_initialized():
        try:
            with _without(_HIDING):  # so that Ray's numbers count the names
                ray.init(num_gpus=len(xpus))
            known = list(xpus)
        except ValueError:  # a cluster runs here, or is named by RAY_ADDRESS, and has counted its GPUs
            ray.init()
    total = ray.cluster_resources()
    seen = total.get("GPU", 0)
    if seen < gpus:
        n = len(xpus)
        remedy = f"Ray counts no Intel GPU by itself: use `ray.init(num_gpus={n})`, or `ray start --num-gpus={n}`."
        if known:
            remedy = f"Use gpu_per_trial={n} or less."
        raise NoSuchXPUError(
            f"A trial asks for {gpus:g} GPU{'s' * (gpus > 1)}, and Ray has {seen:g}, so that none would ever start. "
            f"{remedy}",
            requested=gpus,
            seen=f"{seen:g} GPUs of Ray",
        )
    at_once = int(seen / gpus)
    trials = f"{at_once} trial{'s' * (at_once > 1)} at a time"
    where = ", ".join(xpus.values()) if known else "those that Ray was started with, whatever device= names"
    _LOGGER.info(f"XPU: Ray Tune runs {trials}, each with {gpus:g} of {seen:g} XPU{'s' * (seen > 1)} ({where})")
    share = total.get("CPU", 1) / at_once
    return known, int(share) if share > 1 else share


def _trials(named: Sequence[str] | None, environment: Mapping[str, str], cpus: float | None) -> Patch:
    """Return a patch that gives each trial its options, and its XPUs where CPUs are counted for it."""

    def replacement(run: Any, original: Callable[..., Any]) -> Any:
        @functools.wraps(original)
        def with_resources(trainable: Any, resources: Any, *args: Any, **kwargs: Any) -> Any:
            if cpus is not None and isinstance(resources, dict):
                # Ultralytics asks for up to eight CPUs, as many as there are: XPUs would wait for them.
                resources = {**resources, "cpu": min(resources.get("cpu", 1), cpus)}
            return original(_trial(trainable, named, environment, cpus is not None), resources, *args, **kwargs)

        return with_resources

    return Patch(
        "ray.tune:with_resources",
        "trials would not know their XPU, nor the trainer and options asked for",
        replacement,
        everywhere=False,
    )


def _trial(
    trainable: Callable[..., Any], named: Sequence[str] | None, environment: Mapping[str, str], alone: bool
) -> Callable[..., Any]:
    @functools.wraps(trainable)
    def trial(config: Any) -> Any:
        """Train in a process of Ray's, in which nobody has asked for an XPU before."""
        os.environ.update({**environment, CHILD_VARIABLE: "1"} if environment else {})
        if alone:
            own = _assigned(_ray().get_runtime_context().get_accelerator_ids().get("GPU", []), named)
            affinity.give(own)
            importlib.import_module("ultralytics")  # sets up its logger
            _LOGGER.info(f"XPU: this trial has {affinity.MASK}={','.join(own)}")
        with applied([_train], None):
            return trainable(config)

    return trial


class _Metrics(dict[str, Any]):
    @property
    def results_dict(self) -> _Metrics:
        return self


@patch(
    "ultralytics.engine.model:Model.train",
    why="a training on several GPUs returns a dict, of which a search asks the results_dict: the trial would fail",
)
def _train(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    results = original(self, *args, **kwargs)
    return _Metrics(results) if isinstance(results, dict) else results


def _assigned(numbers: Sequence[Any], named: Sequence[str] | None) -> list[str]:
    """Return what a mask calls the XPUs that Ray assigned to this process.

    Args:
        numbers: Ray's numbers for them.
        named: What a mask calls the XPU of each number; None where Ray was started by somebody else.
    """
    own = [str(number) for number in numbers]
    if named is not None:
        return [named[int(number)] for number in own]
    joined = ",".join(own)
    # Where Ray knows Intel GPUs by dpctl it has hidden the others itself, by the selector before Ray 2.5x.
    if os.environ.get(affinity.MASK) == joined or os.environ.get(affinity.SELECTOR) == f"level_zero:{joined}":
        return own
    left = affinity.names_by_environment(os.environ)
    return own if left is None else [left[int(number)] for number in own]


@contextmanager
def _without(variables: Sequence[str]) -> Iterator[None]:
    """Take variables out of the environment that new processes inherit."""
    before = {name: os.environ.pop(name) for name in variables if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)


@contextmanager
def _on_the_host(model: Any) -> Iterator[None]:
    """Keep a model's tensors on the host while Ray copies it: a trial doesn't see the XPU that they are on."""
    device = next((p.device for p in model.model.parameters()), None)
    kept = {name: getattr(model, name, None) for name in ("trainer", "predictor")}
    if device is not None and device.type == "xpu":
        model.model.to("cpu")
    for name in kept:
        setattr(model, name, None)
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(model, name, value)
        if device is not None:
            model.model.to(device)


PATCHES = [run_ray_tune]

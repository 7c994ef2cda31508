"""The model's forward and backward are captured as graphs and replayed: two launches a step instead of hundreds.

The loss, which asks the device for sizes, stays outside, as do augmentation, optimizer and validation. A batch of
another shape, as an epoch's last, is computed as without graphs. Opt-in: what it gives on an Intel GPU, nobody has
measured. Sources: pytorch#162143, torch/xpu/graphs.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from ...device_errors import is_lost, is_out_of_memory
from ...devices import empty_cache
from ...hookspecs import hookimpl
from ...options import Option
from ...own_code import named, own_code
from ...patches import Patch, patch
from ...run import Run, StashKey
from ...versions import torch_release
from .capture import Captured, laid_out
from .check import NotGraphedError, checked

__all__: list[str] = []

_LOGGER = logging.getLogger("ultralytics")

GRAPHS = Option(
    "graphs",
    False,
    "the model's forward and backward are captured once as graphs and replayed, which may take twice the memory; needs "
    "torch 2.14 and batches of one shape; not with several GPUs, `compile` or `multi_scale`",
)
_SINCE = (2, 14)
_LOOKS = 3  # in as many steps a model may have hooks before graphs are given up


@hookimpl
def xpu_options() -> list[Option[bool]]:
    return [GRAPHS]


def _obstacle(trainer: Any) -> str:
    """Return why a run's model can't be replayed, as far as its arguments tell; "" where it can."""
    if torch_release() < _SINCE or not hasattr(torch.xpu, "XPUGraph"):
        return f"PyTorch {torch.__version__} has no graphs for training on XPUs; 2.14 has"
    if trainer.xpu.world_size > 1:
        return "gradients of several GPUs are averaged within the backward"
    if getattr(trainer.args, "compile", False):
        return "compile=True makes kernels of its own"
    if getattr(trainer.args, "multi_scale", False):
        return "multi_scale changes the size of images, and a graph has one"
    return ""


@hookimpl
def xpu_patches(trainer: Any) -> list[Patch]:
    """Let the model's forward be a replay while the training loop is in its autocast."""
    run: Run = trainer.xpu
    if not run.options[GRAPHS]:
        return []
    if obstacle := _obstacle(trainer):
        if not run.is_worker:
            _say_off(obstacle)
        return []

    @patch(
        "ultralytics.engine.trainer:autocast",
        why="the host launches the model's kernels one by one",
        everywhere=False,
    )
    def autocast(run: Run, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Enter Ultralytics' autocast."""
        context = original(*args, **kwargs)
        return _replaying(trainer, context) if torch.is_grad_enabled() else context

    @patch(
        "ultralytics.utils.autobatch:profile_ops",
        why="AutoBatch wouldn't count the memory that graphs keep",
        everywhere=False,
        optional=True,
    )
    def profile_ops(original: Callable[..., Any], inputs: Any, *args: Any, **kwargs: Any) -> Any:
        return _with_graphs(original(inputs, *args, **kwargs), run)

    @patch(
        "ultralytics.utils.autobatch:profile",
        why="AutoBatch wouldn't count the memory that graphs keep; before 8.3.130 `profile_ops` has this name",
        everywhere=False,
        optional=True,
    )
    def profile(original: Callable[..., Any], inputs: Any, *args: Any, **kwargs: Any) -> Any:
        return _with_graphs(original(inputs, *args, **kwargs), run)

    return [autocast, profile_ops, profile]


def _with_graphs(results: list[Any], run: Run) -> list[Any]:
    """Add to what a batch was found to take what its graphs keep: as much again, but for the weights.

    Beside them a batch of nearly that size may be computed without: an epoch's last.
    """
    weights = torch.xpu.memory_allocated(run.device.index) / 2**30
    return [
        [*result[:2], 2 * result[2] - weights, *result[3:]] if result and result[2] > weights else result
        for result in results
    ]


@hookimpl
def xpu_after_setup(trainer: Any) -> None:
    """Look at the model at the beginning of each epoch: callbacks may have changed it."""
    if trainer.xpu.options[GRAPHS]:
        trainer.add_callback("on_train_epoch_start", trainer.xpu.recovery.guarded(_look_again))


def _look_again(trainer: Any) -> None:
    if (graphs := trainer.xpu.stash.get(_GRAPHS, None)) is not None:
        graphs.look_again = True


@hookimpl
@contextmanager
def xpu_around_run(trainer: Any) -> Iterator[None]:
    """Let go of the graphs as a run ends."""
    try:
        yield
    finally:
        if (graphs := trainer.xpu.stash.get(_GRAPHS, None)) is not None:
            graphs.release()


@contextmanager
def _replaying(trainer: Any, context: Any) -> Iterator[None]:
    run: Run = trainer.xpu
    graphs: _Graphs | None = run.stash.get(_GRAPHS, None)  # type: ignore[misc]
    if graphs is None or graphs.model is not trainer.model:
        graphs = run.stash[_GRAPHS] = _Graphs(trainer)
    with context, graphs.in_place(trainer):
        yield


def _say_off(reason: str) -> None:
    _LOGGER.warning(f"XPU: {GRAPHS.key}=True is ignored, because {reason}. The model runs without graphs.")


class _Graphs:
    """A model, and its graphs once two batches of one shape were seen.

    Args:
        trainer: The trainer.
    """

    def __init__(self, trainer: Any) -> None:
        self.model = trainer.model
        self.look_again, self._looks = True, 0
        self._run: Run = trainer.xpu
        self._is_off = False
        self._seen: set[Any] = set()
        self._captured: Captured | None = None
        self._batch = 0
        self._settings: Mapping[Any, Any] = {}

    def release(self) -> None:
        """Let go of the graphs and their memory."""
        if self._captured is not None:
            self._captured = None
            empty_cache(self._run.device.index)

    @contextmanager
    def in_place(self, trainer: Any) -> Iterator[None]:
        """Let the model's forward be a replay, in a step."""
        if self._captured is not None:
            self._captured.forget()
            if trainer.batch_size != self._batch:
                self._switch_off(f"the batch was changed from {self._batch} to {trainer.batch_size}")
        self._batch = trainer.batch_size
        held = vars(self.model)
        if self._is_off or "predict" in held:
            yield
            return
        original = self.model.predict

        def predict(images: Any, *args: Any, **kwargs: Any) -> Any:
            if args or kwargs or not isinstance(images, torch.Tensor):
                self._switch_off("the model takes more than images")
            if self._is_off or not self.model.training or not torch.is_grad_enabled():
                return original(images, *args, **kwargs)
            return self._run.recovery.calling(self._predict, original, images, instead=_without)

        held["predict"] = predict
        try:
            yield
        finally:
            held.pop("predict", None)

    def _predict(self, original: Callable[..., Any], images: torch.Tensor) -> Any:
        layout = laid_out(images)
        if self._captured is None and layout not in self._seen:
            self._seen.add(layout)  # the first one compiles kernels, and shows other policies the model
            return original(images)
        if self.look_again and not self._is_replayable():
            return original(images)
        if self._captured is None:
            self._capture(original, images)
        captured = self._captured
        if captured is None or captured.layout != layout or captured.is_waiting:
            return original(images)
        held = captured.weights.held() if captured.weights.are_unchanged() else None
        if held is None:
            self._switch_off("weights of the model were replaced, frozen or unfrozen")
            return original(images)
        return captured(images, held)

    def _capture(self, original: Callable[..., Any], images: torch.Tensor) -> None:
        run = self._run
        try:
            self._settings = _settings(self.model)
            self._captured = checked(
                self.model,
                original,
                images,
                run.precision.dtype is not None,
                lambda: run.autocast(cache_enabled=False),
            )
        except NotGraphedError as error:
            self._switch_off(str(error))
            return
        except Exception as error:  # of PyTorch, of the driver, or of a model that waits for the device
            if is_lost(error):
                raise
            failed = "memory ran out" if is_out_of_memory(error) else "capturing it failed"
            first = next(iter(str(error).splitlines()), "")
            self._switch_off(f"{failed} ({type(error).__name__}: {first})")
            return
        shape = "x".join(map(str, images.shape))
        _LOGGER.info(
            f"XPU: forward and backward are replayed as graphs for images of {shape}; the graphs keep "
            f"{self._captured.bytes / 2**30:.2f} GiB. Batches of other shapes run without."
        )

    def _is_replayable(self) -> bool:
        """Whether a replay does what the model would; where it never will, graphs are switched off."""
        self._looks += 1
        if own := own_code(self.model):
            self._switch_off(f"a replay wouldn't call {named(own.values())}")
        elif self._captured is not None and _settings(self.model) != self._settings:
            self._switch_off("a setting of the model was changed")
        elif hooked := _hooked(self.model):  # by Ultralytics, or for a step by another policy
            if self._looks > _LOOKS:
                self._switch_off(f"a replay wouldn't call the hooks of {type(hooked).__name__}")
        else:
            self.look_again, self._looks = False, 0
        return not self.look_again

    def _switch_off(self, reason: str) -> None:
        if not self._is_off:
            self._is_off = True
            self.release()
            _say_off(reason)


def _without(original: Callable[..., Any], images: torch.Tensor) -> Any:
    return original(images)


_GRAPHS = StashKey[_Graphs]()


def _hooked(model: torch.nn.Module) -> torch.nn.Module | None:
    """Return a module that has a hook, which a replay wouldn't call."""
    kinds = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
    return next((module for module in model.modules() if any(getattr(module, kind) for kind in kinds)), None)


def _settings(model: torch.nn.Module) -> dict[Any, Any]:
    """Return the modules' plain settings, such as a dropout's share, which a graph has as they were."""
    return {
        (id(module), name): value
        for module in model.modules()
        for name, value in vars(module).items()
        if isinstance(value, (bool, int, float, str))
    }

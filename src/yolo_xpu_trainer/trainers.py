"""The mixin that trains on an XPU, and with it one trainer a task: every one that the installed Ultralytics has.

The classes of `TRAINERS` are made on first use, `from yolo_xpu_trainer.trainers import XPUDetectionTrainer`, and pickle
by that name, as DDP workers need.
"""

from __future__ import annotations

import gc
import importlib
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from ultralytics.utils import DEFAULT_CFG, RANK, colorstr

from . import devices
from .errors import DeviceError, OptionValueError, RunUnderWayError
from .options import Options
from .plugins import manager
from .run import AMP_VARIABLE, AUTO, Precision, Run, Targets, saved_settings
from .upstream import activated, legacy, subprocesses

_LOGGER = logging.getLogger("ultralytics")
_one_run = threading.RLock()
_AMP_NAMES = ("bf16", "fp16", "fp32")

# Each trainer of ours, and the module and the name of Ultralytics' that it extends.
TRAINERS = {
    "XPUDetectionTrainer": ("yolo.detect.train", "DetectionTrainer"),
    "XPUSegmentationTrainer": ("yolo.segment.train", "SegmentationTrainer"),
    "XPUClassificationTrainer": ("yolo.classify.train", "ClassificationTrainer"),
    "XPUPoseTrainer": ("yolo.pose.train", "PoseTrainer"),
    "XPUOBBTrainer": ("yolo.obb.train", "OBBTrainer"),
    "XPUSemanticSegmentationTrainer": ("yolo.semantic.train", "SemanticSegmentationTrainer"),
    "XPUDepthTrainer": ("yolo.depth.train", "DepthTrainer"),
    "XPURTDETRTrainer": ("rtdetr.train", "RTDETRTrainer"),
    "XPUWorldTrainer": ("yolo.world.train", "WorldTrainer"),
    "XPUWorldFromScratchTrainer": ("yolo.world.train_world", "WorldTrainerFromScratch"),
    "XPUYOLOETrainer": ("yolo.yoloe.train", "YOLOETrainer"),
    "XPUYOLOEPETrainer": ("yolo.yoloe.train", "YOLOEPETrainer"),
    "XPUYOLOEFromScratchTrainer": ("yolo.yoloe.train", "YOLOETrainerFromScratch"),
    "XPUYOLOEPEFreeTrainer": ("yolo.yoloe.train", "YOLOEPEFreeTrainer"),
    "XPUYOLOEVPTrainer": ("yolo.yoloe.train", "YOLOEVPTrainer"),
    "XPUYOLOESegTrainer": ("yolo.yoloe.train_seg", "YOLOESegTrainer"),
    "XPUYOLOEPESegTrainer": ("yolo.yoloe.train_seg", "YOLOEPESegTrainer"),
    "XPUYOLOESegFromScratchTrainer": ("yolo.yoloe.train_seg", "YOLOESegTrainerFromScratch"),
    "XPUYOLOESegVPTrainer": ("yolo.yoloe.train_seg", "YOLOESegVPTrainer"),
}

__all__ = ["TRAINERS", "XPUTrainer"]


class XPUTrainer:
    """Makes an Ultralytics trainer train on an Intel GPU. Put it first: `class Mine(XPUTrainer, MyTrainer)`.

    It overrides only methods that every Ultralytics since 8.3.0 has, always through `super()`, and holds no policy of
    its own: what is decided, wrapped or prepared at each seam, the hooks of `yolo_xpu_trainer.hookspecs` say. Where the
    run isn't on an XPU (`device="cpu"`, or no XPU and nothing asked) it does nothing at all.

    Beyond Ultralytics' own arguments it takes the `xpu_*` ones of `yolo_xpu_trainer.options.Options`, and
    `amp="bf16" | "fp16" | "fp32"`.

    Attributes:
        xpu: What was decided about this run, or None where it isn't on an XPU.
        automatic: Whether plain `train()` took this trainer, so that a CUDA device comes first; set before `__init__`.
        given: Options that plain `train()` was given, by field name; set before `__init__`.

    Raises:
        DeviceError: The device asked for isn't here; see `yolo_xpu_trainer.errors`.
        OptionError: An `xpu_*` option is unknown or has a value that it can't take.
    """

    xpu: Run | None = None
    automatic = False
    given: Mapping[str, Any] = MappingProxyType({})
    args: Any
    device: torch.device
    resume: Any
    train_loader: Any
    _tloss: Any = None
    _batches_seen = 0

    def __init__(self, cfg: Any = DEFAULT_CFG, overrides: dict[str, Any] | None = None, _callbacks: Any = None) -> None:
        overrides = dict(overrides or {})
        self._given = {**self.given, **Options.take(overrides)}
        asked = overrides.get("amp")
        self._amp = str(overrides.pop("amp")).lower() if str(asked).lower() in _AMP_NAMES else None
        self._amp_switch = asked if isinstance(asked, bool) else None  # on resume upstream keeps the checkpoint's
        super().__init__(cfg, overrides, _callbacks)  # type: ignore[call-arg]
        if self.xpu is not None:
            legacy.name_every_device(self)

    # Decisions: upstream calls this between reading the arguments and choosing the device.

    def check_resume(self, overrides: dict[str, Any]) -> None:
        """Read the checkpoint to resume, if any, then decide about device and precision."""
        super().check_resume(overrides)  # type: ignore[misc]
        saved = self._saved_settings()
        indices = self._choose(overrides, saved)
        if indices is None:
            if self._amp is not None:
                self.args.amp = self._amp if legacy.knows_named_precisions() else self._amp != "fp32"
            return
        precision = self._decide_precision(indices, saved)
        options = Options.build(self._given, saved.get("options", {}))
        self.xpu = Run(devices.info(indices[0]), indices, precision, options, resumed=saved)
        self.xpu.channels_last = options.channels_last and getattr(self.args, "channels_last", None) is not False
        if getattr(self.args, "channels_last", None):
            self.args.channels_last = None  # Ultralytics' default; True makes it warn that only CUDA can
        self.args.device = self.xpu.device_string
        self.args.amp = precision.dtype is not None

    def _saved_settings(self) -> dict[str, Any]:
        if not self.resume:
            return {}
        return saved_settings(torch.load(self.args.model, map_location="cpu", weights_only=False))

    def _choose(self, overrides: dict[str, Any], saved: dict[str, Any]) -> tuple[int, ...] | None:
        """Return the XPUs of the run, or None to leave the choice to Ultralytics."""
        if self.args.device in (None, "") and "device" in saved:
            try:
                return devices.resolve(saved["device"], prefer_xpu=True)
            except DeviceError as error:
                _LOGGER.warning(f"XPU: the run to resume was on {saved['device']}, which is gone: {error}")
                return devices.resolve(None, prefer_xpu=not self.automatic)
        indices = devices.resolve(self.args.device, prefer_xpu=not self.automatic)
        if indices is None and not self.automatic and self.args.device in (None, "") and (reason := devices.why_none()):
            _LOGGER.warning(
                f"XPU: {type(self).__name__} finds no XPU: {reason.seen}. Training goes on with Ultralytics' own "
                f"choice of device. {reason.remedy} `yolo-xpu doctor` says more."
            )
        return indices

    def _decide_precision(self, indices: tuple[int, ...], saved: dict[str, Any]) -> Precision:
        """Decide how the run computes; several devices agree on what the least of them can."""
        requested, source = self._requested_amp(saved)
        choices = [manager().hook.xpu_precision(device=devices.info(i), requested=requested) for i in indices]
        if not all(isinstance(choice, Precision) for choice in choices):
            asked = ", ".join(h.plugin_name for h in reversed(manager().hook.xpu_precision.get_hookimpls()))
            raise TypeError(
                f"xpu_precision gave {choices!r}, and must give a Precision. Asked, in this order: {asked}."
            )
        least: Precision = min(choices, key=lambda precision: ("fp32", "fp16", "bf16").index(precision.name))
        return replace(least, reason=source) if source else least

    def _requested_amp(self, saved: dict[str, Any]) -> tuple[bool | str, str]:
        """Return the precision asked for, and why if not by `amp`: an argument, a variable, the resumed run, a file."""
        if self._amp is not None:
            return self._amp, ""
        named = os.environ.get(AMP_VARIABLE, "").lower()
        for name, value in ((AMP_VARIABLE, named), ("amp", self.args.amp)):
            if isinstance(value, str) and value.lower() not in ("", AUTO, *_AMP_NAMES):
                raise OptionValueError(
                    f"{name}={value!r} is no precision. Use bf16, fp16 or fp32; amp also takes True and False.",
                    name=name,
                    value=value,
                )
        # A child process is given `amp=True` whatever its parent was asked, and the rest by its environment.
        handed_down = subprocesses.CHILD_VARIABLE in os.environ
        if handed_down and named == AUTO:
            return True, ""
        if named in _AMP_NAMES and (handed_down or self._amp_switch is None):
            return named, f"{AMP_VARIABLE}={named} asks for it"
        if self._amp_switch is not None:
            return self._amp_switch, ""
        if (named := saved.get("precision", "")) in _AMP_NAMES:
            return named, "the run to resume had it"
        amp = self.args.amp  # from a cfg file, or the default
        return (amp if amp in _AMP_NAMES else bool(amp)), ""

    # The run

    @contextmanager
    def _acting(self) -> Iterator[None]:
        """Let the rows of `upstream` that this run needs act."""
        assert self.xpu is not None
        rows = [row for rows in manager().hook.xpu_upstream_rows() for row in rows]
        children = subprocesses.row(
            "ultralytics.engine.trainer",
            self.xpu.environment(),
            "DDP workers never run the user's script, so they need the run's precision and options from elsewhere",
        )
        options = {**self.xpu.options.as_dict(), "channels_last": self.xpu.channels_last}
        with Options.asked(options), activated([children, *rows], self.xpu):
            yield

    def train(self) -> Any:
        """Train, with what the run needs changed in Ultralytics changed for as long as it takes."""
        if self.xpu is None:
            return super().train()  # type: ignore[misc]
        if not _one_run.acquire(blocking=False):
            raise RunUnderWayError(
                "Another thread of this process trains on an XPU already. What a run changes in Ultralytics holds for "
                "the whole process, so give each training a process of its own."
            )
        try:
            with self._acting(), self._around("xpu_around_run"):
                return super().train()  # type: ignore[misc]
        finally:
            _one_run.release()

    def _setup_ddp(self, *args: Any) -> None:
        if self.xpu is None or legacy.knows_accelerators():
            super()._setup_ddp(*args)  # type: ignore[misc]
        else:
            legacy.setup_ddp(self)
        if self.xpu is not None:
            self.xpu.move_to(self.device.index)

    def _setup_train(self, *args: Any) -> None:
        if self.xpu is not None and RANK in {-1, 0}:
            _LOGGER.info(f"{colorstr('XPU:')} {self.xpu}")
        super()._setup_train(*args)  # type: ignore[misc]

    def set_model_attributes(self) -> None:
        """Prepare the model, which Ultralytics has just moved to the device, as the policies want it."""
        super().set_model_attributes()  # type: ignore[misc]
        if self.xpu is not None:
            manager().hook.xpu_prepare_model(trainer=self)

    def build_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Return Ultralytics' optimizer, as the policies want it."""
        optimizer = super().build_optimizer(*args, **kwargs)  # type: ignore[misc]
        if self.xpu is None:
            return optimizer
        prepared = manager().hook.xpu_prepare_optimizer(trainer=self, optimizer=optimizer)
        return optimizer if prepared is None else prepared

    def resume_training(self, ckpt: Any) -> None:
        """Prepare what the policies bring, then load the resumed run's state into it."""
        if self.xpu is not None:
            manager().hook.xpu_before_resume(trainer=self)
        super().resume_training(ckpt)  # type: ignore[misc]

    def get_dataloader(self, dataset_path: str, batch_size: int = 16, rank: int = 0, mode: str = "train") -> Any:
        """Return Ultralytics' data loader, as the policies want it."""
        loader = super().get_dataloader(dataset_path, batch_size, rank, mode)  # type: ignore[misc]
        if self.xpu is None:
            return loader
        wrapped = manager().hook.xpu_wrap_dataloader(trainer=self, loader=loader, mode=mode)
        return loader if wrapped is None else wrapped

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Move a batch to the device as the policies want it, then let Ultralytics normalise it."""
        if self.xpu is not None:
            self.xpu.targets = Targets.of(batch)
            moved = manager().hook.xpu_move_batch(trainer=self, batch=batch)
            batch = batch if moved is None else moved
            manager().hook.xpu_arrange_batch(trainer=self, batch=batch)
        return super().preprocess_batch(batch)  # type: ignore[misc,no-any-return]

    def validate(self) -> Any:
        """Validate as the run computes."""
        if self.xpu is None:
            return super().validate()  # type: ignore[misc]
        self.xpu.targets = None  # counted of a training batch: a validation batch has others
        with self._around("xpu_around_validation"):
            return super().validate()  # type: ignore[misc]

    @property
    def tloss(self) -> Any:
        """The epoch's mean losses so far: a dict since Ultralytics 8.4.105, a tensor before."""
        return self._tloss

    @tloss.setter
    def tloss(self, means: Any) -> None:
        self._batches_seen = 0 if means is None else self._batches_seen + 1
        if self.xpu is not None and isinstance(means, dict):
            last = self._batches_seen == len(self.train_loader)
            shown = manager().hook.xpu_loss_means(trainer=self, means=means, last=last)
            means = means if shown is None else shown
        self._tloss = means

    def run_callbacks(self, event: str) -> None:
        """Run callbacks, which see the losses as they are rather than as the progress line shows them."""
        shown = self._tloss
        if self.xpu is None or not isinstance(shown, dict):
            return super().run_callbacks(event)  # type: ignore[misc,no-any-return]
        exact = self._tloss = dict(shown)
        try:
            return super().run_callbacks(event)  # type: ignore[misc,no-any-return]
        finally:
            if self._tloss is exact:
                self._tloss = shown

    def save_model(self) -> Any:
        """Save a checkpoint that is an Ultralytics checkpoint."""
        if self.xpu is None:
            return super().save_model()  # type: ignore[misc]
        with self._around("xpu_around_save"):
            return super().save_model()  # type: ignore[misc]

    def final_eval(self) -> None:
        """Validate the best weights as the run computed."""
        if self.xpu is None:
            return super().final_eval()  # type: ignore[misc,no-any-return]
        with self._around("xpu_around_validation"):
            return super().final_eval()  # type: ignore[misc,no-any-return]

    @contextmanager
    def _around(self, hook: str) -> Iterator[None]:
        with ExitStack() as stack:
            for context in getattr(manager().hook, hook)(trainer=self):
                stack.enter_context(context)
            yield

    # Memory: upstream asks torch.cuda before 8.4.111

    def _get_memory(self, fraction: bool = False) -> float:
        if self.xpu is None:
            return super()._get_memory(fraction) if fraction else super()._get_memory()  # type: ignore[misc,no-any-return]
        used, total = manager().hook.xpu_memory(device=self.xpu.device)
        return float(used / total if fraction else used / 2**30)

    def _clear_memory(self, threshold: float | None = None) -> None:
        if self.xpu is None:
            return super()._clear_memory(*(() if threshold is None else (threshold,)))  # type: ignore[misc,no-any-return]
        if threshold is None or self._get_memory(fraction=True) > threshold:
            gc.collect()
            torch.xpu.empty_cache()
        return None


def __getattr__(name: str) -> type[XPUTrainer]:
    """Make a task's trainer on first use."""
    if name not in TRAINERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, base = TRAINERS[name]
    try:
        upstream = getattr(importlib.import_module(f"ultralytics.models.{module}"), base)
    except (ImportError, AttributeError):
        from ultralytics import __version__

        raise AttributeError(f"{name} needs Ultralytics' {base}, which Ultralytics {__version__} hasn't got.") from None
    doc = f"Ultralytics' `{base}` on an Intel GPU; see `XPUTrainer`."
    trainer = type(name, (XPUTrainer, upstream), {"__module__": __name__, "__doc__": doc})
    globals()[name] = trainer
    return trainer


def __dir__() -> list[str]:
    return sorted({*globals(), *TRAINERS})

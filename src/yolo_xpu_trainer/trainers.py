"""The mixin that trains on an XPU, and with it one trainer a task: every one that the installed Ultralytics has.

The classes of `TRAINERS` are made on first use, `from yolo_xpu_trainer.trainers import XPUDetectionTrainer`, and pickle
by that name, as DDP workers need.
"""

from __future__ import annotations

import copy
import functools
import importlib
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from ultralytics.cfg import cfg2dict, get_cfg
from ultralytics.utils import DEFAULT_CFG, DEFAULT_CFG_DICT, RANK, colorstr

from . import devices, elastic, unused_gpu
from .errors import DeviceError, OptionValueError, RankError, RunUnderWayError, XPUTrainerError
from .options import Options
from .patches import Patch, applied
from .plugins import PLUGINS, Hooks, declared_options, hooks
from .process_group import Group, Peer, backend_for, first_all_reduce, join_as_worker, of_worker, watch
from .ranks import CHILD_VARIABLE, GLOO, RANK_TIMEOUT, launched
from .recovery import STRICT, Recovery
from .run import AMP_VARIABLE, AUTO, Precision, Run, saved_settings, state_of
from .seams import seams
from .upstream import legacy
from .upstream.child_processes import environment_patch, hand_up
from .versions import knows_accelerators, knows_named_precisions

if TYPE_CHECKING:
    from ultralytics.engine.trainer import BaseTrainer as _Trainer
else:
    _Trainer = object

_LOGGER = logging.getLogger("ultralytics")
_one_run = threading.RLock()
_AMP_NAMES = ("bf16", "fp16", "fp32")
_TRAINER_MODULE = "ultralytics.engine.trainer"

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


class XPUTrainer(_Trainer):  # type: ignore[misc]
    """Makes an Ultralytics trainer train on an Intel GPU. Put it first: `class Mine(XPUTrainer, MyTrainer)`.

    It overrides only methods that every Ultralytics since 8.3.0 has, always through `super()`, and holds no policy of
    its own: what is decided, wrapped or prepared at each seam, the hooks of `yolo_xpu_trainer.hookspecs` say. Where the
    run isn't on an XPU (`device="cpu"`, or no XPU and nothing asked) it does nothing at all.

    Beyond Ultralytics' own arguments it takes the `xpu_*` options that policies declare (`yolo-xpu options` lists
    them), and `amp="bf16" | "fp16" | "fp32"`.

    Attributes:
        xpu: What was decided about this run, or None where it isn't on an XPU.
        automatic: Whether plain `train()` took this trainer, so that a CUDA device comes first; set before `__init__`.
        given: Options that plain `train()` was given, by name; set before `__init__`.

    Raises:
        DeviceError: The device asked for isn't here; see `yolo_xpu_trainer.errors`.
        OptionError: An `xpu_*` option is unknown or has an invalid value.
    """

    takes_xpu_options = True
    xpu: Run | None = None
    _group: Group | None = None
    _interrupted: Path | None = None
    automatic = False
    given: Mapping[str, Any] = MappingProxyType({})

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Warn of a class whose bases stand in an order in which the mixin would do nothing."""
        super().__init_subclass__(**kwargs)
        before = [base for base in cls.__mro__[: cls.__mro__.index(XPUTrainer)] if base.__module__ == _TRAINER_MODULE]
        if before:
            bases = ", ".join(["XPUTrainer", *(b.__name__ for b in cls.__bases__ if b is not XPUTrainer)])
            _LOGGER.warning(
                f"XPU: class {cls.__name__} trains as plain Ultralytics does, because XPUTrainer stands behind "
                f"Ultralytics' own trainer among its bases. Write `class {cls.__name__}({bases})`."
            )

    def __init__(self, cfg: Any = DEFAULT_CFG, overrides: dict[str, Any] | None = None, _callbacks: Any = None) -> None:
        overrides = dict(overrides or {})
        self._given = {**self.given, **Options.pop_from(overrides, declared_options())}
        self._arguments = frozenset(overrides) | _named_in(cfg)
        asked = overrides.get("amp")
        self._amp = str(overrides.pop("amp")).lower() if str(asked).lower() in _AMP_NAMES else None
        self._amp_switch = asked if isinstance(asked, bool) else None  # on resume upstream keeps the checkpoint's
        with Options.scope(self._given):
            self._group = self._come_together(cfg, overrides)
            with self._together():
                super().__init__(cfg, overrides, _callbacks)
        if self.xpu is not None:
            legacy.name_every_device(self)
            if self._group is not None:
                self.world_size, self.ddp = self.xpu.world_size, False
            # Before 8.4.190 they are the model's own, and what policies add would be called in its next run as well.
            own: Any = copy.copy(self.callbacks)  # type: ignore[has-type]
            own.update({event: list(functions) for event, functions in own.items()})
            self.callbacks = own

    # The other processes, where a launcher started this one

    def _come_together(self, cfg: Any, overrides: Mapping[str, Any]) -> Group | None:
        """Open the process group where a launcher started this process to train on an XPU.

        Before Ultralytics' own `__init__`, in which one process of each machine checks the data set for the others.
        """
        launch = launched()
        if launch is None or self._has_own_process_group():
            return None
        asked = overrides["device"] if "device" in overrides else get_cfg(cfg).device
        index = devices.of_rank(asked, launch.local_rank, prefer_xpu=not self.automatic)
        if index is None:
            return None
        backend = backend_for((index,), launch.world_size, gloo=GLOO.current())
        return Group(launch, devices.info(index), RANK_TIMEOUT.current(), backend)

    @contextmanager
    def _together(self, *, to_the_end: bool = False) -> Iterator[None]:
        """Tell the other processes of an error, say of theirs where that came first, and leave them."""
        group = self._group
        if group is None:
            yield
            return
        try:
            yield
        except BaseException as error:
            first = group.failed_first(error)
            group.close(first or error)
            if first is not None:
                raise first from error
            raise
        if to_the_end:
            group.close()

    # Decisions: upstream calls this between reading the arguments and choosing the device.

    def check_resume(self, overrides: dict[str, Any]) -> None:
        """Read the checkpoint to resume, if any, then decide about device and precision."""
        folder = None
        if self._group is not None and not self.args.resume:
            self._interrupted = elastic.settle_folder(self.args, self._group)
            folder = self.args.save_dir
            if self._interrupted is not None:
                self.args.resume = str(self._interrupted)
        super().check_resume(overrides)
        if folder is not None:
            self.args.save_dir = folder
        saved = self._saved_settings()
        indices = self._choose(saved)
        if indices is None:
            if self._amp is not None:
                self.args.amp = self._amp if knows_named_precisions() else self._amp != "fp32"
            return
        options = Options.resolve(declared_options(), self._given, saved.get("options", {}))
        if self._group is None:
            self._check_alone(indices, gloo=options[GLOO])
        recovery = Recovery(lambda: options[STRICT])
        asking = hooks(options[PLUGINS], recovery)
        precision = self._decide_precision(asking, indices, saved)
        self.xpu = Run(
            device=devices.info(indices[0]),
            indices=indices,
            precision=precision,
            options=options,
            resumed=saved,
            recovery=recovery,
            hooks=asking,
            arguments=self._arguments,
            group=self._group,
            watchdog=self._group.watchdog if self._group else None,
        )
        asking.xpu_configure(trainer=self)
        self.args.device = self.xpu.device_string
        self.args.amp = self.xpu.precision.dtype is not None  # which several GPUs may have given up

    def _check_alone(self, indices: tuple[int, ...], *, gloo: bool) -> None:
        """See that a run whose processes didn't come together here needn't, or does so by itself.

        Raises:
            DeviceError: A launcher started the processes, and each would train alone.
            NoXCCLError: There are several XPUs, and no collectives for them.
        """
        if not self._has_own_process_group():
            backend_for(indices, gloo=gloo)
        elif len(indices) == 1 and (launch := launched()):
            name = type(self).__name__
            raise DeviceError(
                f"A launcher started {launch.world_size} processes, and {name} sets up their group by a `_setup_ddp` "
                f"of its own, which Ultralytics calls only where `device` names several GPUs; with "
                f"device={self.args.device!r} each process would train alone, in the same folder. Name the XPU of "
                f"each process of this machine, such as device='xpu:0,1', or take `_setup_ddp` out of {name}.",
                requested=self.args.device,
                seen=devices.describe(),
            )

    def _has_own_process_group(self) -> bool:
        """Whether a user's class sets up the processes of a DDP run, with a backend of its choice."""
        owner = next(c for c in type(self).__mro__ if c is not XPUTrainer and "_setup_ddp" in vars(c))
        return knows_accelerators() and owner.__module__ != _TRAINER_MODULE

    def _saved_settings(self) -> dict[str, Any]:
        if not self.resume:
            return {}
        return saved_settings(torch.load(self.args.model, map_location="cpu", weights_only=False))

    def _choose(self, saved: dict[str, Any]) -> tuple[int, ...] | None:
        """Return the XPUs of the run, or None to leave the choice to Ultralytics."""
        if self._group is not None:
            return (self._group.device.index,)
        if self.args.device in (None, "") and "device" in saved:
            try:
                return devices.resolve(saved["device"], prefer_xpu=True)
            except DeviceError as error:
                _LOGGER.warning(f"XPU: the run to resume was on {saved['device']}, which is not available: {error}")
                return devices.resolve(None, prefer_xpu=not self.automatic)
        indices = devices.resolve(self.args.device, prefer_xpu=not self.automatic)
        if (
            indices is None
            and not self.automatic
            and self.args.device in (None, "")
            and (problem := devices.why_none())
        ):
            unused_gpu.leave_unsaid()
            _LOGGER.warning(
                f"XPU: {type(self).__name__} finds no XPU: {problem.seen}. Training goes on with Ultralytics' own "
                f"choice of device. {problem.remedy} `yolo-xpu doctor` says more."
            )
        return indices

    def _decide_precision(self, asking: Hooks, indices: tuple[int, ...], saved: dict[str, Any]) -> Precision:
        """Decide how the run computes; several devices agree on what the least of them can."""
        requested, source = self._requested_amp(saved)
        choices = [asking.xpu_precision(device=devices.info(i), requested=requested) for i in indices]
        choices = [Precision("fp32", "no plugin decides it") if choice is None else choice for choice in choices]
        if not all(isinstance(choice, Precision) for choice in choices):
            asked = ", ".join(h.plugin_name for h in reversed(asking.implementations("xpu_precision")))
            raise TypeError(
                f"xpu_precision returned {choices!r}, but must return a Precision. Plugins asked, in order: {asked}."
            )
        if self._group is not None:
            choices = self._group.gather(choices[0])
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
                    f"{name}={value!r} is not a valid precision. Use bf16, fp16 or fp32, or for amp True or False.",
                    name=name,
                    value=value,
                )
        # A child process is given `amp=True` whatever its parent was asked, and the rest by its environment.
        handed_down = CHILD_VARIABLE in os.environ
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

    def train(self) -> Any:
        """Train, with Ultralytics patched as the run needs it for as long as it takes."""
        if self.xpu is None:
            return super().train()
        if not _one_run.acquire(blocking=False):
            raise RunUnderWayError(
                "Another thread of this process trains on an XPU already. What a run patches in Ultralytics holds for "
                "the whole process, so give each training a process of its own."
            )
        self.xpu.found = state_of(Path(self.last))
        try:
            with (
                self._together(to_the_end=True),
                Options.scope(self.xpu.options.as_dict()),
                applied(self._patches(), self.xpu),
                self._around("xpu_around_run"),
            ):
                return super().train()
        except Exception as error:
            if self.xpu.world_size > 1 or isinstance(error, XPUTrainerError):
                hand_up(of_worker(error))
            raise
        finally:
            if self.xpu.watchdog is not None:
                self.xpu.watchdog.stop()
            _one_run.release()

    def _patches(self) -> list[Patch]:
        """Return the patches of Ultralytics that this run wants."""
        assert self.xpu is not None
        children = environment_patch(
            "ultralytics.engine.trainer",
            self.xpu.environment(),
            "DDP workers, which never run the user's script, would not know the run's precision and options",
        )
        wanted = [one for patches in self.xpu.hooks.xpu_patches(trainer=self) for one in patches]
        return [children, *legacy.RUN_PATCHES * (self.xpu.world_size > 1), *seams(self), *wanted]

    def _do_train(self, *args: Any) -> Any:
        if self._group is not None and args:  # before 8.3.200 or so Ultralytics hands in how many devices it counts
            args = (self._group.launch.world_size, *args[1:])
        return super()._do_train(*args)

    def setup_model(self) -> Any:
        """Make the model; that of the checkpoint where the run was started again."""
        if self._interrupted is not None:
            self.model = str(self._interrupted)
        return super().setup_model()

    def _setup_ddp(self, *args: Any) -> None:
        if self._group is not None:  # which is open, and whose device is set
            return
        own = self._has_own_process_group()
        if self.xpu is None or own or (knows_accelerators() and not self.xpu.options[GLOO]):
            super()._setup_ddp(*args)
        else:
            if not knows_accelerators():
                legacy.check_order(self)
            index = self.xpu.indices[int(os.environ["LOCAL_RANK"])]
            backend = backend_for(self.xpu.indices, gloo=self.xpu.options[GLOO])
            join_as_worker(index, self.xpu.world_size, backend)
            self.device = torch.device("xpu", index)
        if self.xpu is not None:
            self.xpu.move_to(self.device.index)
            if not own:
                self._watch_the_others(self.xpu)

    def _watch_the_others(self, run: Run) -> None:
        """Try whether the ranks that Ultralytics started can compute together, then see that none of them hangs."""
        timeout = run.options[RANK_TIMEOUT]
        first_all_reduce(self.device, timeout, hand_up)
        rank = torch.distributed.get_rank()
        peers = [Peer(i, i, "", "this machine", str(devices.info(index))) for i, index in enumerate(run.indices)]
        run.watchdog = watch(
            peers,
            "own",
            rank,
            timeout,
            lambda text: hand_up(RankError(f"The run is ended, because {text}.", seen=text)),
        )

    def _setup_train(self, *args: Any) -> None:
        if self.xpu is not None and RANK in {-1, 0}:
            phrases = [str(self.xpu), *reversed(self.xpu.hooks.xpu_report(trainer=self))]
            _LOGGER.info(f"{colorstr('XPU:')} {', '.join(phrases)}")
        super()._setup_train(*args)

    def set_model_attributes(self) -> None:
        """Prepare the model, which Ultralytics has just moved to the device, as the policies want it."""
        super().set_model_attributes()
        if self.xpu is not None:
            self.xpu.hooks.xpu_prepare_model(trainer=self)

    def resume_training(self, ckpt: Any) -> None:
        """Prepare what the policies bring, then load the resumed run's state into it."""
        if self.xpu is not None:
            self.xpu.hooks.xpu_after_setup(trainer=self)
        super().resume_training(ckpt)

    def get_dataloader(self, dataset_path: str, batch_size: int = 16, rank: int = 0, mode: str = "train") -> Any:
        """Return the data loader as the policies want it."""
        loader = super().get_dataloader(dataset_path, batch_size, rank, mode)
        if self.xpu is None:
            return loader
        wrapped = self.xpu.hooks.xpu_wrap_dataloader(trainer=self, loader=loader, mode=mode)
        return loader if wrapped is None else wrapped

    def validate(self) -> Any:
        """Validate as the run computes."""
        with self._around("xpu_around_validation"):
            return super().validate()

    def final_eval(self) -> None:
        """Validate the best weights as the run computed."""
        with self._around("xpu_around_validation"):
            super().final_eval()

    def save_model(self) -> Any:
        """Save a checkpoint that is an Ultralytics checkpoint."""
        with self._around("xpu_around_save"):
            return super().save_model()

    @contextmanager
    def _around(self, hook: str) -> Iterator[None]:
        if self.xpu is None:
            yield
            return
        with ExitStack() as stack:
            for context in getattr(self.xpu.hooks, hook)(trainer=self):
                self.xpu.recovery.attempting(functools.partial(stack.enter_context, context))
            yield


if TYPE_CHECKING:  # made on first use, below: each exists where the installed Ultralytics has its base

    class XPUDetectionTrainer(XPUTrainer): ...

    class XPUSegmentationTrainer(XPUTrainer): ...

    class XPUClassificationTrainer(XPUTrainer): ...

    class XPUPoseTrainer(XPUTrainer): ...

    class XPUOBBTrainer(XPUTrainer): ...

    class XPUSemanticSegmentationTrainer(XPUTrainer): ...

    class XPUDepthTrainer(XPUTrainer): ...

    class XPURTDETRTrainer(XPUTrainer): ...

    class XPUWorldTrainer(XPUTrainer): ...

    class XPUWorldFromScratchTrainer(XPUTrainer): ...

    class XPUYOLOETrainer(XPUTrainer): ...

    class XPUYOLOEPETrainer(XPUTrainer): ...

    class XPUYOLOEFromScratchTrainer(XPUTrainer): ...

    class XPUYOLOEPEFreeTrainer(XPUTrainer): ...

    class XPUYOLOEVPTrainer(XPUTrainer): ...

    class XPUYOLOESegTrainer(XPUTrainer): ...

    class XPUYOLOEPESegTrainer(XPUTrainer): ...

    class XPUYOLOESegFromScratchTrainer(XPUTrainer): ...

    class XPUYOLOESegVPTrainer(XPUTrainer): ...

else:

    def __getattr__(name: str) -> type[XPUTrainer]:
        """Make a task's trainer on first use."""
        if name not in TRAINERS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module, base = TRAINERS[name]
        try:
            upstream = getattr(importlib.import_module(f"ultralytics.models.{module}"), base)
        except (ImportError, AttributeError):
            from ultralytics import __version__

            raise AttributeError(
                f"{name} needs Ultralytics' {base}, which Ultralytics {__version__} doesn't have."
            ) from None
        doc = f"Ultralytics' `{base}` on an Intel GPU; see `XPUTrainer`."
        trainer = type(name, (XPUTrainer, upstream), {"__module__": __name__, "__doc__": doc})
        globals()[name] = trainer
        return trainer


def __dir__() -> list[str]:
    return sorted({*globals(), *TRAINERS})


def _named_in(cfg: Any) -> frozenset[str]:
    """Return the arguments that a configuration of the user's sets to other values than Ultralytics' own."""
    if cfg is DEFAULT_CFG:
        return frozenset()
    try:
        given = cfg2dict(cfg)
    except Exception:  # Ultralytics says what is wrong with it
        return frozenset()
    return frozenset(name for name, value in given.items() if value != DEFAULT_CFG_DICT.get(name))

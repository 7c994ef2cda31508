"""Convolutions in channels_last (NHWC), the memory format that oneDNN's XPU kernels are fastest in.

Source: Intel Extension for PyTorch, "Channels Last". Not measured by us on Intel hardware; `yolo-xpu bench` measures it
on a user's.

Code that isn't PyTorch's, torchvision's or Ultralytics' may count on NCHW: by `view`, `as_strided`, or an optimizer
that flattens gradients. It is tried in both layouts before a run depends on it, and where it fails or computes
something else, the run stays in NCHW.
"""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
import logging
import os
import random
import re
import traceback
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakSet

import numpy as np
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils._pytree import tree_leaves, tree_map

from ..devices import empty_cache
from ..hookspecs import hookimpl
from ..options import Option, Options
from ..patches import patch
from ..run import Run, StashKey
from ..versions import torch_release

__all__ = ["PATCHES"]

_LOGGER = logging.getLogger("ultralytics")
_KNOWN = {"torch", "torchvision", "ultralytics", __name__.partition(".")[0]}  # whose code works in either layout

_OUT_OF_MEMORY = r"out of memory|OUT_OF_(RESOURCES|\w*MEMORY)"

LIMIT = 1e-3
"""Relative difference between the layouts, in float32, at which something else is computed and not just rounded."""

_STRIDE = 32  # Ultralytics takes no less for a model's, and that of a classifier's layers is that, whatever it says
_OLDER_SCALE = 0.5


def _by_default() -> bool:
    """Whether channels_last is the default: before 2.7 its kernels of batch normalization are slow.

    Source: torch-xpu-ops#1317, #1327.
    """
    return torch_release() >= (2, 7)


CHANNELS_LAST = Option(
    "channels_last",
    True,
    "convolutions work in channels_last (NHWC); Ultralytics' own `channels_last=False` switches it off as well; "
    "`False` by default before PyTorch 2.7",
    modes="all",
)


class _Layout:
    """The memory format of a run.

    Args:
        wanted: Whether it is to be channels_last.

    Attributes:
        wanted: The same; False, too, once the run went back to NCHW.
        model: The model that is laid out in it, None as long as its own code is yet to be tried.
        tried: What of users' code was tried, by id.
        optimizers: Those that were tried.
    """

    def __init__(self, wanted: bool) -> None:
        self.wanted = wanted
        self.model: torch.nn.Module | None = None
        self.tried: dict[int, Any] = {}
        self.optimizers: WeakSet[torch.optim.Optimizer] = WeakSet()


_LAYOUT = StashKey[_Layout]()


@hookimpl
def xpu_options() -> list[Option[bool]]:
    return [CHANNELS_LAST]


@hookimpl
def xpu_configure(trainer: Any) -> None:
    """Decide, by the option and by Ultralytics' own argument, of which True makes it warn that only CUDA can."""
    run: Run = trainer.xpu
    argument = getattr(trainer.args, "channels_last", None)
    asked = run.options[CHANNELS_LAST] if run.options.is_given(CHANNELS_LAST) else argument or _by_default()
    run.stash[_LAYOUT] = _Layout(asked and argument is not False)
    if argument:
        trainer.args.channels_last = None


@hookimpl
def xpu_report(trainer: Any) -> str:
    """Say which memory format the run has."""
    if _of(trainer).wanted:
        return "channels_last memory format"
    requested = trainer.xpu.options.is_given(CHANNELS_LAST) or _by_default()
    return "NCHW memory format " + ("as requested" if requested else f"on PyTorch {torch.__version__}")


@hookimpl
@contextmanager
def xpu_around_run(trainer: Any) -> Iterator[None]:
    """Let what the run predicts have its memory format, and try every optimizer before its first step."""

    def before_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if optimizer is trainer.optimizer:
            _try_optimizer(trainer, optimizer)

    hook = register_optimizer_step_pre_hook(before_step)
    try:
        with Options.scope({CHANNELS_LAST.name: _of(trainer).wanted}):
            yield
    finally:
        hook.remove()


@hookimpl
@contextmanager
def xpu_around_validation(trainer: Any) -> Iterator[None]:
    """Validate in the memory format that the run has by now."""
    with Options.scope({CHANNELS_LAST.name: _of(trainer).wanted}):
        yield


@hookimpl
def xpu_prepare_model(trainer: Any) -> None:
    """Lay out the model's weights; the average that is made of it later has its layout.

    A model with code of users' stays as it is until that was tried on a batch, because AutoBatch and the check of
    mixed precision run it before.
    """
    layout = _of(trainer)
    if layout.wanted and (sides := _smallest_sides(trainer)):
        layout.wanted = False
        _LOGGER.info(
            f"XPU: training in NCHW, because images of {sides} pixels become feature maps of one, for which XPUs were "
            "seen to compute wrong gradients in channels_last (torch-xpu-ops#4756)."
        )
    if layout.wanted and not _own_code(trainer.model):
        _lay_out(trainer.model)
        layout.model = trainer.model


@hookimpl
def xpu_after_setup(trainer: Any) -> None:
    """Try the optimizer, and in each epoch what came to the model since."""
    if _of(trainer).wanted:
        _try_optimizer(trainer, trainer.optimizer)
        trainer.add_callback("on_train_epoch_start", _look)


@hookimpl
def xpu_arrange_batch(trainer: Any, batch: dict[str, Any]) -> None:
    """Lay out the images in channels_last while they are bytes.

    Not where a user's `preprocess_batch` gets them afterwards: then the first convolution does it.
    """
    images = batch.get("img")
    layout = _of(trainer)
    if (
        layout.wanted
        and layout.model is not None
        and layout.model is _unwrapped(trainer.model)
        and isinstance(images, torch.Tensor)
        and images.dim() == 4
        and not _own_preprocessing(trainer)
    ):
        batch["img"] = images.contiguous(memory_format=torch.channels_last)


@patch("ultralytics.nn.autobackend:AutoBackend.__init__", why="it keeps to NCHW on every GPU but CUDA's")
def init(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> None:
    """Make a backend, whose model works in channels_last on an XPU if it has no code of users', which may not."""
    asked = kwargs.get("channels_last")
    if asked and _is_xpu(kwargs.get("device")):
        kwargs["channels_last"] = None  # True makes it warn that an XPU can't
    original(self, *args, **kwargs)
    model = getattr(getattr(self, "backend", self), "model", None)
    if isinstance(model, torch.nn.Module) and _wanted_now(asked):
        weight = next(model.parameters(), None)
        if weight is not None and _is_xpu(weight.device) and not _own_code(model):
            _lay_out(model)


PATCHES = [init]


def _of(trainer: Any) -> _Layout:
    run: Run = trainer.xpu
    return run.stash[_LAYOUT]


def _wanted_now(argument: bool | None) -> bool:
    """Whether the call in progress, which may be of no run, wants channels_last, with Ultralytics' own argument."""
    given = CHANNELS_LAST.name in Options.in_scope() or CHANNELS_LAST.variable in os.environ
    return argument is not False and (CHANNELS_LAST.current() if given else argument or _by_default())


def _is_xpu(device: Any) -> bool:
    return isinstance(device, torch.device) and device.type == "xpu"


def _unwrapped(model: Any) -> Any:
    """Return the model that DDP or torch.compile wraps."""
    while isinstance(model, torch.nn.Module):
        inner = getattr(model, "_orig_mod", None)
        if isinstance(model, torch.nn.parallel.DistributedDataParallel):
            inner = model.module
        if inner is None:
            break
        model = inner
    return model


def _smallest_sides(trainer: Any) -> int:
    """Return the sides of the smallest images of a run, where their deepest feature maps have one pixel, else 0.

    There one operand of a convolution alone tells the layout, and the XPU's gradients take one for the other
    (torch-xpu-ops#4756, open in torch 2.14 as pytorch#190773).
    """
    stride = max(int(max(getattr(trainer.model, "stride", [0]))), _STRIDE)
    size = trainer.args.imgsz
    size = max(size) if isinstance(size, (list, tuple)) else int(size)
    scale = getattr(trainer.args, "multi_scale", 0) or 0
    scale = _OLDER_SCALE if scale is True else scale  # a switch before 8.4.0 or so
    smallest = max(int(-(-size // stride) * stride * (1 - scale)) // stride, 1) * stride
    return smallest if smallest == stride else 0


# Layouts of weights


def _lay_out(model: torch.nn.Module, memory_format: torch.memory_format = torch.channels_last) -> None:
    """Lay out the weights of a model's convolutions, with their gradients.

    Not by `model.to(memory_format=…)`, which lays out every parameter of four dimensions: one of a user's module, such
    as a positional embedding, may be read by `view`.
    """
    for module in model.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.ConvTranspose2d)) and _is_known(type(module)):
            weight = module._parameters.get("weight")  # which a parametrization has moved away
            if weight is not None and weight.dim() == 4:
                weight.data = weight.data.contiguous(memory_format=memory_format)
                if weight.grad is not None:
                    weight.grad.data = weight.grad.data.contiguous(memory_format=memory_format)


def _train_in(memory_format: torch.memory_format, trainer: Any) -> None:
    """Lay out what a run has: its model, its average, and the optimizer's state."""
    layout = _of(trainer)
    layout.wanted = memory_format is torch.channels_last
    layout.model = _unwrapped(trainer.model) if layout.wanted else None
    average: Any = getattr(trainer, "ema", None)
    for model in (trainer.model, getattr(average, "ema", None)):
        if isinstance(model, torch.nn.Module):
            _lay_out(model, memory_format)
    if getattr(average, "_pairs", None) is not None:
        average._pairs = None  # the weights' storage as it was
    if isinstance(trainer.optimizer, torch.optim.Optimizer):
        _follow_the_weights(trainer.optimizer)


def _train_in_nchw(trainer: Any, reason: str) -> None:
    _LOGGER.warning(f"XPU: training in NCHW, which is slower, because {reason}")
    _train_in(torch.contiguous_format, trainer)


def _follow_the_weights(optimizer: torch.optim.Optimizer) -> None:
    """Lay out an optimizer's state as its weights are: a checkpoint has it in NCHW."""
    for parameter, state in optimizer.state.items():
        if not isinstance(parameter, torch.Tensor) or not isinstance(state, dict):
            continue
        for name, value in state.items():
            if (
                isinstance(value, torch.Tensor)
                and value.shape == parameter.shape
                and value.stride() != parameter.stride()
            ):
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _in_nchw(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Give a checkpoint an optimizer's state in NCHW."""
    state["state"] = {
        index: {name: v.contiguous() if isinstance(v, torch.Tensor) else v for name, v in values.items()}
        if isinstance(values, dict)
        else values
        for index, values in state["state"].items()
    }


# Users' code


def _is_known(thing: Any) -> bool:
    """Whether a class, a function or another callable is PyTorch's, torchvision's, Ultralytics' or ours.

    What a function's `__module__` says, `functools.wraps` changes; its globals are those of the file that it is in.
    """
    if isinstance(thing, functools.partial):
        return _is_known(thing.func)
    function = getattr(thing, "__func__", thing)
    if inspect.isfunction(function):
        name = function.__globals__.get("__name__", "")
        inner = getattr(function, "__wrapped__", None)
        return str(name).partition(".")[0] in _KNOWN and (inner is None or _is_known(inner))
    if inspect.isbuiltin(function):
        return True
    owner = thing if isinstance(thing, type) else type(thing)
    return owner.__module__.partition(".")[0] in _KNOWN


def _own_code(model: torch.nn.Module) -> dict[int, Any]:
    """Return what of a model is users' code: modules, methods put on them or their classes, hooks, a loss; by id."""
    found: dict[int, Any] = {}
    for module in _unwrapped(model).modules():
        kind: Any = type(module)
        held = vars(module)
        callables: list[Any] = [
            value for value in held.values() if inspect.isroutine(value) or isinstance(value, functools.partial)
        ]
        callables += [kind.forward, getattr(kind, "loss", None), held.get("criterion")]
        callables += [hook for hooks in _hooks(module) for hook in hooks.values()]
        if not _is_known(kind):
            found[id(module)] = module
        found.update({id(thing): thing for thing in callables if thing is not None and not _is_known(thing)})
    return found


def _hooks(module: torch.nn.Module) -> Iterator[Mapping[int, Any]]:
    for holder in (module, *(p for p in module._parameters.values() if p is not None)):
        for name in ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks"):
            yield getattr(holder, name, None) or {}
        yield getattr(holder, "_post_accumulate_grad_hooks", None) or {}


def _named(own: Iterable[Any]) -> str:
    """Return the names of users' code, for a line."""
    names = {getattr(thing, "__qualname__", type(thing).__name__): None for thing in own}
    return ", ".join(list(names)[:3]) + (", …" if len(names) > 3 else "")


def _own_preprocessing(trainer: Any) -> bool:
    """Whether a class of a user's has a `preprocess_batch`."""
    return any("preprocess_batch" in vars(owner) and not _is_known(owner) for owner in type(trainer).__mro__)


def _look(trainer: Any) -> None:
    """Look, as an epoch starts, for users' code that came since the last one, or for another model."""
    layout = _of(trainer)
    if not layout.wanted or not isinstance(trainer.model, torch.nn.Module):
        return
    own = _own_code(trainer.model)
    new = [thing for key, thing in own.items() if key not in layout.tried]
    if not new and layout.model is _unwrapped(trainer.model):
        return
    layout.tried = own
    if not own:
        _train_in(torch.channels_last, trainer)
    elif getattr(trainer.args, "compile", False) or len(trainer.xpu.indices) > 1:
        how = "in a compiled model" if getattr(trainer.args, "compile", False) else "on several devices"
        _train_in_nchw(trainer, f"the model has code of its own ({_named(new)}), which can't be tried {how}.")
    else:
        layout.model = None
        _Trial(trainer)


class _Trial:
    """Tries users' code on the first batch that is trained with.

    As a hook of the trained model it gets the batch as the model does. Loss, gradients and predictions are computed in
    either layout, in float32, on the model itself, because a copy would take its memory again. What that changes in the
    model and in random generators is put back. What code notes elsewhere, such as a count outside of the model, is not.

    Args:
        trainer: The trainer.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._handle = trainer.model.register_forward_pre_hook(self, prepend=True)

    def __reduce__(self) -> Any:
        return _no_trial, ()  # a copy of the model isn't tried

    def __call__(self, model: torch.nn.Module, args: tuple[Any, ...]) -> None:
        if not (model.training and torch.is_grad_enabled()):
            return
        self._handle.remove()
        trainer, batch = self._trainer, args[0] if len(args) == 1 else None
        if not _of(trainer).wanted or model is not trainer.model:
            return
        if reason := _problem(model, batch):
            _train_in_nchw(trainer, reason)
        else:
            _train_in(torch.channels_last, trainer)
        if isinstance(batch, dict):
            wanted = torch.channels_last if _of(trainer).wanted else torch.contiguous_format
            batch["img"] = batch["img"].contiguous(memory_format=wanted)


def _no_trial() -> Callable[..., None]:
    return _pass


def _pass(model: torch.nn.Module, args: tuple[Any, ...]) -> None:
    pass


def _problem(model: torch.nn.Module, batch: Any) -> str:
    """Return why a model is not trained in channels_last, "" where it can be."""
    images = batch.get("img") if isinstance(batch, dict) else None
    if not isinstance(images, torch.Tensor) or images.dim() != 4:
        return "the model has code of its own, and isn't trained with a batch of images, with which to try it."
    if any(getattr(p, "_post_accumulate_grad_hooks", None) for p in model.parameters()):
        return "hooks that are called when a gradient is accumulated can't be tried in channels_last."
    try:
        return _compared(model, batch)
    finally:
        torch.clear_autocast_cache()
        if _is_xpu(images.device):
            empty_cache(images.device.index)


def _compared(model: torch.nn.Module, batch: dict[str, Any]) -> str:
    """Compute in both layouts, and say why that of channels_last can't be taken."""
    plain = _attempt(model, batch, torch.contiguous_format)
    if isinstance(plain, str):
        return plain
    ours = _attempt(model, batch, torch.channels_last)
    if isinstance(ours, str):
        return ours
    what, distance = _difference(plain, ours)
    if distance <= LIMIT:
        return ""
    # Small images and weights that have learnt nothing make much of rounding: labels go to other anchors.
    del ours
    moved = _attempt(model, {**batch, "img": _noisy(batch["img"])}, torch.contiguous_format)
    limit = LIMIT if isinstance(moved, str) else max(LIMIT, 3 * _difference(plain, moved)[1])
    if distance <= limit:
        return ""
    return f"the model computes something else in channels_last: {what} differs by {distance:.2g} (limit {limit:.2g})."


def _noisy(images: torch.Tensor) -> torch.Tensor:
    """Return images with noise of the size that rounding has by the end of a deep network."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)) * 1e-5
    return images * (1 + noise.to(images.device))


def _attempt(model: torch.nn.Module, batch: dict[str, Any], memory_format: torch.memory_format) -> _Result | str:
    """Return what a model computes in a layout, or why it doesn't."""
    device = batch["img"].device
    try:
        with _restored(model), _exact(device), _same_random_numbers(device):
            _lay_out(model, memory_format)
            return _compute(model, batch, memory_format)
    except Exception as error:  # of whatever type users' code raises
        if "DEVICE_LOST" in str(error):
            raise
        return _told(error, memory_format)


class _Result(NamedTuple):
    """What a model computed of a batch."""

    loss: float
    gradients: dict[str, torch.Tensor]
    predictions: list[float]
    """The norms of the tensors that it predicts: rounding may reorder them, where a head chooses by rank."""


def _compute(model: torch.nn.Module, batch: dict[str, Any], memory_format: torch.memory_format) -> _Result:
    """Train with a batch as far as the gradients, and predict from its images."""
    batch = tree_map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, dict(batch))
    images = batch["img"] = batch["img"].contiguous(memory_format=memory_format)
    loss = model(batch)[0].sum()
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    gradients = {name: gradient for name, gradient in zip(weights, found, strict=True) if gradient is not None}
    model.eval()
    with torch.no_grad():
        predicted = [leaf for leaf in tree_leaves(model(images)) if isinstance(leaf, torch.Tensor)]
    floats = [leaf.float() for leaf in predicted if leaf.is_floating_point() and leaf.numel()]
    return _Result(float(loss), gradients, _norms(floats))


def _norms(tensors: list[torch.Tensor]) -> list[float]:
    return torch.stack([tensor.norm().float() for tensor in tensors]).tolist() if tensors else []


def _difference(one: _Result, other: _Result) -> tuple[str, float]:
    """Return in what two results differ most, and by how much of it."""
    names = [name for name in one.gradients if name in other.gradients]
    sizes = dict(zip(names, _norms([one.gradients[name] for name in names]), strict=True))
    apart = dict(zip(names, _norms([one.gradients[name] - other.gradients[name] for name in names]), strict=True))
    smallest = 0.01 * max(sizes.values(), default=0.0)  # a bias in front of a batch norm has rounding for a gradient
    found = {f"the gradient of {name}": apart[name] / (max(sizes[name], smallest) or 1.0) for name in names}
    found["the loss"] = abs(one.loss - other.loss) / (abs(one.loss) or 1.0)
    for a, b in zip(one.predictions, other.predictions, strict=False):
        found["a prediction"] = max(found.get("a prediction", 0.0), abs(a - b) / (a or 1.0))
    numbers = {what: distance for what, distance in found.items() if distance == distance}  # not of NaN from NaN
    what = max(numbers, key=numbers.__getitem__, default="")
    return what, numbers.get(what, 0.0)


def _told(error: Exception, memory_format: torch.memory_format) -> str:
    """Return an error of a trial as a reason."""
    text = next(iter(str(error).splitlines()), "") or type(error).__name__
    if isinstance(error, torch.OutOfMemoryError) or re.search(_OUT_OF_MEMORY, text, re.IGNORECASE):
        return "there was not enough memory to try the model's own code in channels_last."
    if memory_format is torch.contiguous_format:
        return f"the model's own code can't be tried: {_place(error)} failed in float32 in NCHW, too: {text}"
    return f"{_place(error)} can't work in channels_last: {text}"


def _place(error: Exception) -> str:
    """Return the name of the innermost function of users' that an error came through."""
    name = "the model's own code"
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_globals.get("__name__", "").partition(".")[0] not in _KNOWN:
            code, owner = frame.f_code, frame.f_locals.get("self")
            name = getattr(code, "co_qualname", code.co_name)
            if owner is not None:
                name = f"{type(owner).__name__}.{code.co_name}"
    return name


# What a trial puts back


@contextmanager
def _exact(device: torch.device) -> Iterator[None]:
    """Compute in float32, as IEEE float32."""
    switches: Any = torch.backends.mkldnn
    before = getattr(switches, "allow_tf32", None)
    if before is not None:
        switches.allow_tf32 = False
    try:
        with torch.autocast(device.type, enabled=False), torch.enable_grad():
            yield
    finally:
        if before is not None:
            switches.allow_tf32 = before


@contextmanager
def _same_random_numbers(device: torch.device) -> Iterator[None]:
    """Leave every random generator as it was."""
    indices = [] if device.index is None or device.type == "cpu" else [device.index]
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(indices, device_type=device.type if indices else "cuda"):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


@contextmanager
def _restored(model: torch.nn.Module) -> Iterator[None]:
    """Let a model compute, without dropout, on copies of its tensors; then put back its tensors and attributes."""
    noted = _Noted()
    for module in model.modules():
        noted.add_container(vars(module))
    for module in model.modules():
        noted.look_into(vars(module))
    originals = [(tensor, tensor.data) for tensor in noted.tensors.values()]
    try:
        for module in model.modules():
            if isinstance(module, torch.nn.modules.dropout._DropoutNd):
                module.training = False  # which elements it drops depends on their order in memory
        for tensor, original in originals:
            tensor.data = original.clone()
        yield
    finally:
        for tensor, original in originals:
            tensor.data = original
        noted.put_back()


class _Noted:
    """Tensors and containers that modules hold, with what was in the containers.

    Objects that a module holds, such as its loss, count as containers of their attributes; what they hold doesn't.
    """

    def __init__(self) -> None:
        self.tensors: dict[int, torch.Tensor] = {}
        self._contents: dict[int, tuple[Any, list[Any]]] = {}

    def add_container(self, container: Any) -> bool:
        """Note what is in a container; return whether it is a new one."""
        new = id(container) not in self._contents
        if new:
            items = container.items() if isinstance(container, dict) else container
            self._contents[id(container)] = container, list(items)
        return new

    def look_into(self, container: Any, within_object: bool = False) -> None:
        """Note what the values of a noted container have in them."""
        for value in list(container.values() if isinstance(container, dict) else container):
            if isinstance(value, torch.Tensor):
                if type(value) in (torch.Tensor, torch.nn.Parameter) and not value.is_inference() and value.is_leaf:
                    self.tensors[id(value)] = value
            elif type(value) in (list, dict, set, deque, OrderedDict, defaultdict):
                if self.add_container(value):
                    self.look_into(value, within_object)
            elif _has_attributes(value) and not within_object and self.add_container(vars(value)):
                self.look_into(vars(value), within_object=True)

    def put_back(self) -> None:
        """Let each container have what it had."""
        for container, items in self._contents.values():
            container.clear()
            container.extend(items) if isinstance(container, (list, deque)) else container.update(items)


def _has_attributes(value: Any) -> bool:
    return isinstance(getattr(value, "__dict__", None), dict) and not (
        isinstance(value, type) or inspect.isroutine(value) or inspect.ismodule(value)
    )


# Optimizers


def _try_optimizer(trainer: Any, optimizer: torch.optim.Optimizer) -> None:
    """Go back to NCHW where an optimizer can't work in channels_last, else let its state follow the weights' layout."""
    layout = _of(trainer)
    if not layout.wanted or optimizer in layout.optimizers:
        return
    layout.optimizers.add(optimizer)
    if reason := _refusal(optimizer):
        _train_in_nchw(trainer, reason)
        return
    optimizer.register_load_state_dict_post_hook(_follow_the_weights)
    optimizer.register_state_dict_post_hook(_in_nchw)


def _refusal(optimizer: torch.optim.Optimizer) -> str:
    """Return why an optimizer can't work in channels_last, "" where it does to those weights what it does to others."""
    kind = type(optimizer)
    if kind.__module__.partition(".")[0] == "ultralytics":
        if _supports_channels_last(kind):
            return ""
        return f"this Ultralytics' {kind.__name__} can't work in channels_last. Later releases can."
    if kind.__module__.startswith("torch.optim.") and kind.__name__ != "LBFGS":
        return ""
    try:
        plain, ours = (_steps(optimizer, f) for f in (torch.contiguous_format, torch.channels_last))
    except Exception as error:  # of whatever type users' code raises
        if "DEVICE_LOST" in str(error):
            raise
        return f"the optimizer {kind.__name__} can't be tried in channels_last: {error}"
    if (plain - ours).norm() <= LIMIT * plain.norm():
        return ""
    return f"the optimizer {kind.__name__} makes other steps in channels_last."


def _supports_channels_last(kind: type) -> bool:
    """Whether an optimizer of Ultralytics' supports it: MuSGD didn't before 8.4.140 or so."""
    update = getattr(importlib.import_module(kind.__module__), "muon_update", None)
    if update is None:
        return True
    gradient = torch.rand(4, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    plain = update(gradient.clone(), torch.zeros_like(gradient))
    try:
        ours = update(*(x.to(memory_format=torch.channels_last) for x in (gradient, torch.zeros_like(gradient))))
    except RuntimeError:
        return False
    return torch.allclose(plain.view_as(gradient), ours.reshape(gradient.shape), atol=0.05)


def _steps(optimizer: torch.optim.Optimizer, memory_format: torch.memory_format) -> torch.Tensor:
    """Return what two steps of an optimizer change in small weights that stand for its own."""
    generator = torch.Generator().manual_seed(0)
    owned = [p for group in optimizer.param_groups for p in group["params"]]
    twin = object.__new__(type(optimizer))
    weights = {id(p): _small(p, generator, memory_format) for p in owned}
    memo = {id(optimizer): twin, **weights}
    attributes = {
        name: value for name, value in vars(optimizer).items() if name not in ("state", "step") and "_hooks" not in name
    }
    vars(twin).update(copy.deepcopy(attributes, memo))
    twin.state = defaultdict(dict)
    for name in vars(optimizer):
        if "_hooks" in name:
            setattr(twin, name, OrderedDict())
    before = [weight.detach().clone() for weight in weights.values()]
    with _same_random_numbers(owned[0].device):
        for _ in range(2):
            for weight in weights.values():
                weight.grad = torch.empty_like(weight).copy_(torch.randn(weight.shape, generator=generator))
            twin.step()
    changes = [(a.detach() - b).flatten().float() for a, b in zip(weights.values(), before, strict=True)]
    return torch.cat([change.cpu() for change in changes])


def _small(
    parameter: torch.Tensor, generator: torch.Generator, memory_format: torch.memory_format
) -> torch.nn.Parameter:
    shape = [min(size, 4) for size in parameter.shape]
    values = (torch.rand(shape, generator=generator) * 0.1).to(parameter)
    if values.dim() == 4:
        values = values.contiguous(memory_format=memory_format)
    return torch.nn.Parameter(values, parameter.requires_grad)

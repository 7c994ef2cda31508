"""Avoid host-device syncs in the loss: cached anchors and constants, labels that the host knows."""

from __future__ import annotations

import builtins
import functools
import logging
from collections import OrderedDict
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from ...batches import changes_batches
from ...hookspecs import hookimpl
from ...options import Option
from ...patches import Patch, like, patch, stand_in
from ...run import Run, StashKey
from .host_labels import IN_LOSS, keep, known, loss
from .mask_overlaps import pair_overlaps
from .one_by_one import crop_mask, rotated_targets

__all__ = ["LabelCounts"]

_LOGGER = logging.getLogger("ultralytics")

FEWER_SYNCS = Option(
    "fewer_syncs",
    True,
    "anchors and constants are kept and labels counted on the host, instead of asking the GPU in every step",
    measured=(False,),
)
_SHAPES_KEPT = 32  # multi_scale meets some 20 image sizes
_CONSTANTS_KEPT = 128


@hookimpl
def xpu_options() -> list[Option[bool]]:
    return [FEWER_SYNCS]


@dataclass(frozen=True)
class LabelCounts:
    """What the host knows of a tensor that says which image each label belongs to.

    Attributes:
        total: How many labels there are.
        max_per_image: How many the image with the most has.
        images: How many images the batch has.
        version: That of the tensor's contents, which changes with them.
        address: Of its memory, which `tensor.data = other` changes without a new version.
    """

    total: int
    max_per_image: int
    images: int
    version: int = 0
    address: int = field(default=0, compare=False)


_OFF = StashKey[bool]()
"""Whether labels aren't counted on the host."""
_KEEPS = StashKey[bool]()
"""Whether labels stay on the host as well, for losses to ask of."""
_COUNTS = StashKey[WeakTensorKeyDictionary]()
"""The counts of the labels in a tensor on the device: in a batch's `batch_idx`, and in what a loss makes of it."""


@hookimpl(wrapper=True)
def xpu_move_batch(trainer: Any, batch: dict[str, Any]) -> Generator[None, Any, Any]:
    """Count a batch's labels while they are on the host, and keep them there."""
    run: Run = trainer.xpu
    if not run.options[FEWER_SYNCS] or run.stash.get(_OFF, False):
        return (yield)
    index = batch.get("batch_idx")
    counts = _count(index, batch.get("img"))
    labels = dict(batch) if isinstance(batch, dict) else {}
    moved = yield
    if run.stash.get(_KEEPS, False):
        keep(run, labels, moved)
    there = moved.get("batch_idx") if isinstance(moved, dict) else None
    if counts is not None and isinstance(there, torch.Tensor) and there is not index:
        _remember(run, there, counts)
    return moved


def _others_move(run: Run) -> bool:
    """Whether somebody else's plugin moves batches, and may change them on the way."""
    names = (str(implementation.function.__module__) for implementation in run.hooks.implementations("xpu_move_batch"))
    return not all(name.startswith(f"{__name__.partition('.')[0]}.policies.") for name in names)


def _count(index: Any, images: Any) -> LabelCounts | None:
    """Count the labels of each image; None where it isn't certain that Ultralytics would count the same.

    Its releases differ in what they make of labels that aren't in the images' order, or of no image.
    """
    if not isinstance(images, torch.Tensor) or not isinstance(index, torch.Tensor):
        return None
    if index.device.type != "cpu" or index.layout is not torch.strided or index.is_complex() or index.numel() == 0:
        return None
    numbers = index.detach().reshape(-1).long()
    if numbers[0] < 0 or numbers[-1] >= len(images) or bool((numbers.diff() < 0).any()):
        return None
    return LabelCounts(len(numbers), int(numbers.bincount().max()), len(images))


def _remember(run: Run, tensor: torch.Tensor, counts: LabelCounts) -> None:
    if tensor.is_inference():  # its changes couldn't be told
        return
    if _COUNTS not in run.stash:
        run.stash[_COUNTS] = WeakTensorKeyDictionary()
    run.stash[_COUNTS][tensor] = replace(counts, version=tensor._version, address=tensor.data_ptr())


def _counts_of(run: Run, tensor: torch.Tensor) -> LabelCounts | None:
    """Return what is known of a tensor, if its contents are what they were; None where nothing is."""
    known: LabelCounts | None = None
    if _COUNTS in run.stash:
        known = run.stash[_COUNTS].get(tensor)  # type: ignore[no-untyped-call]
    if known is None or (known.version, known.address) != (tensor._version, tensor.data_ptr()):
        return None
    return known


@patch(
    "ultralytics.utils.tal:make_anchors",
    why="it makes the same anchors anew in every step, with a copy to the device and a sync for each feature map",
)
def make_anchors(
    run: Run, original: Callable[..., Any], feats: Any, strides: Any, grid_cell_offset: float = 0.5
) -> Any:
    """Return the anchors of these feature maps' shapes, computed once, and anew where somebody changed them."""
    if not isinstance(feats, list) or feats[0].device.type != "xpu" or type(strides) is not torch.Tensor:
        return original(feats, strides, grid_cell_offset)
    if _ANCHORS not in run.stash:
        run.stash[_ANCHORS] = OrderedDict()
    kept = run.stash[_ANCHORS]
    version = None if strides.is_inference() else strides._version
    key = (tuple(f.shape[2:] for f in feats), feats[0].dtype, feats[0].device, grid_cell_offset, id(strides), version)
    found = kept.get(key)
    if found is None or found[0] is not strides or any(tensor._version != known for tensor, known in found[1]):
        with torch.inference_mode(False):  # a validation may come first, and its tensors can't be trained with
            made = original(feats, strides, grid_cell_offset)
        found = kept[key] = strides, [(tensor, tensor._version) for tensor in made]
        if len(kept) > _SHAPES_KEPT:
            kept.popitem(last=False)
    return tuple(tensor for tensor, _ in found[1])


_ANCHORS = StashKey["OrderedDict[Any, tuple[Any, list[tuple[torch.Tensor, int]]]]"]()


@patch(
    "ultralytics.utils.loss:v8DetectionLoss.preprocess",
    why="it counts the labels on the device, with syncs, though the host knew the counts",
)
def preprocess(
    run: Run,
    original: Callable[..., Any],
    self: Any,
    targets: torch.Tensor,
    batch_size: int,
    scale_tensor: torch.Tensor,
) -> torch.Tensor:
    """Pad targets to as many an image as the host counted, rather than count them on the device."""
    known = _counts_of(run, targets)
    if known is None or known.images != batch_size:
        return original(self, targets, batch_size, scale_tensor)  # type: ignore[no-any-return]
    from ultralytics.utils.ops import xywh2xyxy

    total, device = known.total, targets.device
    image = targets[:, 0].long()
    out = torch.zeros(batch_size, known.max_per_image, targets.shape[1] - 1, device=device)
    ends = torch.zeros(batch_size, dtype=torch.long, device=device).scatter_add_(0, image, torch.ones_like(image))
    ends = ends.cumsum(0)
    within = torch.arange(total, device=device) - torch.cat((ends.new_zeros(1), ends[:-1]))[image]
    out[image, within] = targets[:, 1:]
    out[..., 1:5] = xywh2xyxy(out[..., 1:5].mul_(scale_tensor))
    return out


@stand_in(
    "ultralytics.utils.loss:torch",
    why="it copies the image's size and other small constants to the device in every step, with a sync for each; and "
    "what the host knows of the labels would be lost where they are joined",
    everywhere=False,
)
def torch_of_losses(run: Run, original: Any) -> Any:
    """Return a stand-in for the module `torch`, of which `tensor` copies the same few numbers to the device once.

    In Ultralytics' own losses the host goes on knowing them, as a loss reads the image's size back.
    Its `cat` notes that what begins with the column of a batch's image indices has the counts of that batch.
    """
    kept: OrderedDict[Any, torch.Tensor] = OrderedDict()

    @functools.wraps(original.tensor)
    def tensor(data: Any, *args: Any, **kwargs: Any) -> Any:
        """Return a tensor of its own, made from the one on the device where these numbers are there."""
        numbers = isinstance(data, (list, tuple)) and all(type(n) in (int, float) for n in data)
        device = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
        if not numbers or args or device is None or device.type != "xpu" or kwargs.keys() - {"device", "dtype"}:
            return original.tensor(data, *args, **kwargs)
        index = torch.xpu.current_device() if device.index is None else device.index
        dtype = kwargs.get("dtype") or (None, torch.get_default_dtype())
        key = (tuple(map(repr, data)), dtype, index)  # -0.0 == 0.0, and 1 == 1.0
        if key not in kept:
            with torch.inference_mode(False):
                kept[key] = original.tensor(data, **kwargs)
            if len(kept) > _CONSTANTS_KEPT:
                kept.popitem(last=False)
        made = kept[key].clone()
        if not run.stash.get(IN_LOSS, False):
            return made
        return known(made, original.tensor(data, dtype=made.dtype, device="cpu"))

    @functools.wraps(original.cat)
    def cat(tensors: Any, *args: Any, **kwargs: Any) -> Any:
        """Join tensors; along the columns the first one is the image index of each label."""
        joined = original.cat(tensors, *args, **kwargs)
        if isinstance(tensors, tuple) and args == (1,) and not kwargs and isinstance(joined, torch.Tensor):
            first = tensors[0]
            index = first if first._base is None else first._base  # usually `batch["batch_idx"].view(-1, 1)`
            known = _counts_of(run, index)
            if known is not None and _is_column(first, index) and joined.dtype in (torch.float32, torch.float64):
                _remember(run, joined, known)
        return joined

    return like(original, tensor=tensor, cat=cat)


def _is_column(first: torch.Tensor, index: torch.Tensor) -> bool:
    """Whether a tensor has the contents of another one that it is a view of, in a column."""
    return (
        first.shape == (index.numel(), 1)
        and first.dtype is index.dtype
        and first.data_ptr() == index.data_ptr()
        and first.is_contiguous()
        and index.is_contiguous()
    )


@stand_in(
    "ultralytics.utils.loss:max",
    why="it asks the device, with a sync, whether the sum of targets is more than 1; that of OBB in 8.4.190, too",
    needed=lambda original: original is builtins.max,
)
def max_of_losses(run: Run, original: Callable[..., Any]) -> Callable[..., Any]:
    """Return a stand-in for `max`, of which that of a number on the device and 1 stays there."""

    @functools.wraps(original)
    def at_least(*args: Any, **kwargs: Any) -> Any:
        if not kwargs and len(args) == 2 and type(args[0]) is torch.Tensor and type(args[1]) is int:
            number, least = args
            if number.device.type == "xpu" and number.dim() == 0 and number.is_floating_point():
                return number.clamp(min=least)
        return original(*args, **kwargs)

    return at_least


@hookimpl
def xpu_patches(trainer: Any) -> list[Patch]:
    """Keep anchors and constants, and pad targets by the host's counts."""
    run: Run = trainer.xpu
    if not run.options[FEWER_SYNCS]:
        return []
    if (owner := changes_batches(trainer)) and not run.options.is_given(FEWER_SYNCS):
        run.stash[_OFF] = True
        _LOGGER.info(
            f"XPU: labels are counted on the GPU, with a sync or two a step, because {owner} "
            f"may change them. If it leaves batch_idx as it is, or replaces it, set {FEWER_SYNCS.key}=True."
        )
        return [make_anchors, torch_of_losses, max_of_losses, *_WITHOUT_COUNTS]
    run.stash[_KEEPS] = not _others_move(run)
    return [loss, make_anchors, preprocess, torch_of_losses, max_of_losses, *_WITHOUT_COUNTS]


_WITHOUT_COUNTS = rotated_targets, crop_mask, pair_overlaps

"""A plugin of yolo-xpu-trainer: a trainer for cameras that see no colour, and fp32 where there is room for it."""

from yolo_xpu_trainer import DeviceInfo, Precision, hookimpl

ROOM = 8 * 2**30


@hookimpl
def xpu_precision(device: DeviceInfo, requested: bool | str) -> Precision | None:
    """Compute in fp32 on a card of 8 GiB or more, unless the user names a precision or switches `amp` off."""
    if requested is True and not device.integrated and device.total_memory >= ROOM:
        return Precision("fp32", "the card has room for it")
    return None  # the next plugin decides; in the end, the built-in policy


@hookimpl
def xpu_trainers(upstream: type) -> dict[str, type]:
    """Register `trainer="grey"` for detection."""
    if upstream.__name__ != "DetectionTrainer":
        return {}
    from .trainer import GreyTrainer  # imports Ultralytics, which `yolo-xpu plugins` can do without

    return {"grey": GreyTrainer}

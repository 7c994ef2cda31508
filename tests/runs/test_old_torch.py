"""PyTorch 2.5 is enough: what later releases brought is hidden, and runs on an XPU go on without it.

The installed PyTorch is made to look like the oldest for which this package is said to work, for every module but
PyTorch's own. `python -m tests.matrix --floor` runs on that release itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from ..conftest import TrainingData

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Later:
    """What a release after 2.5 brought.

    Attributes:
        names: As a user writes them.
        since: The first release that has them, or by the date of the change can have them.
        source: Where that can be read.
    """

    names: str
    since: str
    source: str


LATER = [
    Later("torch.accelerator", "2.6", "the documentation of 2.6; pytorch#132204"),
    Later("torch.xpu.get_arch_list torch.xpu.get_gencode_flags", "2.6", "the documentation of torch.xpu in 2.6"),
    Later("torch.xpu.mem_get_info", "2.6", "pytorch#141230, accelerate#3275"),
    Later("torch.version.xpu", "2.7", "huggingface/kernels#163"),
    Later("torch.xpu.get_stream_from_external", "2.7", "intel/torch-xpu-ops#849"),
    Later("torch.distributed.is_xccl_available", "2.6", "the wheels of 2.5.1 and 2.6.0"),
    Later("torch.xpu.is_tf32_supported torch.xpu.can_device_access_peer", "2.10", "the wheels of 2.9.0 and 2.10.0"),
    Later("torch.xpu.get_per_process_memory_fraction", "2.10", "pytorch#165511"),
    Later("torch.xpu.set_per_process_memory_fraction", "2.10", "pytorch#165511"),
    Later("torch.xpu.memory_snapshot torch.xpu.MemPool torch.xpu.use_mem_pool", "2.11", "pytorch#169559"),
    Later(
        "torch.xpu.XPUPluggableAllocator torch.xpu.change_current_allocator", "2.10", "the documentation of torch.xpu"
    ),
    Later("torch.xpu.XPUGraph torch.xpu.graph torch.xpu.graphs", "2.11", "pytorch#173042, pytorch#174046"),
    Later("torch.xpu.graph_pool_handle torch.xpu.is_current_stream_capturing", "2.11", "pytorch#174046"),
    Later("torch.xpu.make_graphed_callables", "2.11", "pytorch#173042"),
    Later("torch.xpu.utilization torch.xpu.temperature torch.xpu.power_draw", "2.14", "pytorch#193756"),
    Later("torch.xpu.clock_rate torch.xpu.memory_usage torch.xpu.device_memory_used", "2.14", "pytorch#193756"),
]

# Properties of a device, likewise.
LATER_PROPERTIES = [
    Later("architecture", "2.6", "pytorch#138186"),
    Later("uuid device_id", "2.9", "pytorch#161392"),
    Later("local_mem_size memory_clock_rate memory_bus_width", "2.11", "pytorch#171967"),
    Later("last_level_cache_size is_integrated_gpu", "2.13", "pytorch#184499, pytorch#182624"),
]


def later_than(release: str, found: list[Later]) -> list[str]:
    """Return the names that a release hasn't got."""

    def numbers(text: str) -> tuple[int, ...]:
        return tuple(map(int, text.split(".")))

    return [name for later in found if numbers(later.since) > numbers(release) for name in later.names.split()]


HIDE = """
import sys
from importlib import import_module
from types import ModuleType

import torch  # and with it, by XPU_SIMULATOR, the simulated device
from torch.torch_version import TorchVersion
from torch.utils.data import dataloader
from xpu_simulator import torch_xpu

INSIDE = ("torch", "torchvision", "xpu_simulator", "inspect", "importlib")
hidden = {}
asked = set()


def owner_of(name):
    path, _, last = name.rpartition(".")
    return import_module(path), last


class Old(ModuleType):
    # a module whose later names only PyTorch itself sees

    def __getattribute__(self, name):
        get = ModuleType.__getattribute__
        if (path := f"{get(self, '__name__')}.{name}") in hidden:
            caller = sys._getframe(1).f_globals.get("__name__", "").partition(".")[0]
            if caller not in INSIDE:
                asked.add(path)
                raise AttributeError(f"module {get(self, '__name__')!r} has no attribute {name!r}")
        return get(self, name)


for name in LATER:
    owner, last = owner_of(name)
    if not hasattr(owner, last):
        sys.exit(f"{name} is nowhere in PyTorch {torch.__version__}")
    hidden[name] = getattr(owner, last)
    owner.__class__ = Old

# 2.5's takes no argument, and is true without an XPU too (pytorch#152317, in 2.8).
torch.xpu.is_bf16_supported = lambda: True

for name in LATER_PROPERTIES:
    if name not in dir(torch.xpu.get_device_properties(0)):
        sys.exit(f"{name} is no property")

class OldProperties(torch_xpu.DeviceProperties):
    def __getattribute__(self, name):
        if name in LATER_PROPERTIES:
            raise AttributeError(f"'_XpuDeviceProperties' object has no attribute {name!r}")
        return object.__getattribute__(self, name)

real_properties = torch.xpu.get_device_properties

def get_device_properties(device=None):
    properties = real_properties(device)
    properties.__class__ = OldProperties
    return properties

torch.xpu.get_device_properties = get_device_properties

# Until 2.6 a loader pinned for CUDA unless it was told a device (pytorch#131858, in 2.7).
real_init = dataloader._BaseDataLoaderIter.__init__

def init(self, loader):
    real_init(self, loader)
    self._pin_memory = loader.pin_memory and bool(loader.pin_memory_device)

dataloader._BaseDataLoaderIter.__init__ = init

torch.__version__ = TorchVersion(f"{RELEASE}.1+xpu")
torch.version.__version__ = str(torch.__version__)
"""

RUN = """
import json
import math
from ultralytics import YOLO

def look(trainer):
    pinned.append(next(iter(trainer.train_loader))["img"].is_pinned())

if __name__ == "__main__":
    pinned = []
    given = {"data": DATA, "imgsz": 32, "workers": 0, "plots": False}
    model = YOLO("yolo11n.yaml")
    model.add_callback("on_train_start", look)
    model.train(epochs=1, batch=4, save_dir="run", **given)
    metrics = YOLO("run/weights/best.pt").val(device="xpu:0", save_dir="val", **given)
    (result,) = YOLO("run/weights/best.pt").predict(IMAGE, imgsz=32, device=0, conf=0.0001)
    saved = torch.load("run/weights/last.pt", map_location="cpu", weights_only=False)["xpu_trainer"]
    print("seen:", json.dumps({
        "pinned": pinned,
        "trainer": type(model.trainer).__name__,
        "trained": str(model.trainer.device),
        "predicted": str(result.boxes.data.device),
        "precision": saved["precision"],
        "finite": all(map(math.isfinite, [*map(float, model.trainer.metrics.values()), metrics.box.map])),
        "asked": sorted(asked),
    }))
"""


@pytest.mark.needs("torch.xpu.utilization")  # what is hidden has to be there
@pytest.mark.parametrize(
    ("release", "profile", "precision"),
    [("2.5", "arc-b580", "bf16"), ("2.5", "core-ultra-155h", "fp16"), ("2.6", "arc-a770", "bf16")],
)
def test_a_run_needs_nothing_later(
    release: str, profile: str, precision: str, data: TrainingData, tmp_path: Path
) -> None:
    """An epoch, a validation and a prediction."""
    known = {
        "RELEASE": release,
        "LATER": later_than(release, LATER),
        "LATER_PROPERTIES": later_than(release, LATER_PROPERTIES),
        "DATA": data("detect"),
        "IMAGE": str(Path(data("detect")).parent / "images" / "val" / "0.png"),
    }
    script = tmp_path / "script.py"
    script.write_text("".join(f"{name} = {value!r}\n" for name, value in known.items()) + HIDE + RUN)
    environment = {**os.environ, "XPU_SIMULATOR": profile}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("seen: ")]
    seen = json.loads(line.removeprefix("seen: "))
    assert seen["trainer"] == "XPUDetectionTrainer"
    assert (seen["trained"], seen["predicted"]) == ("xpu:0", "xpu:0")
    assert seen["precision"] == precision
    assert seen["pinned"] == [True]
    assert seen["finite"]
    assert "isn't where it was" not in done.stderr + done.stdout  # what PyTorch hadn't yet hasn't moved

"""`yolo-xpu doctor` on machines that are broken in one way each: the first problem, and what fixes it."""

from __future__ import annotations

import argparse
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from yolo_xpu_trainer.commands import doctor
from yolo_xpu_trainer.commands.doctor import render, report, runner
from yolo_xpu_trainer.commands.doctor.runner import Result
from yolo_xpu_trainer.diagnosis import Verdict, gpus
from yolo_xpu_trainer.diagnosis.children import CrashedError

from ..machines import GIB, HUNG, SEGFAULT, Setup, device, devices

RECIPE = "pip uninstall -y torch.*pip cache purge.*pip install torch torchvision --index-url"
WHEELS = "pip uninstall -y torch.*pip install torch torchvision --index-url"
DRIVER = "add-apt-repository -y ppa:kobuk-team.*apt install libze1 libze-intel-gpu1 intel-ocloc"
NO_FILE = "cannot open shared object file: No such file or directory"


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(tmp_path)


def examine(setup: Setup) -> list[Result]:
    return list(runner.examine(setup.machine(), runner.CHECKS))


def first_problem(results: list[Result]) -> Result:
    return next(result for result in results if result.verdict is Verdict.PROBLEM)


def remedy(result: Result) -> str:
    return " ".join([*result.diagnosis.fix, result.diagnosis.advice])


def test_a_healthy_machine_has_nothing_to_say(setup: Setup) -> None:
    results = examine(setup)
    assert {r.check.name: r.diagnosis for r in results if r.verdict in (Verdict.PROBLEM, Verdict.WARNING)} == {}
    assert runner.exit_status(results) == 0
    assert sum(r.verdict is Verdict.OK for r in results) > 25


def refused(setup: Setup, **groups: Any) -> None:
    setup.no_xpu()
    setup.more["can_open"] = lambda path: False
    gid = (setup.root / "dev/dri/renderD128").stat().st_gid
    members = groups.get("members", "")
    setup.file("/etc/group", f"root:x:77777:\nrender:x:{gid}:{members}\n")


def container(setup: Setup) -> None:
    setup.no_xpu()
    setup.file("/.dockerenv")


def nothing_on_the_bus(setup: Setup) -> None:
    setup.no_xpu()
    setup.no_gpu()


def no_kernel_driver(setup: Setup, driver: str = "") -> None:
    setup.no_xpu()
    setup.gpu("e20b", driver)
    setup.remove("/dev/dri/renderD128")


def without(setup: Setup, *libraries: str) -> None:
    setup.no_xpu()
    setup.remove(*(f"/usr/lib/x86_64-linux-gnu/{name}" for name in libraries))


def masked(setup: Setup, **environ: str) -> None:
    setup.no_xpu()
    setup.environ |= environ


def uhd_beside(setup: Setup, driver: str = "") -> None:
    """Have a UHD 770 with its driver, beside the B580."""
    no_kernel_driver(setup, driver)
    setup.gpu("a780", "i915", address="0000:00:02.0")
    setup.file("/dev/dri/renderD128")


def vision(setup: Setup, version: str) -> None:
    """Install a torchvision whose metadata have no label."""
    setup.package("torchvision", version.partition("+")[0])
    (setup.site / "torchvision").mkdir()
    (setup.site / "torchvision" / "version.py").write_text(f"__version__ = {version!r}\n")


def in_conda(setup: Setup, *packages: str, symbols: int = 33, needed: int = 33) -> None:
    """Have conda's Python, with packages of conda's, and the C++ symbols that its library has and the driver needs."""
    prefix = setup.root / "opt/conda/envs/yolo"
    for name in ("bin/python", *(f"conda-meta/{package}.json" for package in packages or ("python-3.12.3-0",))):
        (prefix / name).parent.mkdir(parents=True, exist_ok=True)
        (prefix / name).touch()
    (prefix / "lib").mkdir(exist_ok=True)
    (prefix / "lib/libstdc++.so.6").write_bytes(b"".join(b"GLIBCXX_3.4.%d\0" % n for n in range(1, symbols + 1)))
    loader = (setup.root / "usr/lib/x86_64-linux-gnu/libze_loader.so.1").resolve()
    loader.write_bytes(b"\0GLIBCXX_3.4\0GLIBCXX_3.4.%d\0" % needed)
    setup.more["executable"] = str(prefix / "bin/python")


def owned_by(setup: Setup, group: str) -> None:
    refused(setup)
    gid = (setup.root / "dev/dri/renderD128").stat().st_gid
    setup.file("/etc/group", f"{group}:x:{gid}:\n")


def beside_nvidia(setup: Setup) -> None:
    """Have Intel's device file refused, and one of another vendor's open."""
    refused(setup)
    setup.more["can_open"] = lambda path: path.name == "renderD129"
    for number, vendor in ((128, "0x8086"), (129, "0x10de")):
        setup.file(f"/dev/dri/renderD{number}")
        setup.file(f"/sys/class/drm/renderD{number}/device/vendor", vendor)


# name: how the machine is broken, the check that must be the first problem, what it says, what fixes it
PROBLEMS: dict[str, tuple[Callable[[Setup], Any], str, str, str]] = {
    "a CPU build of PyTorch": (lambda s: s.torch("2.14.1+cpu"), "torch-build", "CPU build", WHEELS),
    "a CUDA build of PyTorch": (lambda s: s.torch("2.14.1", cuda="13.0"), "torch-build", "CUDA build", WHEELS),
    "no PyTorch": (
        lambda s: [(s.site / "torch/version.py").unlink(), (s.site / "torch").rmdir(), s.uninstall("torch")],
        "torch-build",
        "isn't installed",
        WHEELS,
    ),
    "PyTorch without most of its files": (
        lambda s: [
            (s.site / "torch/version.py").write_text(""),
            s.uninstall("torch"),
            s.import_fails("ImportError: x"),
        ],
        "torch-build",
        "incomplete",
        RECIPE,
    ),
    "PyTorch 2.4": (lambda s: s.torch("2.4.1+xpu"), "torch-release", "from 2.5 on", WHEELS),
    "PyTorch 2.5 without oneAPI": (lambda s: s.torch("2.5.1+xpu"), "torch-release", "oneAPI", WHEELS),
    "a library of the XPU build is missing": (
        lambda s: s.torch("2.14.1+xpu", ["intel-sycl-rt==2026.1.1; platform_system == 'Linux'", "numpy"]),
        "torch-dependencies",
        "intel-sycl-rt 2026.1.1 is missing",
        RECIPE,
    ),
    "one PyTorch installed over another": (
        lambda s: s.package("torch", "2.12.0+xpu"),
        "torch-dependencies",
        "installed over another",
        RECIPE,
    ),
    "torchvision of another release": (
        lambda s: s.package("torchvision", "0.24.0+xpu"),
        "torchvision",
        "doesn't fit",
        r'"torch==2.14.1\+xpu" "torchvision>=0.29" --index-url',
    ),
    "a later torchvision than an older PyTorch takes": (
        lambda s: [s.torch("2.13.0+xpu", xpu="20250300"), s.package("torchvision", "0.29.1+xpu")],
        "torchvision",
        "torchvision 0.29.1[+]xpu doesn't fit PyTorch 2.13.0[+]xpu, which needs 0.28",
        r'"torch==2.13.0\+xpu" "torchvision==0.28.\*" --index-url',
    ),
    "torchvision of another build": (
        lambda s: s.package("torchvision", "0.29.1+cu130"),
        "torchvision",
        "another PyTorch",
        r"torchvision>=0.29",
    ),
    "a torchvision whose files alone tell that it is CUDA's": (
        lambda s: vision(s, "0.29.1+cu130"),
        "torchvision",
        r"0.29.1\+cu130 is built for another PyTorch",
        r"torchvision>=0.29",
    ),
    "a torchvision whose operators can't be loaded": (
        lambda s: s.told.update(ultralytics="RuntimeError: operator torchvision::nms does not exist"),
        "ultralytics",
        "torchvision is built for another PyTorch",
        r"uninstall -y torchvision.*torchvision>=0.29",
    ),
    "no torchvision": (lambda s: s.uninstall("torchvision"), "torchvision", "isn't installed", "torchvision>=0.29"),
    "no GPU": (nothing_on_the_bus, "gpu", "no Intel GPU", "qualify"),
    "no kernel driver": (
        lambda s: [no_kernel_driver(s), s.remove("/sys/module/xe/version"), (s.root / "sys/module/xe").rmdir()],
        "kernel-driver",
        "xe isn't loaded",
        "modprobe xe.*kernel is too old",
    ),
    "a kernel older than the GPU": (
        lambda s: [no_kernel_driver(s), s.file("/etc/os-release", 'ID=ubuntu\nVERSION_ID="24.04"\n')],
        "kernel-driver",
        "doesn't know it",
        "linux-generic-hwe-24.04.*reboot.*newer kernel",
    ),
    "a card without a driver beside a processor's GPU that has one": (
        lambda s: [uhd_beside(s), s.file("/etc/os-release", 'ID=ubuntu\nVERSION_ID="24.04"\n')],
        "kernel-driver",
        "no kernel driver has Arc B",
        "linux-generic-hwe-24.04",
    ),
    "nomodeset": (
        lambda s: [no_kernel_driver(s), s.file("/proc/cmdline", "quiet nomodeset")],
        "kernel-driver",
        "nomodeset",
        "update-grub",
    ),
    "a GPU set aside for virtual machines": (
        lambda s: no_kernel_driver(s, "vfio-pci"),
        "kernel-driver",
        "vfio-pci",
        "vfio-pci.ids",
    ),
    "a driver without device files": (
        lambda s: [s.no_xpu(), s.remove("/dev/dri/renderD128")],
        "device-files",
        "no /dev/dri/renderD",
        "firmware",
    ),
    "a container without the GPU": (
        lambda s: [container(s), s.remove("/dev/dri/renderD128")],
        "device-files",
        "wasn't passed in",
        "--device /dev/dri --group-add",
    ),
    "a container of podman without the GPU": (
        lambda s: [s.no_xpu(), s.file("/run/.containerenv"), s.remove("/dev/dri/renderD128")],
        "device-files",
        "podman",
        "podman run .*--group-add keep-groups",
    ),
    "a container of Proxmox without the GPU": (
        lambda s: [s.no_xpu(), s.file("/proc/1/cgroup", "0::/lxc/101"), s.remove("/dev/dri/renderD128")],
        "device-files",
        "lxc",
        "^ ?On the host, give the container the device",
    ),
    "a container in WSL without the GPU": (
        lambda s: [s.in_wsl(), container(s), s.remove("/dev/dxg")],
        "kernel-driver",
        "container .docker. has no /dev/dxg",
        "docker run .*--device /dev/dxg -v /usr/lib/wsl:/usr/lib/wsl",
    ),
    "another vendor's device file that may be opened": (
        beside_nvidia,
        "permission",
        "may not open /dev/dri/renderD128",
        "usermod -aG render",
    ),
    "another vendor's device file alone": (
        lambda s: [
            s.no_xpu(),
            s.remove("/dev/dri/renderD128"),
            s.file("/dev/dri/renderD129"),
            s.file("/sys/class/drm/renderD129/device/vendor", "0x10de"),
        ],
        "device-files",
        "no /dev/dri/renderD",
        "firmware",
    ),
    "a device file that belongs to root": (
        lambda s: owned_by(s, "root"),
        "permission",
        "the group root",
        "^ ?A udev rule",
    ),
    "a device file whose group isn't mapped": (
        lambda s: owned_by(s, "nogroup"),
        "permission",
        "the group nogroup",
        "^ ?A udev rule.*LXC",
    ),
    "a container without the group": (
        lambda s: [container(s), refused(s)],
        "permission",
        "lacks the group",
        "--group-add",
    ),
    "a user who isn't in the group": (
        refused,
        "permission",
        "belongs to the group render",
        "usermod -aG render.*log out",
    ),
    "a user who joined the group in another session": (
        lambda s: refused(s, members="someone"),
        "permission",
        "session began before",
        "newgrp render",
    ),
    "no user-space driver": (
        lambda s: [
            s.no_xpu(),
            s.no_driver(),
            s.import_fails(f"ImportError: libze_loader.so.1: {NO_FILE}"),
        ],
        "user-driver",
        "libze_loader.so.1 and libze_intel_gpu.so.1 are",
        DRIVER,
    ),
    "Debian 12, whose packages have no driver": (
        lambda s: [s.no_xpu(), s.no_driver(), s.file("/etc/os-release", 'ID=debian\nVERSION_ID="12"\n')],
        "user-driver",
        "isn't installed",
        "^ ?By distribution: .* no package of it: take a newer one",
    ),
    "Debian 13 without the driver": (
        lambda s: [s.no_xpu(), s.no_driver(), s.file("/etc/os-release", 'ID=debian\nVERSION_ID="13"\n')],
        "user-driver",
        "isn't installed",
        "sudo apt install libze1 libze-intel-gpu1",
    ),
    "a loader without the driver": (
        lambda s: without(s, "libze_intel_gpu.so.1"),
        "user-driver",
        "libze_intel_gpu.so.1 is",
        DRIVER,
    ),
    "a loader that the driver is too old for": (
        lambda s: [s.library("libze_intel_gpu.so.1", "1.6.33578"), s.told.update(devices=SEGFAULT)],
        "driver-match",
        r"1.28.2 is newer than the driver 1.6.33578.*pytorch#179891",
        f"{DRIVER}.*both together",
    ),
    "a loader elsewhere than the system's": (
        lambda s: [s.no_xpu(), s.import_fails(f"ImportError: libze_loader.so.1: {NO_FILE}")],
        "torch-import",
        "part of Intel's GPU driver",
        DRIVER,
    ),
    "WSL without the GPU": (
        lambda s: [s.in_wsl(), s.no_xpu(), s.remove("/dev/dxg")],
        "kernel-driver",
        "no /dev/dxg",
        "wsl --update",
    ),
    "WSL without a driver": (
        lambda s: [s.in_wsl(), s.no_xpu(), s.no_driver()],
        "user-driver",
        "isn't installed",
        DRIVER,
    ),
    "Windows without Intel's driver": (
        lambda s: [s.on_windows(), s.no_xpu(), setattr(s, "windows", "Microsoft Basic Display Adapter|10.0")],
        "gpu",
        "knows no Intel GPU",
        "graphics driver: https",
    ),
    "Windows with a driver of 2022": (
        lambda s: [
            s.on_windows(),
            s.no_xpu(),
            setattr(s, "windows", "Intel(R) Arc(TM) A770 Graphics|31.0.101.3222"),
        ],
        "driver-version",
        "older than 31.0.101.3490",
        "Update it",
    ),
    "Windows: c10_xpu.dll": (
        lambda s: [
            s.on_windows(),
            s.import_fails(
                'OSError: [WinError 126] The specified module could not be found. Error loading "C:\\Users\\me\\'
                'site-packages\\torch\\lib\\c10_xpu.dll" or one of its dependencies.'
            ),
        ],
        "torch-import",
        "c10_xpu.dll",
        f"{RECIPE}.*driver and restart",
    ),
    "Windows: c10_xpu.dll under oneAPI": (
        lambda s: [
            s.on_windows(),
            s.environ.update(SETVARS_COMPLETED="1"),
            s.import_fails("OSError: [WinError 127] Error loading c10_xpu.dll or one of its dependencies."),
        ],
        "torch-import",
        "oneAPI's environment is active",
        "new shell",
    ),
    "oneAPI sourced on top": (
        lambda s: [
            s.environ.update(CMPLR_ROOT="/opt/intel/oneapi/compiler/2025.1"),
            s.import_fails(
                "ImportError: /opt/intel/oneapi/lib/libur_loader.so.0: version `LIBUR_LOADER_0.10' not found"
            ),
        ],
        "torch-import",
        "oneAPI's environment is active",
        "setvars",
    ),
    "a C++ library of conda's that is older than the driver": (
        lambda s: [s.no_xpu(), in_conda(s, symbols=29, needed=32)],
        "conda",
        r"ends at GLIBCXX_3.4.29, and the system's libze_loader.so.1 needs GLIBCXX_3.4.32.*pytorch#147226",
        'conda install -c conda-forge "libstdcxx-ng>=13.2".*system.s Python',
    ),
    "an import that a C++ library of conda's is too old for": (
        lambda s: [
            in_conda(s, symbols=29, needed=33),
            s.import_fails("ImportError: /opt/conda/lib/libstdc++.so.6: version `GLIBCXX_3.4.33' not found"),
        ],
        "conda",
        "sees no XPU",
        'conda install -c conda-forge "libstdcxx-ng>=14"',
    ),
    "conda's own PyTorch": (
        lambda s: [s.torch("2.5.1"), in_conda(s, "pytorch-2.5.1-py3.12_cpu_0", "torchvision-0.20.1-py312_cpu")],
        "conda",
        "conda installed pytorch 2.5.1, torchvision 0.20.1",
        "conda remove -y --force pytorch torchvision.*by pip",
    ),
    "a SYCL runtime that isn't found": (
        lambda s: s.import_fails(f"ImportError: libsycl.so.8: {NO_FILE}"),
        "torch-import",
        "libsycl.so.8",
        RECIPE,
    ),
    "a broken download": (
        lambda s: s.import_fails("ImportError: /a/b/libtorch_xpu.so: file too short"),
        "torch-import",
        "incomplete or broken.*libtorch_xpu.so: file too short",
        RECIPE,
    ),
    "an old distribution": (
        lambda s: s.import_fails("ImportError: /lib/libm.so.6: version `GLIBC_2.34' not found"),
        "torch-import",
        "C library is older",
        "newer distribution",
    ),
    "a library of the XPU build that isn't found, on Linux": (
        lambda s: s.import_fails(f"ImportError: libc10_xpu.so: {NO_FILE}"),
        "torch-import",
        "a library that PyTorch brings.*libc10_xpu.so",
        RECIPE,
    ),
    "a folder that is called after Intel's extension": (
        lambda s: s.import_fails("ImportError: /srv/ipex/torch/lib/libtorch_xpu.so: file too short"),
        "torch-import",
        "incomplete or broken",
        RECIPE,
    ),
    "a package that PyTorch needs is missing": (
        lambda s: s.import_fails("ModuleNotFoundError: No module named 'typing_extensions'"),
        "torch-import",
        "needs typing_extensions",
        "^python -m pip install typing_extensions ?$",
    ),
    "Intel's extension of another release": (
        lambda s: s.import_fails("ImportError: cannot import x from intel_extension_for_pytorch"),
        "torch-import",
        "Intel Extension",
        "uninstall -y intel-extension-for-pytorch",
    ),
    "this package half removed": (
        lambda s: s.import_fails("RuntimeError: Failed to load the backend extension: _yolo_xpu_trainer_autoload."),
        "torch-import",
        "yolo-xpu-trainer was only partly removed",
        "TORCH_DEVICE_BACKEND_AUTOLOAD=0.*uninstall -y yolo-xpu-trainer.*in a clone",
    ),
    "an import that hangs": (
        lambda s: s.told.update({"import": HUNG}),
        "torch-import",
        "within 30 s",
        "reboot.*--timeout",
    ),
    "an import that crashes": (lambda s: s.told.update({"import": SEGFAULT}), "torch-import", "SIGSEGV", RECIPE),
    "a mask of a device that isn't there": (
        lambda s: masked(s, ZE_AFFINITY_MASK="3"),
        "device-masks",
        "ZE_AFFINITY_MASK='3'",
        "unset ZE_AFFINITY_MASK",
    ),
    "a selector of another backend": (
        lambda s: masked(s, ONEAPI_DEVICE_SELECTOR="opencl:gpu"),
        "device-masks",
        "Level Zero only",
        "unset ONEAPI_DEVICE_SELECTOR.*level_zero:0",
    ),
    "devices that hang": (lambda s: s.told.update(devices=HUNG), "devices", "the driver hangs", "reboot"),
    "devices that can't be initialized": (
        lambda s: s.told.update(devices="RuntimeError: Native API failed. UR_RESULT_ERROR_UNINITIALIZED"),
        "devices",
        "UNINITIALIZED",
        DRIVER,
    ),
    "a driver and a PyTorch that miss elements": (
        lambda s: [
            s.torch("2.13.0+xpu"),
            s.told.update(devices=devices(device(driver="1.14.37020+3"))),
        ],
        "driver-version",
        "nonzero was seen to miss",
        "26.22",
    ),
    "wrong results": (
        lambda s: s.told.update(
            numerics=[s.told["numerics"][0] | {"compared": 9, "fatal": [["topk differs", "Another.", ""]]}]
        ),
        "numerics",
        "computes wrongly",
        "--upgrade",
    ),
    "a device that is lost in a comparison": (
        lambda s: s.told.update(numerics=SEGFAULT),
        "numerics",
        "SIGSEGV",
        "doctor --numerics",
    ),
    "a package that this one needs is missing": (
        lambda s: s.told.update(plugins="ModuleNotFoundError: No module named 'wrapt'"),
        "plugins",
        "needs wrapt, which is missing",
        "^python -m pip install wrapt ?$",
    ),
    "no Ultralytics": (
        lambda s: s.uninstall("ultralytics"),
        "ultralytics",
        "isn't installed",
        "pip install ultralytics",
    ),
    "an old Ultralytics": (lambda s: s.package("ultralytics", "8.2.103"), "ultralytics", "8.3.0 or later", "--no-deps"),
    "an Ultralytics that can't be imported": (
        lambda s: s.told.update(ultralytics="ImportError: cannot import name 'YOLO' from 'ultralytics'"),
        "ultralytics",
        "cannot import name 'YOLO'",
        "--force-reinstall --no-deps ultralytics",
    ),
    "a package that Ultralytics needs is missing": (
        lambda s: s.told.update(ultralytics="ModuleNotFoundError: No module named 'cv2'"),
        "ultralytics",
        "needs cv2, which is missing",
        "^python -m pip install ultralytics ?$",
    ),
    "an Ubuntu without a desktop": (
        lambda s: s.told.update(ultralytics=f"ImportError: libGL.so.1: {NO_FILE}"),
        "ultralytics",
        "OpenCV needs libGL.so.1",
        "sudo apt install libgl1 libglib2.0-0",
    ),
    "a Fedora without a desktop": (
        lambda s: [
            s.file("/etc/os-release", "ID=fedora\n"),
            s.told.update(ultralytics=f"ImportError: libgthread-2.0.so.0: {NO_FILE}"),
        ],
        "ultralytics",
        "OpenCV needs libgthread-2.0.so.0",
        "uninstall -y opencv-python python -m pip install opencv-python-headless",
    ),
    "a full disk": (
        lambda s: s.more.update(usage=lambda path: (100 * GIB, 50 * GIB if "shm" in str(path) else GIB // 8)),
        "disk",
        "0.1 GiB",
        "project=",
    ),
    "a Python of 32 bits": (lambda s: s.more.update(bits=32), "python", "64 bits only", "64-bit"),
    "an old Python": (lambda s: s.more.update(python=(3, 9, 1)), "python", "3.10 or later", "newer Python"),
    "a Mac": (lambda s: s.more.update(system="Darwin", processor="arm64"), "gpu", "macOS", "Windows or Linux"),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_first_problem_is_the_cause_and_its_fix_fits(setup: Setup, name: str) -> None:
    break_it, check, seen, fix = PROBLEMS[name]
    break_it(setup)
    results = examine(setup)
    assert runner.exit_status(results) == 2
    found = first_problem(results)
    assert found.check.name == check, found
    assert re.search(seen, found.diagnosis.seen), found.diagnosis.seen
    assert re.search(fix, remedy(found)), remedy(found)
    assert not [result for result in results if "the check itself failed" in result.diagnosis.seen]


# The same for what a training works with.
WARNINGS: dict[str, tuple[Callable[[Setup], Any], str, str, str]] = {
    "pip's PyTorch over conda's": (
        lambda s: in_conda(s, "pytorch-2.5.1-py3.12_cpu_0"),
        "conda",
        r"conda installed pytorch 2.5.1, and pip 2.14.1\+xpu over it",
        f"conda remove -y --force pytorch.*{RECIPE}",
    ),
    "a GPU that isn't listed": (
        lambda s: [
            s.gpu("a7a0", "i915"),
            s.told.update(devices=devices(device(id=0xA7A0, name="Iris", shown="xpu:0 Iris"))),
        ],
        "support-status",
        "isn't officially supported",
        "supported ones",
    ),
    "PyTorch's own warning of a GPU": (
        lambda s: s.told.update(
            devices=devices(
                device(id=None), warnings=["The detected GPU (x) is not officially supported by PyTorch XPU."]
            )
        ),
        "support-status",
        "isn't officially supported",
        "--numerics",
    ),
    "that driver on another GPU than it was seen on": (
        lambda s: [
            s.torch("2.13.0+xpu"),
            s.told.update(devices=devices(device(driver="1.14.37020+3", id=0x64A0))),
        ],
        "driver-version",
        "on Arc B",
        "26.22",
    ),
    "that driver with several GPUs, which the next one has trouble with": (
        lambda s: [
            s.torch("2.13.0+xpu"),
            s.told.update(devices=devices(*[device(driver="1.14.37020+3", id=0x64A0)] * 2)),
        ],
        "driver-version",
        "on Arc B",
        "^It was right .*Take another PyTorch: .*compute-runtime#922",
    ),
    "4 GiB refused by kernels that can't address it": (
        lambda s: [s.torch("2.7.1+xpu"), s.told["memory"][0].update(large="Tried to allocate 4.00 GiB")],
        "large-allocation",
        "refused",
        "^ ?A smaller batch.*Don't lift",
    ),
    "Arc A under xe": (lambda s: s.gpu("56a0", "xe"), "kernel-driver", "llama.cpp#27063", "force_probe"),
    "no Resizable BAR": (lambda s: s.gpu("e20b", "xe", bar=256 << 20), "resizable-bar", "256 MiB", "Above 4G"),
    "two loaders": (
        lambda s: s.library("libze_loader.so.1", "1.21.9", "/usr/local/lib"),
        "driver-match",
        "2 versions: 1.21.9, 1.28.2",
        "Keep one",
    ),
    "a loader that may be too new": (
        lambda s: s.library("libze_intel_gpu.so.1", "1.6.33578"),
        "driver-match",
        "newer than the driver",
        "both together",
    ),
    "PyTorch 2.13": (lambda s: s.torch("2.13.0+xpu"), "torch-release", "topk", "--upgrade"),
    "PyTorch 2.6": (lambda s: s.torch("2.6.0+xpu"), "torch-release", "pytorch#188953", "--upgrade"),
    "what an interrupted pip left": (lambda s: (s.site / "~orch").mkdir(), "torch-dependencies", "~orch", RECIPE),
    "Intel's extension": (
        lambda s: s.package("intel-extension-for-pytorch", "2.8.0"),
        "torch-dependencies",
        "discontinued",
        "uninstall",
    ),
    "a package that asks for another PyTorch": (
        lambda s: s.package("torchaudio", "2.9.0", ["torch==2.9.0"]),
        "wheel-safety",
        "torchaudio 2.9.0 needs torch 2.9.0.*may replace",
        "torchaudio --upgrade --index-url",
    ),
    "two Tritons": (
        lambda s: [s.package("triton", "3.8.0"), s.package("triton-xpu", "3.7.0")],
        "wheel-safety",
        "two Tritons",
        RECIPE,
    ),
    "a file called torch.py": (lambda s: (s.work / "torch.py").touch(), "torch-build", "torch.py", "Rename"),
    "oneAPI's environment": (
        lambda s: s.environ.update(LD_LIBRARY_PATH="/opt/intel/oneapi/mkl/lib"),
        "oneapi-environment",
        "LD_LIBRARY_PATH",
        "new shell",
    ),
    "float64 emulated": (
        lambda s: s.environ.update(OverrideDefaultFP64Settings="1", IGC_EnableDPEmulation="1"),
        "fp64-emulation",
        "compute-runtime#907",
        "unset OverrideDefaultFP64Settings unset IGC_EnableDPEmulation",
    ),
    "a misspelt variable of Level Zero": (
        lambda s: s.environ.update(UR_L0_USE_RELAXED_ALLOCATION_LIMITS="1"),
        "level-zero-variables",
        "called UR_L0_ENABLE_RELAXED_ALLOCATION_LIMITS",
        "export UR_L0_ENABLE_RELAXED_ALLOCATION_LIMITS=1",
    ),
    "a limit that old kernels need": (
        lambda s: [s.torch("2.7.1+xpu"), s.environ.update(UR_L0_ENABLE_RELAXED_ALLOCATION_LIMITS="1")],
        "level-zero-variables",
        "may be wrong",
        "unset",
    ),
    "SYCL's cache": (lambda s: s.environ.update(SYCL_CACHE_PERSISTENT="1"), "sycl-cache", "crash", "unset SYCL_CACHE"),
    "a misspelt variable of this package": (
        lambda s: [
            s.environ.update(YOLO_XPU_PREFECH="0"),
            s.told["plugins"].update(unknown={"YOLO_XPU_PREFECH": ["YOLO_XPU_PREFETCH"]}),
        ],
        "package-variables",
        r"YOLO_XPU_PREFECH \(YOLO_XPU_PREFETCH\?\)",
        "unset YOLO_XPU_PREFECH",
    ),
    "this package switched off": (lambda s: s.environ.update(YOLO_XPU_AUTOLOAD="0"), "autoload", "=0", "unset YOLO"),
    "matrix units denied": (
        lambda s: s.told.update(devices=devices(device(matrix=False))),
        "matrix-units",
        "pytorch#196074",
        "add-apt-repository.*apt update sudo apt install intel-ocloc",
    ),
    "little memory": (
        lambda s: s.told["memory"][0].update(available=GIB),
        "memory",
        "1.0 GiB",
        "batch=-1",
    ),
    "4 GiB refused": (
        lambda s: s.told["memory"][0].update(large="XPU out of memory. Tried to allocate 4.00 GiB"),
        "large-allocation",
        "refused",
        "RELAXED",
    ),
    "copies that arrive changed": (
        lambda s: s.told["memory"][0].update(intact=False),
        "copies",
        "changed",
        "prefetch=0",
    ),
    "results that only RT-DETR needs": (
        lambda s: s.told["numerics"][0].update(of_some=[["grid_sample differs", "Wait.", "Trainings of RT-DETR"]]),
        "numerics",
        "grid_sample differs. Trainings of RT-DETR end before their first batch; others don't need it",
        "whl/xpu --upgrade",
    ),
    "results that are gone round": (
        lambda s: s.told["numerics"][0].update(wrong=[["pool differs", "Training in NCHW", ""]]),
        "numerics",
        "goes round it: training in NCHW",
        "--numerics",
    ),
    "several GPUs, no XCCL": (
        lambda s: s.told.update(
            devices=devices(device(), device(shown="xpu:1")), precision=["", ""], several={"xccl": False}
        ),
        "collectives",
        "without XCCL",
        "--upgrade",
    ),
    "a oneCCL that hangs": (
        lambda s: [
            s.told.update(devices=devices(device(), device(shown="xpu:1")), precision=["", ""]),
            s.package("oneccl", "2022.0.0"),
        ],
        "oneccl",
        "oneCCL#215",
        "CCL_ALLREDUCE=ring",
    ),
    "a patch whose target moved": (
        lambda s: s.told["patches"]["process"].append(["ultralytics.a:b", "moved", "why", "where"]),
        "patches",
        r"a:b \(moved\)",
        "Report it",
    ),
    "a broken plugin": (
        lambda s: s.told["plugins"].update(said=["XPU: plugin 'a' is disabled: it fell apart"]),
        "plugins",
        "it fell apart",
        "uninstall it",
    ),
    "a check of another package that crashes": (
        lambda s: [
            (s.site / "yolo_xpu_trainer-0.1.0.dist-info" / "entry_points.txt").write_text(
                "[yolo_xpu_trainer]\na = a\n"
            ),
            s.told.update({"other-checks": SEGFAULT}),
        ],
        "plugin-checks",
        "SIGSEGV",
        "YOLO_XPU_PLUGINS",
    ),
    "a host without memory": (
        lambda s: s.file("/proc/meminfo", "MemAvailable: 1000000 kB"),
        "host-memory",
        "1.0 GiB",
        "workers=1",
    ),
    "a container with little memory": (
        lambda s: [
            s.file("/proc/self/cgroup", "0::/\n"),
            s.file("/sys/fs/cgroup/memory.max", str(2 * GIB)),
            s.file("/sys/fs/cgroup/memory.current", str(GIB)),
            s.file("/sys/fs/cgroup/memory.stat", f"file 7\ninactive_file {GIB // 2}\n"),
        ],
        "host-memory",
        "1.5 GiB",
        "workers=1",
    ),
    "a process that may use some processors only": (
        lambda s: s.more.update(processors=64, usable_processors=6),
        "loader-workers",
        "starts 8 workers .*, but 6 of 64 processors",
        "workers=6",
    ),
    "a container with little processor time": (
        lambda s: [s.file("/proc/self/cgroup", "0::/\n"), s.file("/sys/fs/cgroup/cpu.max", "250000 100000\n")],
        "loader-workers",
        "but 2 of 16 processors",
        "workers=2",
    ),
    "a service whose slice has little processor time": (
        lambda s: [
            s.file("/proc/self/cgroup", "1:name=systemd:/x\n0::/user.slice/session.scope\n"),
            s.file("/sys/fs/cgroup/user.slice/cpu.max", "50000 100000\n"),
            s.file("/sys/fs/cgroup/user.slice/session.scope/cpu.max", "max 100000\n"),
        ],
        "loader-workers",
        "but 1 of 16 processors",
        "workers=1",
    ),
    "a host with little memory for workers": (
        lambda s: s.file("/proc/meminfo", "MemAvailable: 3500000 kB"),
        "loader-workers",
        "but 3.3 GiB of memory are free",
        "workers=4",
    ),
    "few open files": (
        lambda s: s.more.update(open_files=200, usable_processors=7),
        "loader-workers",
        r"but 7 of 16 processors may be used, and 200 files may be open at once \(`ulimit -n`\)",
        "workers=3.*`ulimit -n 4096`",
    ),
    "little shared memory": (
        lambda s: [
            s.file("/run/.containerenv"),
            s.more.update(usage=lambda path: (64 << 20, 60 << 20) if "shm" in str(path) else (100 * GIB, 50 * GIB)),
        ],
        "shared-memory",
        "60 MiB",
        "--shm-size",
    ),
    "a disk that is nearly full": (
        lambda s: s.more.update(usage=lambda path: (100 * GIB, 2 * GIB)),
        "disk",
        "2.0 GiB",
        "project=",
    ),
}


def test_windows_gpus_that_arent_listed_are_named(setup: Setup) -> None:
    setup.on_windows()
    setup.no_xpu()
    setup.windows = "Intel(R) UHD Graphics 770|32.0.101.7076"
    setup.adapters = [r"PCI\VEN_10DE&DEV_2684", r"PCI\VEN_8086&DEV_A780"]
    found = next(result for result in examine(setup) if result.check.name == "gpu")
    assert found.verdict is Verdict.WARNING
    assert "[8086:a780]: not among the GPUs" in found.diagnosis.seen
    setup.adapters.append(r"PCI\VEN_8086&DEV_56A0")
    found = next(result for result in examine(setup) if result.check.name == "gpu")
    assert found.verdict is Verdict.OK


@pytest.mark.parametrize("processors", [1, 4, 16])
def test_as_many_workers_as_ultralytics_starts_are_right_where_nothing_is_limited(
    setup: Setup, processors: int
) -> None:
    setup.more.update(processors=processors, usable_processors=processors)
    found = next(result for result in examine(setup) if result.check.name == "loader-workers")
    assert (found.verdict, found.diagnosis.seen.partition(":")[0]) == (Verdict.OK, f"{min(8, processors)} workers")


def test_on_windows_workers_are_compared_with_the_processors_alone(setup: Setup) -> None:
    setup.on_windows()
    (setup.root / "proc/meminfo").unlink()
    setup.more.update(open_files=None)
    found = next(result for result in examine(setup) if result.check.name == "loader-workers")
    assert (found.verdict, found.diagnosis.seen) == (Verdict.OK, "8 workers: 16 of 16 processors may be used")


@pytest.mark.parametrize("name", WARNINGS)
def test_a_warning_names_the_cause_and_its_fix_fits(setup: Setup, name: str) -> None:
    break_it, check, seen, fix = WARNINGS[name]
    break_it(setup)
    results = examine(setup)
    assert runner.exit_status(results) == 1, [r for r in results if r.verdict is Verdict.PROBLEM]
    found = next(result for result in results if result.check.name == check)
    assert found.verdict is Verdict.WARNING, found
    assert re.search(seen, found.diagnosis.seen), found.diagnosis.seen
    assert re.search(fix, remedy(found)), remedy(found)


# What must not be called wrong


@pytest.mark.parametrize(("symbols", "sees"), [(33, False), (29, True)])
def test_a_conda_environment_is_well_where_its_library_is_new_enough_or_the_gpu_is_seen(
    setup: Setup, symbols: int, sees: bool
) -> None:
    in_conda(setup, symbols=symbols)
    if not sees:
        setup.no_xpu()
    assert next(r.verdict for r in examine(setup) if r.check.name == "conda") is Verdict.OK


def test_files_that_are_elsewhere_are_no_problem_while_pytorch_sees_the_gpu(setup: Setup) -> None:
    setup.no_gpu()
    setup.no_driver()
    results = examine(setup)
    assert runner.exit_status(results) == 0


def test_one_of_two_device_files_is_enough(setup: Setup) -> None:
    setup.file("/dev/dri/renderD129")
    setup.more["can_open"] = lambda path: path.name == "renderD129"
    assert runner.exit_status(examine(setup)) == 0


def test_a_limit_of_allocations_that_a_gpu_has_is_no_warning(setup: Setup) -> None:
    setup.told["devices"] = devices(device(limit=4 * GIB, limit_text="lift it"))
    setup.told["memory"][0]["large"] = "Tried to allocate 4.00 GiB"
    assert runner.exit_status(examine(setup)) == 0


def test_an_arc_a_card_without_float64_is_no_warning(setup: Setup) -> None:
    fails = "Adam, fused (float32) fails with 'Required aspect fp64 is not supported on the device'"
    setup.told["numerics"][0].update(shown="xpu:0 Intel Arc A770 Graphics", wrong=[[fails, "More kernels", ""]])
    a770 = device(id=0x56A0, shown="xpu:0 Intel Arc A770 Graphics", fp64=False)
    setup.told["devices"] = devices(a770)
    found = {result.check.name: result.diagnosis for result in examine(setup)}
    assert found["numerics"].verdict is Verdict.OK
    assert "1 that need float64" in found["numerics"].seen
    setup.told["devices"] = devices(a770 | {"fp64": True})
    found = {result.check.name: result.diagnosis for result in examine(setup)}
    assert found["numerics"].verdict is Verdict.WARNING


def test_a_cuda_build_is_the_cause_and_a_mask_isnt(setup: Setup) -> None:
    masked(setup, ZE_AFFINITY_MASK="0")
    setup.torch("2.14.1", cuda="13.0")
    found = {result.check.name: result.diagnosis for result in examine(setup)}
    assert found["torch-build"].verdict is Verdict.PROBLEM
    assert found["device-masks"].verdict is Verdict.NOT_APPLICABLE


@pytest.mark.parametrize(
    ("selector", "is_left_out"),
    [
        ("!opencl:*", False),
        ("level_zero:0", False),
        ("*:gpu", False),
        ("opencl:gpu;level_zero:1", False),
        ("!level_zero:*", True),
        ("cuda:*;!level_zero:1", True),
    ],
)
def test_selectors_that_leave_level_zero_out(setup: Setup, selector: str, is_left_out: bool) -> None:
    masked(setup, ONEAPI_DEVICE_SELECTOR=selector)
    found = next(result for result in examine(setup) if result.check.name == "device-masks")
    assert ("Level Zero only" in found.diagnosis.seen) == is_left_out


@pytest.mark.parametrize(
    ("variable", "value"), [("UR_L0_USE_COMPUTE_ENGINE", "1"), ("MKLROOT", "/opt/intel/oneapi/mkl/latest")]
)
def test_variables_that_do_no_harm(setup: Setup, variable: str, value: str) -> None:
    setup.environ[variable] = value
    assert runner.exit_status(examine(setup)) == 0


def test_a_card_that_is_set_aside_is_a_warning_where_another_gpu_is_seen(setup: Setup) -> None:
    uhd_beside(setup, "vfio-pci")
    setup.told["devices"] = devices(device())
    found = next(result for result in examine(setup) if result.check.name == "kernel-driver")
    assert found.verdict is Verdict.WARNING


def test_two_cards_one_of_which_is_set_aside_are_well(setup: Setup) -> None:
    setup.gpu("e20b", "vfio-pci", address="0000:08:00.0")
    setup.gpu("a780", "", address="0000:00:02.0")
    assert runner.exit_status(examine(setup)) == 0


# Commands for pip


def commands_for_a_cuda_build(setup: Setup) -> tuple[list[str], str]:
    setup.torch("2.14.1", cuda="13.0")
    said = first_problem(examine(setup)).diagnosis
    return list(said.fix), said.advice


def test_without_pip_the_commands_are_uvs(setup: Setup) -> None:
    setup.uninstall("pip")
    commands, advice = commands_for_a_cuda_build(setup)
    assert commands[0] == "uv pip uninstall torch torchvision torchaudio triton triton-xpu pytorch-triton-xpu"
    assert commands[1].startswith("uv pip install torch torchvision --index-url https://")
    assert "ensurepip" in advice


def test_the_systems_python_is_told_to_make_an_environment(setup: Setup) -> None:
    setup.more["executable"] = "/usr/bin/python3"
    setup.file("/usr/lib/python3.12/EXTERNALLY-MANAGED")
    commands, advice = commands_for_a_cuda_build(setup)
    assert commands[0].startswith("python3 -m pip uninstall")
    assert "python3 -m venv .venv" in advice


def test_wsl_and_windows_can_be_healthy(setup: Setup, tmp_path: Path) -> None:
    setup.in_wsl()
    assert runner.exit_status(examine(setup)) == 0
    windows = Setup(tmp_path / "windows")
    windows.on_windows()
    assert runner.exit_status(examine(windows)) == 0


def test_no_unfitting_fix_is_given_for_a_consequence(setup: Setup) -> None:
    refused(setup)
    found = {result.check.name: result.diagnosis for result in examine(setup)}
    assert found["devices"].verdict is Verdict.PROBLEM
    assert not found["devices"].fix
    assert "Fix `permission` first" in found["devices"].advice


def test_what_a_crashed_process_said_is_in_the_report(setup: Setup) -> None:
    setup.told["import"] = CrashedError("ended by SIGSEGV", said="Fatal Python error\n  File x", status=-11)
    text = report.as_markdown(examine(setup), setup.machine(), "1.0")
    assert "| Fatal Python error |" in text


def test_windows_doesnt_tell_the_cases_of_variables_apart(setup: Setup) -> None:
    setup.on_windows()
    setup.environ["OVERRIDEDEFAULTFP64SETTINGS"] = "1"
    found = next(result for result in examine(setup) if result.check.name == "fp64-emulation")
    assert found.verdict is Verdict.WARNING
    assert found.diagnosis.fix == ("set OverrideDefaultFP64Settings=",)


def test_windows_is_asked_for_its_gpus_once(setup: Setup) -> None:
    setup.on_windows()
    setup.no_xpu()
    machine = setup.machine()
    begun = []

    def noted(command: Sequence[str], environ: Mapping[str, str], seconds: float) -> Iterator[str]:
        begun.append(command[0])
        return machine.children(command, environ, seconds)

    assert list(runner.examine(replace(machine, children=noted), runner.CHECKS))
    assert begun.count("powershell") == 1


def test_powershells_words_stand_beside_those_of_windows_other_shell(setup: Setup) -> None:
    setup.on_windows()
    setup.environ["IGC_EnableDPEmulation"] = "1"
    console = Console(file=io.StringIO(), width=200)
    render.show(console, examine(setup), everything=False)
    assert (
        "set IGC_EnableDPEmulation=  (in PowerShell: Remove-Item Env:IGC_EnableDPEmulation)" in console.file.getvalue()
    )  # type: ignore[attr-defined]


def test_a_check_that_fails_itself_doesnt_end_the_others(setup: Setup) -> None:
    setup.told["memory"] = [{}]
    results = {result.check.name: result for result in examine(setup)}
    assert "the check itself failed" in results["memory"].diagnosis.seen
    assert results["disk"].verdict is Verdict.OK


@pytest.mark.parametrize(
    ("device", "name"),
    [("e20b", "Battlemage"), ("56A0", "Alchemist"), ("7d55", "Meteor Lake"), ("64a0", "Lunar Lake"), ("0bd5", "Max")],
)
def test_families_by_pci_id(device: str, name: str) -> None:
    assert name in gpus.family_of(device).name
    assert gpus.family_of(device).listed


@pytest.mark.parametrize("device", ["7d67", "7d41", "7d45", "b640", "56c0", "a780", "9a49"])
def test_gpus_that_pytorch_doesnt_list(device: str) -> None:
    assert not gpus.family_of(device).listed


def test_every_check_has_a_name_of_its_own_and_says_what_it_looks_at() -> None:
    names = [check.name for check in runner.CHECKS]
    assert len(names) == len(set(names))
    assert all(re.fullmatch("[a-z0-9-]+", name) for name in names)
    assert all(check.what for check in runner.CHECKS)


def test_the_page_names_every_check_and_option() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "doctor.md").read_text(encoding="utf-8")
    assert {check.name for check in runner.CHECKS} <= set(re.findall("`([a-z0-9-]+)`", text))
    parser = argparse.ArgumentParser(add_help=False)
    doctor.add_arguments(parser)
    options = set(re.findall(r"--[a-z]+", parser.format_help()))
    assert options == set(re.findall(r"(?<=`)--[a-z]+", text))


@pytest.mark.parametrize(("torch", "vision"), [("2.15.0", "0.29.2"), ("2.14.1", "0.30.0"), ("2.13.0", "0.28.0")])
def test_since_its_abi_is_stable_a_torchvision_fits_any_later_pytorch(setup: Setup, torch: str, vision: str) -> None:
    setup.torch(f"{torch}+xpu", xpu="20250300")
    setup.package("torchvision", f"{vision}+xpu")
    result = next(result for result in examine(setup) if result.check.name == "torchvision")
    assert result.diagnosis.seen == f"torchvision {vision}+xpu fits"


def test_another_build_without_torchvision_is_replaced_rather_than_added_to(setup: Setup) -> None:
    setup.torch("2.14.1+cu130")
    setup.uninstall("torchvision")
    result = next(result for result in examine(setup) if result.check.name == "torchvision")
    assert re.search(WHEELS, " ".join(result.diagnosis.fix))


def shown(setup: Setup, check: str, width: int) -> str:
    text = io.StringIO()
    results = [result for result in examine(setup) if result.check.name == check]
    render.show(Console(file=text, width=width), results, everything=True)
    return text.getvalue()


@pytest.mark.parametrize("width", [20, 80, 200])
def test_no_width_of_a_terminal_cuts_names_in_tables_off(setup: Setup, width: int) -> None:
    target, source = "utils.torch_utils:a_function_with_a_long_name", "ultralytics/utils/torch_utils.py"
    row = [f"ultralytics.{target}", "active", "it computes on the host", source]
    setup.told["patches"] = {"process": [row], "training": []}
    text = shown(setup, "patches", width)
    assert target in text
    assert source in text
    assert "…" not in text
    assert ("│ active" in text) == (width == 200)  # a table where there is room for one


def test_a_patch_that_is_not_active_says_why(setup: Setup) -> None:
    setup.told["patches"] = {
        "process": [["ultralytics.utils:a", "not needed", "why", "where"]],
        "training": [["ultralytics.utils:b", "not there", "why", "where"], ["torch:c", "wanted", "why", "where"]],
    }
    found = next(result for result in examine(setup) if result.check.name == "patches").diagnosis
    assert [row[:2] for row in found.table[1:]] == [
        ("utils:a", "not needed: this Ultralytics does it otherwise"),
        ("utils:b", "not needed: this Ultralytics has no such function"),
        ("torch:c", "wanted, while a detector trains"),
    ]
    assert found.seen == "0 active, 1 more while a detector trains, 2 not needed here"


@pytest.mark.parametrize(
    ("version", "reported"),
    [
        ("2.8.0+xpu", {"pytorch#159974", "torch-xpu-ops#1861", "torch-xpu-ops#3940"}),
        ("2.9.1+xpu", {"torch-xpu-ops#3940"}),
        ("2.12.0+xpu", {"physical-ai-studio#440", "torch-xpu-ops#3940"}),
        ("2.15.0+xpu", {"physical-ai-studio#440"}),
    ],
)
def test_what_was_reported_of_a_release_that_is_fit_is_told(setup: Setup, version: str, reported: set[str]) -> None:
    setup.torch(version)
    found = next(result for result in examine(setup) if result.check.name == "torch-release")
    assert found.verdict is Verdict.OK
    assert set(re.findall(r"[\w-]+#\d+", found.diagnosis.seen)) == reported
    assert version in found.diagnosis.seen


@pytest.mark.parametrize("is_there", [True, False])
def test_the_disk_is_the_one_that_ultralytics_writes_runs_to(setup: Setup, is_there: bool) -> None:
    clone = setup.root / "home/someone/clone"
    (clone / "runs" if is_there else clone).mkdir(parents=True)
    setup.told["ultralytics"] = {"version": "8.4.190", "runs": str(clone / "runs")}
    of_runs = clone / "runs" if is_there else clone
    setup.more.update(usage=lambda path: (100 * GIB, GIB if path == of_runs else 50 * GIB))
    found = next(result for result in examine(setup) if result.check.name == "disk")
    assert (found.verdict, found.diagnosis.seen) == (Verdict.WARNING, "1.0 GiB are free where runs are written")
    assert "runs_dir" in found.diagnosis.advice


def test_where_ultralytics_cannot_be_asked_the_disk_is_the_working_directorys(setup: Setup) -> None:
    setup.told["ultralytics"] = "ImportError: x"
    setup.more.update(usage=lambda path: (100 * GIB, GIB if path == setup.work else 50 * GIB))
    found = next(result for result in examine(setup) if result.check.name == "disk")
    assert found.verdict is Verdict.WARNING


# What others read


def test_the_script_has_the_commands_in_order_and_each_once(setup: Setup) -> None:
    setup.torch("2.14.1+cu130")
    refused(setup)
    script = report.as_script(examine(setup), setup.machine())
    commands = [line for line in script.splitlines() if line and not line.startswith("#")]
    assert commands == [
        'sudo usermod -aG render "$USER"',
        "python -m pip uninstall -y torch torchvision torchaudio triton triton-xpu pytorch-triton-xpu",
        "python -m pip install torch torchvision --index-url https://download.pytorch.org/whl/xpu",
    ]


def test_the_script_for_windows_has_no_comments_that_its_shell_would_run(setup: Setup) -> None:
    setup.on_windows()
    setup.torch("2.14.1+cpu")
    lines = report.as_script(examine(setup), setup.machine()).splitlines()
    assert not [line for line in lines if line.startswith("#") or "sudo" in line]
    assert [line for line in lines if line.startswith("rem problem, torch-build")]


def test_the_script_runs_to_its_end_in_one_session(setup: Setup) -> None:
    no_kernel_driver(setup)
    setup.file("/etc/os-release", 'ID=ubuntu\nVERSION_ID="24.04"\n')
    setup.torch("2.14.1", cuda="13.0")
    lines = report.as_script(examine(setup), setup.machine()).splitlines()
    assert not [line for line in lines if line.startswith("sudo reboot")]
    assert lines[-2:] == ["# Then, by hand:", "# sudo reboot"]
    assert lines.index("sudo apt install linux-generic-hwe-24.04") < len(lines) - 3


@pytest.mark.parametrize("break_it", [lambda s: [s.in_wsl(), s.remove("/dev/dxg")], container])
def test_the_script_leaves_the_hosts_commands_to_the_host(setup: Setup, break_it: Callable[[Setup], Any]) -> None:
    setup.no_xpu()
    break_it(setup)
    if break_it is container:
        refused(setup)
    lines = report.as_script(examine(setup), setup.machine()).splitlines()
    assert [line for line in lines if line.startswith("# On the host: ")]
    assert not [line for line in lines if line.startswith(("wsl", "docker"))]


def test_commands_that_only_look_are_advice(setup: Setup) -> None:
    looking = re.compile(r"yolo-xpu doctor|(sudo )?dmesg|free |ls ")
    for n, (break_it, *_) in enumerate([*PROBLEMS.values(), *WARNINGS.values()]):
        other = Setup(setup.root.parent / str(n))
        break_it(other)
        assert not [c for result in examine(other) for c in result.diagnosis.fix if looking.match(c)]


def test_json_has_every_check(setup: Setup) -> None:
    results = examine(setup)
    told = json.loads(report.as_json(results, "1.0"))
    assert told["status"] == 0
    assert [check["name"] for check in told["checks"]] == [check.name for check in runner.CHECKS]
    assert {check["verdict"] for check in told["checks"]} <= {verdict.value for verdict in Verdict}


def test_the_report_holds_no_name_home_path_host_or_token(setup: Setup, tmp_path: Path) -> None:
    token, key = "hf_abcdefghijklmnop1234", "0123456789abcdef0123456789abcdef0123"
    setup.environ |= {
        "ZE_AFFINITY_MASK": "0",
        "YOLO_XPU_TOKEN": "a-very-private-word",
        "SYCL_NOTE": f"{token} {key} https://marie:geheim@example.org/x",
        "LD_LIBRARY_PATH": "/home/marie/lib:/Users/marie/lib",
        "HF_TOKEN": "another-private-word",
        "AWS_SECRET_ACCESS_KEY": "a-third-private-word",
    }
    setup.import_fails(
        f"ImportError: {setup.site}/torch/x.so on laptop7.corp.example (laptop7) of marie, password=geheim: undefined"
    )
    machine = replace(setup.machine(), folder=Path("/home/marie/secret-project"))
    private = report.Private(machine, user="marie", host="laptop7.corp.example", home=Path("/home/marie"))
    text = report.as_markdown(list(runner.examine(machine, runner.CHECKS)), machine, "1.0", private)
    for word in (
        "marie",
        "laptop7",
        "corp.example",
        "secret-project",
        token,
        key,
        "geheim",
        "private-word",
        str(setup.site),
        "/home/",
    ):
        assert word not in text, word
    assert "ZE_AFFINITY_MASK=0" in text
    assert "| ✗ | torch-import |" in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("C:\\Users\\Jane Doe\\a b.txt", "~\\a b.txt"),
        ("c:\\users\\jane", "~"),
        ("/home/jane and /usr/lib", "~ and /usr/lib"),
        ("alice on laptop7", "<user> on <host>"),
        ("Alice's", "<user>'s"),
    ],
)
def test_names_are_found_in_any_case_and_with_blanks(setup: Setup, text: str, expected: str) -> None:
    private = report.Private(setup.machine(), user="ALICE", host="LAPTOP7", home=Path("/x"))
    assert private(text) == expected


def test_directories_in_variables_are_hidden_but_for_the_systems(setup: Setup) -> None:
    setup.environ |= {
        "SYCL_CACHE_DIR": "D:\\Work\\Jane\\cache",
        "TORCH_HOME": "/nas/bob/torch",
        "CONDA_DEFAULT_ENV": "/projects/clientx/env",
        "CONDA_PREFIX": "/projects/clientx/env",
        "LD_LIBRARY_PATH": "/usr/lib:/nas/bob/lib:/srv/clientx/oneapi/mkl/lib",
    }
    setup.import_fails("ImportError: found in /projects/clientx/env")
    text = report.as_markdown(examine(setup), setup.machine(), "1.0")
    for word in ("Jane", "bob", "clientx"):
        assert word not in text, word
    assert "LD_LIBRARY_PATH=/usr/lib:<path>:<path>/oneapi/mkl/lib" in text
    assert "TORCH_HOME=<path>" in text


def test_directories_of_libraries_are_hidden_in_tables(setup: Setup, tmp_path: Path) -> None:
    folder = tmp_path / "clientx" / "lib"
    folder.mkdir(parents=True)
    (folder / "libze_loader.so.1").touch()
    setup.environ["LD_LIBRARY_PATH"] = str(folder)
    text = report.as_markdown(examine(setup), setup.machine(), "1.0")
    assert "<path>/libze_loader.so.1" in text
    assert "clientx" not in text


def test_a_user_who_is_called_like_a_word_of_the_report_doesnt_mangle_it(setup: Setup) -> None:
    private = report.Private(setup.machine(), user="torch", host="intel", home=Path("/x"))
    assert private("torch-build: Intel XPU, torch 2.14") == "torch-build: Intel XPU, torch 2.14"


def test_words_that_only_hold_a_users_name_stay(setup: Setup) -> None:
    private = report.Private(setup.machine(), user="al", host="tor", home=Path("/home/al"))
    assert private("all tors of al in torch") == "all tors of <user> in torch"

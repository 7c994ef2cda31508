"""The GPU, its kernel driver, its device files and who may open them; containers, Resizable BAR."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from ...diagnosis import Diagnosis, DoctorCheck, Machine, Verdict, not_applicable, ok, problem, warning
from ...diagnosis.gpus import GPU, INTEL, described, family_of, gpus, of_registry, of_windows
from ...remedies import CLIENT_DRIVERS, HARDWARE, WINDOWS_DRIVER
from .seen import no_xpu_seen, xpus

__all__ = ["CHECKS", "container"]

_NODES = "/dev/dri"
_DRIVERS = ("i915", "xe")
_NO_GROUPS = ("root", "nogroup", "nobody")  # which no user should join
_BAR_WITHOUT_RESIZING = 256 << 20
_MARKS_OF_CONTAINERS = re.compile(r"docker|kubepods|containerd|libpod|lxc")
_LIMITED = "Resizable BAR is off: the processor sees {} MiB of the card's memory at a time, which slows copies down"


def container(machine: Machine) -> str:
    """Return what kind of container this is, "" where it is none."""
    if machine.path("/.dockerenv").exists():
        return "docker"
    if machine.path("/run/.containerenv").exists():
        return "podman"
    found = _MARKS_OF_CONTAINERS.search(machine.read("/proc/1/cgroup"))
    return found[0] if found else ""


def _unlisted(names: Iterable[str]) -> Diagnosis:
    return warning(
        f"{', '.join(names)}: not among the GPUs that PyTorch's documentation lists",
        advice=f"It may not work, or be slow. Which GPUs qualify: {HARDWARE}",
    )


def _gpu(machine: Machine) -> Diagnosis:
    seen = xpus(machine)
    if machine.system == "Darwin":
        return problem("this is macOS, for which PyTorch has no XPU build", advice=f"Use Windows or Linux: {HARDWARE}")
    if machine.is_windows:
        found = of_windows(machine)
        ids = of_registry(machine)
        if ids and not seen and not any(family_of(device).listed for device in ids):
            return _unlisted(map(described, ids))
        if found:
            return ok("; ".join(f"{name}, driver {version}" for name, version in found))
        if seen:
            return ok(_sees(len(seen)))
        if found is None:
            return not_applicable("Windows can't be asked for its GPUs")
        return problem(
            "Windows knows no Intel GPU",
            advice=f"Install Intel's graphics driver: {WINDOWS_DRIVER}. Which GPUs qualify: {HARDWARE}",
        )
    found_here = gpus(machine)
    if found_here and not seen and not any(gpu.family.listed for gpu in found_here):
        return _unlisted(map(str, found_here))
    if found_here:
        return ok(", ".join(map(str, found_here)))
    if seen:
        return ok(_sees(len(seen)))
    if machine.is_wsl:
        return not_applicable("in WSL the GPU is that of Windows")
    if not machine.path("/sys/bus/pci/devices").exists():
        return not_applicable("there is no /sys/bus/pci here")
    return problem(
        "no Intel GPU is on the PCI bus",
        advice=f"In a virtual machine, pass the GPU through. Which GPUs qualify: {HARDWARE}",
    )


def _sees(count: int) -> str:
    return f"PyTorch sees {count} XPU{'s' * (count > 1)}"


def _kernel_driver(machine: Machine) -> Diagnosis:
    if machine.is_windows:
        return not_applicable("Windows' driver is one with the user-space driver")
    if machine.is_wsl:
        if machine.path("/dev/dxg").exists():
            return ok("/dev/dxg, WSL's way to the GPU of Windows")
        if said := no_xpu_seen(machine):
            return said
        if kind := container(machine):
            return _not_passed_in(
                machine,
                f"this container ({kind}) has no /dev/dxg, WSL's way to the GPU of Windows: it wasn't passed in",
            )
        return problem(
            "there is no /dev/dxg, WSL's way to the GPU of Windows",
            "wsl --update",
            "wsl --shutdown",
            advice=f"Run these in Windows, with Intel's graphics driver for Windows up to date ({WINDOWS_DRIVER}). "
            "WSL 1 has no GPUs: `wsl -l -v` shows the version.",
        )
    found = gpus(machine)
    if not found:
        return no_xpu_seen(machine) or not_applicable("no Intel GPU is on the PCI bus")
    driven = [gpu for gpu in found if gpu.driver in _DRIVERS]
    if waiting := _meant_to_train(found, driven):
        said = _without_driver(machine, waiting)
        return replace(said, verdict=Verdict.WARNING) if xpus(machine) else said
    if driven:
        shown = ", ".join(f"{gpu.driver} has {gpu}" for gpu in driven)
        if odd := [gpu for gpu in driven if gpu.driver == "xe" and gpu.family.name.startswith("Arc A")]:
            return warning(
                f"{odd[0]} is driven by xe, under which copies were seen to fail (llama.cpp#27063)",
                advice="i915 is the default for Arc A. Remove `force_probe` options of xe and i915 from the kernel's "
                "command line, and restart.",
            )
        return ok(shown)
    return _without_driver(machine, found[0])


def _meant_to_train(found: list[GPU], driven: list[GPU]) -> GPU | None:
    """Return a GPU without a driver that suits a training better than those that have one: a card beside a UHD."""
    known = [gpu.family for gpu in driven]
    for gpu in found:
        better = (gpu.family.discrete and not any(family.discrete for family in known)) or (
            gpu.family.listed and not any(family.listed for family in known)
        )
        if gpu not in driven and better:
            return gpu
    return None


def _without_driver(machine: Machine, gpu: GPU) -> Diagnosis:
    """Say why no driver has a GPU."""
    needed = gpu.family.driver
    if gpu.driver:
        return problem(
            f"{gpu} belongs to the kernel driver {gpu.driver}, not to i915 or xe",
            advice="vfio-pci hands a GPU on to virtual machines: train in one, or take its id out of vfio-pci.ids, and "
            "restart.",
        )
    if "nomodeset" in machine.read("/proc/cmdline").split():
        return problem(
            f"no kernel driver has {gpu}: the kernel was started with nomodeset",
            "sudo sed -i 's/ *nomodeset//' /etc/default/grub",
            "sudo update-grub",
            "sudo reboot",
        )
    if not machine.path(f"/sys/module/{needed}").exists():
        return problem(
            f"no kernel driver has {gpu}: {needed} isn't loaded (Linux {machine.kernel})",
            f"sudo modprobe {needed}",
            advice="Where it can't be loaded the kernel is too old for this GPU, or the driver is on a blacklist "
            f"(`grep -r {needed} /etc/modprobe.d`): {CLIENT_DRIVERS}",
        )
    return problem(
        f"no kernel driver has {gpu}: {needed} is loaded, and doesn't know it (Linux {machine.kernel})",
        *_newer_kernel(machine),
        advice=f"Install a newer kernel, and linux-firmware with it: {CLIENT_DRIVERS}. What the driver says: "
        f"`sudo dmesg | grep -i -e {needed} -e {gpu.address}`",
    )


def _newer_kernel(machine: Machine) -> tuple[str, ...]:
    """Return the commands that install a newer kernel on an Ubuntu with long-term support; none elsewhere."""
    found = re.search(r'^VERSION_ID="?(\d[02468]\.04)', machine.read("/etc/os-release"), re.MULTILINE)
    if not found or "ubuntu" not in machine.read("/etc/os-release").lower():
        return ()
    return ("sudo apt update", f"sudo apt install linux-generic-hwe-{found[1]}", "sudo reboot")


def _nodes(machine: Machine) -> list[Path]:
    """Return the render devices of Intel's GPUs, and those whose vendor isn't told."""
    nodes = machine.glob(_NODES, "renderD*")
    return [n for n in nodes if machine.read(f"/sys/class/drm/{n.name}/device/vendor") in ("", INTEL)]


def _device_files(machine: Machine) -> Diagnosis:
    if machine.is_windows or machine.is_wsl:
        return not_applicable("these are Linux's")
    nodes = _nodes(machine)
    if nodes:
        return ok(", ".join(f"{_NODES}/{node.name}" for node in nodes))
    if said := no_xpu_seen(machine):
        return said
    found = gpus(machine)
    if not found and machine.path("/sys/bus/pci/devices").exists():
        return not_applicable("no Intel GPU is on the PCI bus")
    if kind := container(machine):
        return _not_passed_in(machine, f"this container ({kind}) has no {_NODES}/renderD*: the GPU wasn't passed in")
    if not any(gpu.driver in _DRIVERS for gpu in found):
        return not_applicable("no kernel driver has an Intel GPU")
    return problem(
        f"there is no {_NODES}/renderD*, though a kernel driver has the GPU",
        advice="The driver failed at its start; missing firmware is a common cause. What it says: `sudo dmesg | grep "
        f"-i -e i915 -e 'xe '`. {CLIENT_DRIVERS}",
    )


def _not_passed_in(machine: Machine, seen: str) -> Diagnosis:
    """Say that a container lacks the device or its group, with the command of its kind that gives them."""
    kind = container(machine)
    if kind == "lxc":
        return problem(
            seen,
            advice="On the host, give the container the device with the number of a group of the container: in Proxmox "
            "under Resources, Add, Device Passthrough; else with lxc.mount.entry and lxc.idmap in its configuration.",
        )
    if kind in ("kubepods", "containerd"):
        return problem(seen, advice="In Kubernetes Intel's GPU device plugin gives pods the device.")
    if machine.is_wsl:
        given = "--device /dev/dxg -v /usr/lib/wsl:/usr/lib/wsl"
    elif kind in ("podman", "libpod"):
        given = "--device /dev/dri --group-add keep-groups"
    else:
        given = '--device /dev/dri --group-add "$(stat -c %g /dev/dri/renderD128)"'
    program = "podman" if kind in ("podman", "libpod") else "docker"
    return problem(
        seen,
        f"{program} run -it {given} --shm-size 8g IMAGE",
        advice="Run this on the host, with the image's name at the end, in place of the command that started the "
        "container.",
    )


def _permission(machine: Machine) -> Diagnosis:
    node_file = "/dev/dxg" if machine.is_wsl else ""
    nodes = [machine.path(node_file)] if node_file and machine.path(node_file).exists() else _nodes(machine)
    if machine.is_windows or not nodes:
        return not_applicable("there are no device files")
    refused = [node for node in nodes if not machine.can_open(node)]
    if not refused:
        return ok("this user may open " + ", ".join(node.name for node in nodes))
    if len(refused) < len(nodes):
        return ok(f"this user may open {len(nodes) - len(refused)} of {len(nodes)} device files")
    if said := no_xpu_seen(machine):
        return said
    number = refused[0].stat().st_gid
    group = _group(machine, number)
    if container(machine):
        return _not_passed_in(
            machine,
            f"this user may not open {_NODES}/{refused[0].name}: the container lacks the group {number} of the host",
        )
    if group in _NO_GROUPS:
        return problem(
            f"this user may not open {_NODES}/{refused[0].name}, which belongs to the group {group}",
            advice=f"A udev rule should give it to the group render (`ls -l {_NODES}`); systemd's "
            "50-udev-default.rules does. In an LXC container the host's configuration must map the device's group.",
        )
    if number in machine.groups:
        return problem(
            f"this user is in the group {group}, and may not open {refused[0].name}",
            advice=f"The file's mode should be crw-rw---- (`ls -l {_NODES}`): a udev rule has changed it.",
        )
    if _is_member(machine, group):
        return problem(
            f"this user was added to the group {group}, but this session began before that",
            f"newgrp {group}",
            advice="Or log out and in again; a restart helps where a service manager keeps the session.",
        )
    return problem(
        f"this user may not open {_NODES}/{refused[0].name}, which belongs to the group {group}",
        f'sudo usermod -aG {group} "$USER"',
        advice="Then log out and in again: groups are read at login.",
    )


def _group(machine: Machine, number: int) -> str:
    """Return a group's name; "render", the usual one, where it has none."""
    for line in machine.read("/etc/group").splitlines():
        name, *_, rest = line.split(":", 2) if line.count(":") >= 3 else ("", "")
        if name and rest.split(":")[0] == str(number):
            return str(name)
    return "render"


def _is_member(machine: Machine, group: str) -> bool:
    """Whether /etc/group lists this user in a group."""
    user = machine.environ.get("USER") or machine.environ.get("LOGNAME") or ""
    lines = (line.split(":") for line in machine.read("/etc/group").splitlines())
    return any(len(line) == 4 and line[0] == group and user in line[3].split(",") for line in lines if user)


def _resizable_bar(machine: Machine) -> Diagnosis:
    cards = [gpu for gpu in gpus(machine) if gpu.family.discrete]
    if not cards:
        return not_applicable("no Intel card is on a PCI bus that can be read")
    small = {gpu: size for gpu in cards if 0 < (size := _largest_bar(machine, gpu)) <= _BAR_WITHOUT_RESIZING}
    if small:
        gpu, size = next(iter(small.items()))
        return warning(
            f"{gpu}: {_LIMITED.format(size >> 20)}",
            advice="Switch on 'Above 4G Decoding' and 'Re-Size BAR Support' in the firmware (BIOS) setup.",
        )
    if not any(_largest_bar(machine, gpu) for gpu in cards):
        return not_applicable("can't tell: /sys has no sizes of the card's BARs")
    return ok("on")


def _largest_bar(machine: Machine, gpu: GPU) -> int:
    """Return the size in bytes of a card's largest memory window, 0 where it isn't told."""
    sizes = [0]
    for line in machine.read(gpu.path / "resource").splitlines()[:6]:
        words = line.split()
        if len(words) == 3 and int(words[1], 16):
            sizes.append(int(words[1], 16) - int(words[0], 16) + 1)
    return max(sizes)


CHECKS = (
    DoctorCheck("gpu", "an Intel GPU in this machine, and whether PyTorch supports it", _gpu, ("devices",)),
    DoctorCheck("kernel-driver", "the kernel driver, i915 or xe; WSL's /dev/dxg", _kernel_driver, ("devices",)),
    DoctorCheck("device-files", "/dev/dri/renderD*, in a container, too", _device_files, ("devices",)),
    DoctorCheck("permission", "whether this user may open them", _permission, ("devices",)),
    DoctorCheck("resizable-bar", "whether the processor sees all of a card's memory", _resizable_bar),
)
"""The checks, in the order in which what they look at is installed."""

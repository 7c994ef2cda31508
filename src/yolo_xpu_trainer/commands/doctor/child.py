"""The process in which PyTorch is imported and asked: one probe after the other, an answer a line, as JSON.

It may hang, crash or be killed at any place: what was answered before is with the parent then.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from ...diagnosis import Probe
from .plan import lacking

__all__ = ["PROBES", "main"]

_MIB = 1 << 20
_COPIED = 64 * _MIB
_SECONDS_OF_NUMERICS, _SECONDS_OF_WHAT_IS_NEEDED = 2.5, 15.0


def main(names: list[str] | None = None) -> None:
    """Make the probes that the arguments name, and print that each begins, then its answer."""
    sys.path[:] = [path for path in sys.path if path]  # not the working directory, which `python -c` puts in front
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what PyTorch and others print belongs elsewhere

    def say(**answer: Any) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    found: dict[str, Probe] = {}
    for name in names or sys.argv[1].split(","):
        say(begin=name)
        if reason := lacking(name, found):
            found[name] = Probe(text=reason)
        else:
            try:
                arguments = [lambda: say(alive=True)] if name == "numerics" else []
                found[name] = Probe("ok", PROBES[name](*arguments), text="")
            except (Exception, SystemExit) as error:
                found[name] = Probe("error", text=f"{type(error).__name__}: {error}".strip())
        say(probe=name, state=found[name].state, value=found[name].value, text=found[name].text)
    answers.close()
    sys.stdout.flush()
    os._exit(0)  # a driver that fails at the end of a process costs no training


def _import() -> dict[str, Any]:
    began = time.perf_counter()
    import torch

    return {
        "version": str(torch.__version__),
        "file": str(torch.__file__),
        "xpu": getattr(torch.version, "xpu", None),
        "compiled": _is_compiled(torch),
        "cuda": bool(torch.cuda.is_available()) if hasattr(torch, "cuda") else False,
        "seconds": time.perf_counter() - began,
    }


def _is_compiled(torch: Any) -> bool:
    return bool(getattr(getattr(torch, "xpu", None), "_is_compiled", lambda: False)())


def _devices() -> dict[str, Any]:
    import torch

    from ... import devices

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        reason = devices.why_none()
        found = [] if reason else devices.available()
    rows = []
    for device in found:
        properties: Any = torch.xpu.get_device_properties(device.index)
        rows.append(
            {
                "name": device.name,
                "shown": str(device),
                "memory": device.total_memory,
                "free": device.free_memory(),
                "limit": device.allocation_limit,
                "limit_text": devices.limit_of_allocations(),
                "fp16": device.has_fp16,
                "fp64": device.has_fp64,
                "matrix": device.has_matrix_units,
                "integrated": device.integrated,
                "driver": device.driver,
                "id": getattr(properties, "device_id", None),
                "version": str(getattr(properties, "version", "")),
            }
        )
    reason_parts = [reason.seen, reason.remedy] if reason else None
    return {"devices": rows, "reason": reason_parts, "warnings": [str(w.message) for w in caught]}


def _precision() -> list[str]:
    from ... import devices
    from ...plugins import hooks

    answers = []
    for device in devices.available():
        chosen = hooks().xpu_precision(device=device, requested=True)
        answers.append(f"{chosen.name}: {chosen.reason}" if chosen else "fp32: no plugin decides it")
    return answers


def _memory() -> list[dict[str, Any]]:
    """Allocate 4 GiB where there is room for it, and copy pinned memory, on each device."""
    import torch

    from ... import devices

    found = []
    for device in devices.available():
        room = device.available_memory()
        row: dict[str, Any] = {"shown": str(device), "available": room.size, "basis": room.basis}
        large = 4 << 30
        if room.size > large + (1 << 30):
            try:
                torch.empty(large, dtype=torch.uint8, device=device.device)
            except RuntimeError as error:
                row["large"] = str(error).strip().splitlines()[0][:300]
            else:
                row["large"] = ""
            devices.empty_cache(device.index)
        try:
            row["bandwidth"], row["intact"] = _copied(torch, device.device, device.index)
        except RuntimeError as error:
            row["copy_error"] = str(error).strip().splitlines()[0][:300]
        found.append(row)
    return found


def _copied(torch: Any, device: Any, index: int) -> tuple[float, bool]:
    """Return the bytes a second from pinned memory to a device, and whether they came back the same."""
    host = (torch.arange(_COPIED // 4, dtype=torch.int32) % 8191).pin_memory()
    there = torch.empty_like(host, device=device, pin_memory=False)
    best = float("inf")
    for _ in range(3):
        torch.xpu.synchronize(index)
        began = time.perf_counter()
        there.copy_(host, non_blocking=True)
        torch.xpu.synchronize(index)
        best = min(best, time.perf_counter() - began)
    return _COPIED / max(best, 1e-9), bool(torch.equal(there.cpu(), host))


def _numerics(alive: Callable[[], None]) -> list[dict[str, Any]]:
    """Compare with the CPU what no training can do without, and as much of the rest as fits into a few seconds.

    Args:
        alive: Called after each comparison: where kernels are compiled at first use they may take long, all in all.
    """
    import torch

    from ... import devices
    from ...numerics import examine
    from ...plugins import hooks

    began = time.perf_counter()
    checks = [check for found in hooks().xpu_numerics() for check in found]
    checks.sort(key=lambda check: bool(check.instead))
    found = []
    for device in devices.available():
        wanted = [c for c in checks if c.dtype is not torch.float16 or device.has_fp16]
        row: dict[str, Any] = {"shown": str(device), "compared": 0, "of": len(wanted)}
        row |= {"fatal": [], "of_some": [], "wrong": []}
        for finding in examine(wanted, device):
            row["compared"] += 1
            if not finding.right and (check := finding.check) is not None:
                kind = "wrong" if check.instead else "of_some" if check.whose else "fatal"
                row[kind].append([str(finding), check.instead or check.advice, check.whose])
            alive()
            needed = finding.check is not None and not finding.check.instead
            if time.perf_counter() - began > (_SECONDS_OF_WHAT_IS_NEEDED if needed else _SECONDS_OF_NUMERICS):
                break
        found.append(row)
    return found


def _several() -> dict[str, Any]:
    import torch

    available = getattr(torch.distributed, "is_xccl_available", None)  # new in 2.6
    return {"xccl": bool(available is not None and available())}


def _triton() -> dict[str, Any]:
    import triton
    from triton.backends import backends

    return {"version": triton.__version__, "backends": sorted(backends)}


def _ultralytics() -> dict[str, Any]:
    import ultralytics
    from ultralytics.utils import SETTINGS

    return {"version": ultralytics.__version__, "runs": str(SETTINGS.get("runs_dir", ""))}


def _patches() -> dict[str, list[list[str]]]:
    """Return what is patched in Ultralytics, of the process and of a training: target, state, why, source of each."""
    import contextlib
    import importlib

    from ... import devices
    from ...activation import process_patches
    from ...numerics import SELF_CHECK
    from ...options import Options
    from ...plugins import declared_options, hooks
    from ...run import Precision, Run

    patches = process_patches()
    patches.apply()
    for patch in patches.patches:
        with contextlib.suppress(ImportError):  # some versions have no such module
            importlib.import_module(patch.module)
    process = [[patch.target, patches.state_of(patch), patch.why, patch.where] for patch in patches.patches]
    training: list[list[str]] = []
    if devices.count():
        with Options.scope({SELF_CHECK.name: False}):
            device = devices.available()[0]
            precision = hooks().xpu_precision(device=device, requested=True) or Precision("fp32", "")
            run = Run(device, (device.index,), precision, Options.resolve(declared_options(), {}), hooks=hooks())
            asked = SimpleNamespace(xpu=run, device=device.device)
            for patch in (patch for found in hooks().xpu_patches(trainer=asked) for patch in found):
                training.append([patch.target, _state(patch), patch.why, patch.where])
    return {"process": process, "training": training}


def _state(patch: Any) -> str:
    try:
        return "wanted" if patch.is_needed() else "not needed"
    except LookupError:
        return "not there" if patch.optional else "moved"


def _plugins() -> dict[str, Any]:
    """Load all plugins; return what was said of broken ones, and of variables that nobody reads."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("ultralytics")
    logger.addHandler(handler)
    try:
        from ...options import unknown_variables
        from ...plugins import built_in, declared_options, manager

        names = [name for name, _ in manager().list_name_plugin()]
        own = set(built_in())
        unknown = unknown_variables(declared_options())
    finally:
        logger.removeHandler(handler)
    return {"others": [name for name in names if name not in own], "said": said, "unknown": unknown}


def _other_checks() -> list[dict[str, Any]]:
    """Run the checks that other packages add, and return their diagnoses."""
    from ...diagnosis import Diagnosis, Machine, Verdict
    from ...plugins import manager

    found: list[dict[str, Any]] = []
    machine = Machine()
    for plugin in reversed(manager().hook.xpu_doctor_checks.get_hookimpls()):
        try:
            checks: list[Any] = list(plugin.function())  # type: ignore[call-overload]
        except Exception as error:
            text = f"its hook xpu_doctor_checks failed: {type(error).__name__}: {error}"
            found.append({"name": f"{plugin.plugin_name}-checks", "what": "", "verdict": "warning", "seen": text})
            continue
        for check in checks:
            try:
                said = check.examine(machine)
            except Exception as error:
                said = Diagnosis(Verdict.WARNING, f"the check failed: {type(error).__name__}: {error}")
            found.append(
                {
                    "name": str(check.name),
                    "what": f"{check.what} (of the plugin {plugin.plugin_name})",
                    "verdict": Verdict(said.verdict).value,
                    "seen": str(said.seen),
                    "fix": [str(command) for command in said.fix],
                    "advice": str(said.advice),
                    "table": [[str(cell) for cell in row] for row in said.table],
                }
            )
    return found


PROBES: dict[str, Callable[..., Any]] = {
    "import": _import,
    "devices": _devices,
    "precision": _precision,
    "several": _several,
    "memory": _memory,
    "triton": _triton,
    "ultralytics": _ultralytics,
    "plugins": _plugins,
    "patches": _patches,
    "numerics": _numerics,
    "other-checks": _other_checks,
}
"""What can be asked."""

"""What the launchers of clusters call a process's rank, as PyTorch calls it: SLURM's srun, PALS, Hydra (Intel MPI).

It imports nothing of PyTorch or Ultralytics, which reads these variables as it is imported.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path

from .errors import UsageError

__all__ = ["RANK_VARIABLES", "apply_to"]

RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK")
_RESTARTS = "TORCHELASTIC_RESTART_COUNT"
_PORTS = range(20000, 30000)  # below those that Linux gives to outgoing connections

# The rank, the rank on its machine, the number of processes, that on its machine, the machine's number; of the names
# that a launcher has for each, the first that is set counts. SLURM_NTASKS isn't asked: a batch script has it, too,
# whose one process isn't of a parallel step.
_NAMES: dict[str, tuple[tuple[str, ...], ...]] = {
    "PALS": (
        ("PALS_RANKID", "PMI_RANK"),
        ("PALS_LOCAL_RANKID",),
        ("PMI_SIZE",),
        ("PALS_LOCAL_SIZE", "PMI_LOCAL_SIZE"),
        ("PALS_NODEID",),
    ),
    "MPI": (
        ("PMI_RANK",),
        ("MPI_LOCALRANKID", "PMI_LOCAL_RANK", "LOCAL_RANK"),
        ("PMI_SIZE",),
        ("MPI_LOCALNRANKS", "PMI_LOCAL_SIZE"),
        (),
    ),
    "SLURM": (("SLURM_PROCID",), ("SLURM_LOCALID",), ("SLURM_STEP_NUM_TASKS",), (), ("SLURM_NODEID",)),
}


def apply_to(environment: MutableMapping[str, str]) -> str | None:
    """Set PyTorch's variables from those of the launcher that started this process.

    A process that is alone, as in an interactive shell of `srun`, isn't distributed: PyTorch's variables are removed.

    Args:
        environment: The process's environment, which is changed.

    Returns:
        The launcher: "torchrun" where PyTorch's variables are there already, "PALS", "MPI", "SLURM"; None where the
        process is alone.

    Raises:
        UsageError: The launcher doesn't say what is needed.
    """
    if all(environment.get(name) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")):
        if _number(environment, "WORLD_SIZE") > 1:
            _count_restarts_of_the_job(environment)
            return "torchrun"
        _clear(environment)
        return None
    for launcher, names in _NAMES.items():
        values = [next((name for name in alternatives if environment.get(name)), None) for alternatives in names]
        rank, local_rank, world_size, local_world_size, node = values
        if rank is None or world_size is None or _number(environment, world_size) < 2:
            continue
        if local_rank is None and (launcher == "PALS" or (launcher == "MPI" and environment.get("SLURM_LOCALID"))):
            continue  # another launcher that speaks PMI, as srun does where SLURM's MpiDefault is pmi2
        if local_rank is None:
            raise UsageError(
                f"{launcher} started this process as rank {environment[rank]} of {environment[world_size]}, but says "
                f"not which one it is on its machine, by which its GPU is chosen. Set LOCAL_RANK, or start it with "
                "torchrun."
            )
        found = {
            "RANK": environment[rank],
            "LOCAL_RANK": environment[local_rank],
            "WORLD_SIZE": environment[world_size],
        }
        if local_world_size is not None:
            found["LOCAL_WORLD_SIZE"] = environment[local_world_size]
        elif launcher == "SLURM":
            found.update(_tasks_on_this_node(environment))
        if node is not None:
            found["GROUP_RANK"] = environment[node]
        if not environment.get("MASTER_ADDR"):
            environment["MASTER_ADDR"] = _first_machine(launcher, environment, found)
        if not environment.get("MASTER_PORT"):
            environment["MASTER_PORT"] = str(_port(environment))
        environment.update(found)
        if launcher == "SLURM":
            environment["TORCHELASTIC_RUN_ID"] = environment.get("SLURM_JOB_ID", "")
            _count_restarts_of_the_job(environment)
        return launcher
    if environment.get("RANK") and environment.get("WORLD_SIZE") and _number(environment, "WORLD_SIZE") > 1:
        raise UsageError(
            f"RANK={environment['RANK']} and WORLD_SIZE={environment['WORLD_SIZE']} are set, but LOCAL_RANK isn't, by "
            "which this process's GPU is chosen. Set it to the process's number on its machine, or unset all of them "
            "to train in one process alone."
        )
    _clear(environment)
    return None


def _clear(environment: MutableMapping[str, str]) -> None:
    for name in RANK_VARIABLES:
        environment.pop(name, None)


def _count_restarts_of_the_job(environment: MutableMapping[str, str]) -> None:
    """Count how often SLURM has started the job again, beside how often torchrun has started the processes again."""
    if environment.get("SLURM_RESTART_COUNT"):
        before = _number(environment, _RESTARTS) if environment.get(_RESTARTS) else 0
        environment[_RESTARTS] = str(before + _number(environment, "SLURM_RESTART_COUNT"))


def _number(environment: Mapping[str, str], name: str) -> int:
    try:
        return int(environment[name])
    except ValueError:
        raise UsageError(f"{name}={environment[name]!r} is invalid: it must be an integer.") from None


def _tasks_on_this_node(environment: Mapping[str, str]) -> dict[str, str]:
    """Return how many tasks SLURM runs on this node, where it says: "4(x2),3" is four on two nodes, three on one."""
    counts: list[str] = []
    for part in environment.get("SLURM_STEP_TASKS_PER_NODE", "").split(","):
        if match := re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip()):
            counts += [match[1]] * int(match[2] or 1)
    node = environment.get("SLURM_NODEID", "")
    return {"LOCAL_WORLD_SIZE": counts[int(node)]} if node.isdigit() and int(node) < len(counts) else {}


def _first_machine(launcher: str, environment: Mapping[str, str], found: Mapping[str, str]) -> str:
    """Return the machine of rank 0, on which the others look for it."""
    if found.get("LOCAL_WORLD_SIZE") == found["WORLD_SIZE"]:
        return "127.0.0.1"
    where: dict[str, Callable[[], str]] = {"SLURM": lambda: _first_of_slurm(environment)}
    name = where.get(launcher, lambda: _first_of_pbs(environment))()
    if not name:
        raise UsageError(
            f"{launcher} started this process as rank {found['RANK']} of {found['WORLD_SIZE']}, but not on which "
            "machine rank 0 is. Set MASTER_ADDR to that machine's name."
        )
    return name


def _first_of_slurm(environment: Mapping[str, str]) -> str:
    """Return the first name of a list such as "node[03-07,9],login1"."""
    names = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST") or ""
    match = re.match(r"(?:[^\[,]|\[[^\]]*\])*", names)
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", match[0]) if match else ""


def _first_of_pbs(environment: Mapping[str, str]) -> str:
    try:
        return Path(environment.get("PBS_NODEFILE", "")).read_text(encoding="utf-8").split()[0]
    except (OSError, IndexError):
        return ""


def _port(environment: Mapping[str, str]) -> int:
    """Return a port that every process of a job, or a step of it, comes to, and others on the machine do not."""
    job = environment.get("SLURM_JOB_ID") or environment.get("PBS_JOBID") or ""
    digits = re.sub(r"\D", "", job + environment.get("SLURM_STEP_ID", ""))
    return _PORTS[int(digits) % len(_PORTS)] if digits else 29500

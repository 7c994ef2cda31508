"""The processes of a run that somebody else's launcher has started, one for each GPU, on one machine or several."""

from __future__ import annotations

import os
from dataclasses import dataclass

from .options import Option

__all__ = ["CHILD_VARIABLE", "GLOO", "RANK_TIMEOUT", "Launch", "launched"]

CHILD_VARIABLE = "YOLO_XPU_CHILD"  # says that the other variables were handed down, and say more than `amp=True`

RANK_TIMEOUT = Option(
    "rank_timeout",
    10800,
    "how long, in seconds, the processes of a run on several GPUs wait for each other before all of them are ended",
    least=1,
)

GLOO = Option(
    "gloo",
    False,
    "several GPUs exchange gradients by way of the host, with gloo: slower, and possible where PyTorch has no XCCL, as "
    "on Windows",
)


@dataclass(frozen=True)
class Launch:
    """Which of a run's processes this one is.

    Attributes:
        rank: Its number among all, from 0 on.
        local_rank: Its number among those of its machine.
        world_size: How many there are.
        node: The launcher's number for its machine, "" where it has none.
        run_id: What the launcher calls the run (torchrun's `--rdzv-id`, SLURM's job), "" where it has no name.
        restarts: How often the run was started again.
    """

    rank: int
    local_rank: int
    world_size: int
    node: str = ""
    run_id: str = ""
    restarts: int = 0


def launched() -> Launch | None:
    """Return which process this is of those that a launcher started, or None where none did.

    None, too, in a process that Ultralytics started for a run of ours: its parent decided for it.
    """
    found = {name: os.environ.get(name, "") for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    if CHILD_VARIABLE in os.environ or not all(value.isdigit() for value in found.values()):
        return None
    if int(found["WORLD_SIZE"]) < 2:
        return None
    run_id = os.environ.get("TORCHELASTIC_RUN_ID", "")
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "")
    return Launch(
        rank=int(found["RANK"]),
        local_rank=int(found["LOCAL_RANK"]),
        world_size=int(found["WORLD_SIZE"]),
        node=os.environ.get("GROUP_RANK", ""),
        run_id="" if run_id == "none" else run_id,
        restarts=int(restarts) if restarts.isdigit() else 0,
    )

"""Starting runs by a launcher, one process for each XPU, and what their ranks note for a test."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import xpu_simulator

needed = [
    pytest.mark.slow,
    pytest.mark.skipif(torch._C._has_xpu and not xpu_simulator.is_active(), reason="two simulated XPUs are needed"),
    pytest.mark.needs("torch.distributed.is_xccl_available"),
]
"""Marks of a module whose tests launch runs."""

# What torchrun runs: the module, with what a test wants to know or to go wrong.
SCRIPT = """
import os
import signal
import sys
import time
from pathlib import Path

import torch
from ultralytics.data.dataset import YOLODataset
from ultralytics.utils.callbacks.base import default_callbacks

import yolo_xpu_trainer.train

RANK, RESTART = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
HERE = Path(__file__).parent


scanned, scan = [], YOLODataset.cache_labels


def scanning(self, path):
    scanned.append(str(Path(path).with_suffix("")))
    return scan(self, path)


YOLODataset.cache_labels = scanning


def note(trainer):
    model = getattr(trainer.model, "module", trainer.model)
    seen = {{
        "scanned": scanned,
        "weights": {{name: value.cpu() for name, value in model.state_dict().items() if "running" not in name}},
        "device": str(trainer.device),
        "epochs": [trainer.start_epoch, trainer.epoch],
        "save_dir": str(trainer.save_dir),
        "world_size": trainer.world_size,
        "precision": trainer.xpu.precision.name,
    }}
    torch.save(seen, HERE / f"rank{{RANK}}-{{trainer.epoch}}.pt")
    (HERE / f"pid{{RANK}}").write_text(str(os.getpid()))


def go_wrong(trainer):
    {wrong}


def gradients(trainer):
    if "GRADIENTS" not in os.environ or trainer.start_epoch:
        return
    model = trainer.model
    images = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(trainer.device)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    before = {{name: value.detach().clone() for name, value in model.module.state_dict().items()}}
    model.train()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1
    with torch.no_grad():
        model.module(images)  # gives batch normalisation statistics, without which signals fade from layer to layer
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
        norm.eval()
    weights = {{name: value.detach().cpu().clone() for name, value in model.module.state_dict().items()}}

    def found():
        outputs = torch.utils._pytree.tree_leaves(model(images[8 * RANK : 8 * (RANK + 1)]))
        (sum(output.square().mean() for output in outputs) * 8 * trainer.world_size).backward()
        named = model.module.named_parameters()
        values = {{name: value.grad.cpu().clone() for name, value in named if value.requires_grad}}
        trainer.optimizer.zero_grad()
        return values

    with model.no_sync():
        alone = found()
    torch.save({{"weights": weights, "gradients": found(), "alone": alone}}, HERE / f"gradients{{RANK}}.pt")
    model.train()
    model.module.load_state_dict(before)


default_callbacks["on_train_start"].append(gradients)
default_callbacks["on_train_epoch_end"].append(note)
default_callbacks["on_train_batch_start"].append(go_wrong)
if __name__ == "__main__":
    sys.exit(yolo_xpu_trainer.train.main())
"""

ARGUMENTS = {"model": "yolo11n.yaml", "imgsz": 32, "epochs": 2, "workers": 0, "plots": False, "amp": False}
PLAIN_ARITHMETIC = {"xpu_channels_last": False, "xpu_fused_optimizer": False, "xpu_self_check": False}


@dataclass
class Ended:
    """How the launchers of a run ended.

    Attributes:
        statuses: Their exit statuses.
        outputs: What each printed, with its processes.
        seconds: How long it took.
    """

    statuses: list[int]
    outputs: list[str]
    seconds: float


def launch(
    folder: Path,
    commands: Sequence[Sequence[str]],
    *,
    profiles: Sequence[str] = ("max-1550",),
    within: Sequence[Sequence[str]] = ((),),
    wait_for_ranks: int = 0,
    **variables: str,
) -> Ended:
    """Run launchers side by side, each in a folder of its own; wait for them, or for so many ranks alone."""
    started = time.monotonic()
    processes, files = [], []
    for number, command in enumerate(commands):
        here = folder / f"node{number}"
        here.mkdir(exist_ok=True)
        files.append(here / "output.txt")
        with files[-1].open("w") as file:
            prefix = within[number % len(within)]
            process = subprocess.Popen(
                [*prefix, sys.executable, "-m", *command, f"project={here / 'runs'}"],
                env={**os.environ, "XPU_SIMULATOR": profiles[number % len(profiles)], **variables},
                cwd=here,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        processes.append(process)
    try:
        if wait_for_ranks:
            until = time.monotonic() + 180
            while len(list(folder.glob("pid*"))) < wait_for_ranks or _pids(folder):
                assert time.monotonic() < until
                time.sleep(0.2)
        statuses = [process.poll() or 0 if wait_for_ranks else process.wait(timeout=400) for process in processes]
    finally:
        for process in processes:
            children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            for one in [process, *children]:
                one.kill()
            process.wait()
    return Ended(statuses, [file.read_text(errors="replace") for file in files], time.monotonic() - started)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def torchrun(processes: int, *, nodes: int = 1, restarts: int = 0) -> list[list[str]]:
    """Return a torchrun command for each node."""
    where = ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}", f"--rdzv-id={os.getpid()}"]
    more = [
        f"--nnodes={nodes}",
        f"--nproc-per-node={processes}",
        f"--max-restarts={restarts}",
        "--monitor-interval=0.2",
    ]
    return [["torch.distributed.run", *where, *more, "--local-addr=127.0.0.1"] for _ in range(nodes)]


def training(folder: Path, data: str, wrong: str = "pass", **arguments: Any) -> list[str]:
    """Write the script, and return it with the arguments of a run."""
    script = folder / "script.py"
    script.write_text(SCRIPT.format(wrong=wrong))
    given = {"data": data, "device": "xpu", **ARGUMENTS, **arguments}
    return [str(script), *(f"{name}={value}" for name, value in given.items())]


def notes(folder: Path, ranks: int, epoch: int) -> list[dict[str, Any]]:
    return [torch.load(folder / f"rank{rank}-{epoch}.pt", weights_only=False) for rank in range(ranks)]


def differing(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> list[str]:
    return [name for name in first if not torch.equal(first[name], second[name])]


def left_behind(folder: Path) -> list[str]:
    """Return the processes of a run that are there, and its temporary files."""
    return [*map(str, _pids(folder)), *map(str, folder.rglob("*.part"))]


def _pids(folder: Path) -> list[int]:
    found = [int(path.read_text()) for path in folder.glob("pid*")]
    return [pid for pid in found if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]


SEVERAL = """
import json
import os
import sys
from pathlib import Path

import torch
import xpu_simulator
from ultralytics import YOLO
from yolo_xpu_trainer import trainers
from yolo_xpu_trainer.batches import AHEAD

HERE = Path(__file__).parent
RANK = int(os.environ["RANK"])


def weights(trainer):
    model = getattr(trainer.model, "module", trainer.model)
    return torch.cat([p.detach().float().cpu().flatten() for p in model.parameters()])


def train(model, trainer="xpu", **arguments):
    seen = {"files": [], "ahead": 0}

    def before(trainer):
        seen["before"] = weights(trainer)
        preprocess = trainer.preprocess_batch

        def noting(batch):
            ahead = trainer.xpu.stash.get(AHEAD, None)
            seen["ahead"] += ahead is not None and any(one.batch is batch for one in ahead._ahead)
            seen["files"] += [Path(file).name for file in batch.get("im_file", [])]
            return preprocess(batch)

        trainer.preprocess_batch = noting

    def after(trainer):
        mine = weights(trainer)
        everyones = trainer.xpu.group.gather(mine)
        seen["equal"] = all(torch.equal(mine, other) for other in everyones)
        seen["changed"] = not torch.equal(mine, seen.pop("before"))
        seen["finite"] = bool(mine.isfinite().all())
        seen["device"] = str(trainer.device)
        seen["precision"] = trainer.xpu.precision.name
        seen["images"] = trainer.train_loader.batch_size
        seen["rect"] = getattr(trainer.train_loader.dataset, "rect", None)
        seen["folder"] = trainer.save_dir.name
        seen["sum"] = float(mine.double().sum())
        seen["static"], seen["views"] = trainer.model.static_graph, trainer.model.gradient_as_bucket_view

    arguments = {"device": "xpu", "epochs": 1, "workers": 0, "plots": False, **arguments}
    try:
        with xpu_simulator.count() as counts:
            if trainer in trainers.TRAINERS:
                run = getattr(trainers, trainer)(overrides={"model": model, **arguments})
            else:
                run = YOLO(model)
            run.add_callback("on_train_start", before)
            run.add_callback("on_train_epoch_end", after)
            results = run.train() if trainer in trainers.TRAINERS else run.train(trainer=trainer, **arguments)
        seen["pinned"] = counts.h2d["pinned", "non_blocking"]
        if RANK == 0 and hasattr(results, "nt_per_class"):
            seen["objects"] = int(results.nt_per_class.sum())
    except Exception as error:
        seen["error"] = f"{type(error).__name__}: {error}"
    return seen


if __name__ == "__main__":
    project = sys.argv[2].partition("=")[2]
    seen = [train(project=project, **one) for one in json.loads(sys.argv[1])]
    (HERE / f"several{RANK}.json").write_text(json.dumps(seen))
"""


def several(
    folder: Path, ranks: int, trainings: list[dict[str, Any]], profile: str, **variables: str
) -> tuple[list[list[Any]], str]:
    """Train one after the other in the same processes; return what each rank saw of each, and what they printed."""
    (command,) = torchrun(ranks)
    script = folder / "several.py"
    script.write_text(SEVERAL)
    ended = launch(folder, [[*command, str(script), json.dumps(trainings)]], profiles=(profile,), **variables)
    assert ended.statuses == [0], ended.outputs
    return [json.loads((folder / f"several{rank}.json").read_text()) for rank in range(ranks)], ended.outputs[0]

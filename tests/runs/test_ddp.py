"""Training on two XPUs: one process each, which knows of the run what its environment says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import xpu_simulator

from ..conftest import TrainingData

# What a user would write; the callbacks reach the workers with the trainer.
SCRIPT = """
import json
import os
import sys
from pathlib import Path

import torch
from ultralytics import YOLO

{imports}

files = []


def watch(trainer):
    preprocess = trainer.preprocess_batch

    def noting(batch):
        files.extend(Path(file).name for file in batch["im_file"])
        return preprocess(batch)

    trainer.preprocess_batch = noting


def note(trainer):
    import xpu_simulator

    inside = torch.ones(2, 2, device=trainer.device, requires_grad=True)
    with trainer.xpu.autocast():
        dtype = (inside @ inside).dtype
    seen = {{
        "class": type(trainer).__name__,
        "device": str(trainer.device),
        "xpu": trainer.xpu.device.index,
        "current": torch.xpu.current_device(),
        "weights": sorted({{str(p.device) for p in trainer.model.parameters()}}),
        "loss": str(trainer.loss.device),
        "precision": trainer.xpu.precision.name,
        "dtype": str(dtype),
        "scaler": type(trainer.scaler).__module__,
        "scaling": trainer.scaler.is_enabled(),
        "options": trainer.xpu.options.as_dict(),
        "decided": trainer.xpu.options.decided(),
        "pinned": trainer.train_loader.pin_memory,
        "world_size": trainer.world_size,
        "files": files,
        "copies": {{" ".join(kind): count for kind, count in xpu_simulator.counters.read().h2d.items()}},
        "backend": torch.distributed.get_backend(),
        "sum": float(sum(p.detach().double().sum() for p in trainer.model.parameters())),
    }}
    Path(f"rank{{os.environ['RANK']}}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    before = dict(os.environ)
    model = YOLO("yolo11n.yaml")
    model.add_callback("on_train_start", watch)
    model.add_callback("on_train_epoch_end", note)
    error = None
    try:
        model.train(
            trainer={trainer},
            data=sys.argv[1],
            epochs=1,
            imgsz=32,
            batch=4,
            plots=False,
            project=os.getcwd(),
            name="run",
            **json.loads(sys.argv[2]),
        )
    except Exception as caught:
        error = repr(caught)
    after = dict(os.environ)
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    Path("parent.json").write_text(json.dumps({{"error": error, "changed": changed}}))
"""

MINE = """
from ultralytics.models.yolo.detect import DetectionTrainer
from yolo_xpu_trainer import XPUTrainer


class MyTrainer(DetectionTrainer):
    pass


class Mine(XPUTrainer, MyTrainer):
    pass
"""


@dataclass
class Result:
    """What a run on two XPUs leaves behind.

    Attributes:
        ranks: What each worker noted.
        parent: What the launching process noted.
        weights: The folder of its checkpoints.
        output: What all of them printed.
    """

    ranks: list[dict[str, Any]]
    parent: dict[str, Any]
    weights: Path
    output: str


def run(folder: Path, data: str, trainer: str, imports: str, arguments: dict[str, Any], **variables: str) -> Result:
    """Run a script that trains on two XPUs, and gather what was noted."""
    (folder / "mine.py").write_text(MINE)
    script = folder / "script.py"
    script.write_text(SCRIPT.format(trainer=trainer, imports=imports))
    done = subprocess.run(
        [sys.executable, str(script), data, json.dumps(arguments)],
        env={**os.environ, "XPU_SIMULATOR": "max-1550", "TMPDIR": str(folder), **variables},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    parent = json.loads((folder / "parent.json").read_text())
    assert parent["error"] is None, output
    assert _left(folder) == []
    ranks = [json.loads((folder / f"rank{i}.json").read_text()) for i in range(2)]
    return Result(ranks, parent, folder / "run" / "weights", output)


@pytest.fixture(scope="module")
def explicit(data: TrainingData, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A trainer of ours, with everything asked for."""
    arguments = {"device": "xpu:0,1", "amp": "fp16", "xpu_pin_memory": False, "xpu_non_blocking": False, "workers": 2}
    imports = "from yolo_xpu_trainer import XPUDetectionTrainer"
    return run(tmp_path_factory.mktemp("explicit"), data("detect"), "XPUDetectionTrainer", imports, arguments)


@pytest.fixture(scope="module")
def own(data: TrainingData, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A trainer of the user's own, on the devices in reverse, with everything left to us but one variable."""
    folder = tmp_path_factory.mktemp("own")
    return run(
        folder,
        data("detect"),
        "Mine",
        "from mine import Mine",
        {"device": [1, 0], "workers": 0},
        YOLO_XPU_NON_BLOCKING="false",
    )


@pytest.fixture(scope="module")
def by_host(data: TrainingData, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A run where PyTorch has no XCCL, by way of the host, with worker processes."""
    folder, arguments = tmp_path_factory.mktemp("host"), {"device": "xpu:0,1", "xpu_gloo": True, "workers": 2}
    return run(folder, data("detect"), "'xpu'", "", arguments, XPU_SIMULATOR_FAULTS="no_xccl")


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch._C._has_xpu and not xpu_simulator.is_active(), reason="two simulated XPUs are needed"),
]


def test_each_rank_trains_on_a_device_of_its_own(explicit: Result) -> None:
    for rank, seen in enumerate(explicit.ranks):
        assert seen["device"] == seen["loss"] == f"xpu:{rank}"
        assert seen["weights"] == [f"xpu:{rank}"]
        assert seen["xpu"] == seen["current"] == rank
        assert seen["world_size"] == 2


def test_gradients_go_by_way_of_the_host_where_that_is_asked_for(by_host: Result) -> None:
    assert [seen["device"] for seen in by_host.ranks] == ["xpu:0", "xpu:1"]
    assert {seen["backend"] for seen in by_host.ranks} != {"xccl"}
    assert by_host.ranks[0]["sum"] == by_host.ranks[1]["sum"]
    assert by_host.output.count("gradients by way of the host (gloo)") == 1


def test_each_rank_loads_images_of_its_own_in_worker_processes(explicit: Result, by_host: Result) -> None:
    for first, second in (explicit.ranks, by_host.ranks):
        assert len(first["files"]) == len(second["files"]) == 4
        assert not set(first["files"]) & set(second["files"])
    for seen in by_host.ranks:
        assert seen["copies"]["pinned non_blocking"] >= 2
    for seen in explicit.ranks:
        assert seen["copies"]["pinned non_blocking"] == 0


def test_the_order_of_devices_is_that_of_the_ranks(own: Result) -> None:
    assert [seen["device"] for seen in own.ranks] == ["xpu:1", "xpu:0"]
    assert [seen["xpu"] for seen in own.ranks] == [1, 0]


def test_both_ranks_end_up_with_the_same_weights(explicit: Result, own: Result) -> None:
    for result in (explicit, own):
        assert result.ranks[0]["sum"] == pytest.approx(result.ranks[1]["sum"], rel=1e-6)


def test_the_precision_asked_for_reaches_every_worker(explicit: Result) -> None:
    for seen in explicit.ranks:
        assert seen["precision"] == "fp16"
        assert seen["dtype"] == "torch.float16"
        assert seen["scaler"] == "yolo_xpu_trainer.policies.grad_scaler"
        assert seen["scaling"]


def test_a_precision_not_asked_for_is_every_workers_own_choice(own: Result) -> None:
    for seen in own.ranks:
        assert seen["precision"] == "bf16"
        assert seen["dtype"] == "torch.bfloat16"
        assert not seen["scaling"]


def test_options_reach_every_worker(explicit: Result, own: Result) -> None:
    for seen in explicit.ranks:
        assert seen["options"]["pin_memory"] is False
        assert seen["options"]["non_blocking"] is False
        assert seen["pinned"] is False
    for seen in own.ranks:
        assert seen["options"]["pin_memory"] is True
        assert seen["options"]["non_blocking"] is False
        assert seen["pinned"] is True


def test_a_worker_takes_no_default_of_its_parent_for_what_the_user_gave(explicit: Result, own: Result) -> None:
    for seen in explicit.ranks:
        assert seen["decided"] == {"pin_memory": False, "non_blocking": False}
    for seen in own.ranks:
        assert seen["decided"] == {"non_blocking": False}


def test_the_launching_process_keeps_its_environment(explicit: Result, own: Result) -> None:
    # PyTorch's own, and what Ultralytics sets for determinism and takes away again, whoever set it.
    not_ours = {"TORCHINDUCTOR_CACHE_DIR", "CUBLAS_WORKSPACE_CONFIG", "PYTHONHASHSEED"}
    assert set(explicit.parent["changed"]) <= not_ours
    assert set(own.parent["changed"]) <= not_ours


def test_a_users_own_trainer_is_what_the_workers_run(explicit: Result, own: Result) -> None:
    assert [seen["class"] for seen in own.ranks] == ["Mine", "Mine"]
    assert [seen["class"] for seen in explicit.ranks] == ["XPUDetectionTrainer", "XPUDetectionTrainer"]


def test_the_checkpoint_is_one_of_a_single_device_run_but_for_what_we_remember(explicit: Result, own: Result) -> None:
    for result, device, precision in ((explicit, "xpu:0,1", "fp16"), (own, "xpu:1,0", "bf16")):
        for name in ("last.pt", "best.pt"):
            checkpoint = torch.load(result.weights / name, map_location="cpu", weights_only=False)
            assert checkpoint["train_args"]["device"] is None
            assert isinstance(checkpoint["train_args"]["amp"], bool)
            assert not [key for key in checkpoint["train_args"] if "xpu" in key]
            assert checkpoint["xpu_trainer"]["device"] == device
            assert checkpoint["xpu_trainer"]["precision"] == precision
            assert type(checkpoint["model"]).__name__ == "DetectionModel"
            assert next(checkpoint["model"].parameters()).device.type == "cpu"


def test_a_run_says_once_what_it_runs_on(explicit: Result) -> None:
    assert explicit.output.count("XPU:\033[0m") + explicit.output.count("XPU: xpu:") == 1
    assert "and 1 more" in explicit.output


def test_a_device_that_is_not_there_starts_no_worker(
    xpu: torch.device, data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ultralytics import YOLO

    from yolo_xpu_trainer import XPUDetectionTrainer
    from yolo_xpu_trainer.errors import NoSuchXPUError

    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "run", never)
    with pytest.raises(NoSuchXPUError):
        YOLO("yolo11n.yaml").train(
            trainer=XPUDetectionTrainer, data=data("detect"), device="xpu:0,1", project=str(tmp_path)
        )


FAILING = """
import os
import signal
import sys
import time
from pathlib import Path

from ultralytics import YOLO
from xpu_simulator import faults


def fail(trainer):
    if os.environ["RANK"] == os.environ["FAILING_RANK"] and trainer.epoch == 1:
        Path("failed").write_text(str(time.time()))
        {fault}


if __name__ == "__main__":
    model = YOLO("yolo11n.yaml")
    model.add_callback("on_train_epoch_start", fail)
    try:
        model.train(
            trainer="xpu", device="xpu:0,1", data=sys.argv[1], epochs=2, imgsz=32, batch=4, workers=0, plots=False,
            project=os.getcwd(), name="run", amp=False, val=False,
        )
    except Exception as error:
        print("ENDED", type(error).__name__, getattr(error, "batch", ""), getattr(error, "checkpoint", ""), error)
"""


_ON_DEVICE = ["xpu:{rank} Intel Data Center GPU Max 1550", "go on with `yolo train resume=True model={last}"]


@pytest.mark.parametrize(
    ("fault", "rank", "expected", "said"),
    [
        ("faults.device_lost()", "1", "DeviceLostError", _ON_DEVICE),
        ("faults.out_of_memory(text=faults.OUT_OF_RESOURCES)", "0", "NotEnoughMemoryError", _ON_DEVICE),
        ("raise ValueError('a broken label')", "1", "WorkerError", ["ValueError: a broken label"]),
    ],
)
def test_an_error_on_one_rank_ends_all_of_them_with_that_ranks_message(
    data: TrainingData, tmp_path: Path, fault: str, rank: str, expected: str, said: list[str]
) -> None:
    line, _ = _failing(tmp_path, data("detect"), fault, rank)
    last = tmp_path / "run" / "weights" / "last.pt"
    assert line.startswith(f"ENDED {expected} ")
    for phrase in said:
        assert phrase.format(rank=rank, last=last) in line
    assert line.endswith(f"(rank {rank})")


def test_a_rank_that_is_killed_ends_the_other_one(data: TrainingData, tmp_path: Path) -> None:
    line, output = _failing(tmp_path, data("detect"), "os.kill(os.getpid(), signal.SIGKILL)", "1")
    # The other one says that it can't reach it, or torchrun ends that one before it can say so.
    assert line.startswith(("ENDED RankError", "ENDED WorkerError"))
    assert "killed" in line
    assert "traceback : Signal 9 (SIGKILL) received by PID" in output
    assert "rank      : 1 (local_rank: 1)" in output


def _failing(folder: Path, data: str, fault: str, rank: str) -> tuple[str, str]:
    """Let a rank fail in the second epoch, see that all end soon and whole, and return how, and what was printed."""
    script = folder / "script.py"
    script.write_text(FAILING.format(fault=fault))
    done = subprocess.run(
        [sys.executable, str(script), data],
        env={**os.environ, "XPU_SIMULATOR": "max-1550", "TMPDIR": str(folder), "FAILING_RANK": rank},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert time.time() - float((folder / "failed").read_text()) < 60
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("ENDED")]
    assert torch.load(folder / "run" / "weights" / "last.pt", weights_only=False)["epoch"] == 0
    assert _left(folder) == []
    return line, done.stdout + done.stderr


HANGING = """
import sys
import time

from ultralytics import YOLO


def hang(trainer):  # rank 0's, before there is a process group
    import torch

    torch.distributed.all_reduce = lambda *args, **kwargs: time.sleep(300)


if __name__ == "__main__":
    model = YOLO("yolo11n.yaml")
    model.add_callback("on_pretrain_routine_start", hang)
    try:
        model.train(
            trainer="xpu", device="xpu:0,1", data=sys.argv[1], epochs=1, imgsz=32, batch=4, workers=0, plots=False,
            project=sys.argv[2], name="run", xpu_rank_timeout=4, xpu_self_check=False,
        )
    except Exception as error:
        print("ENDED", type(error).__name__, error)
"""


def test_a_first_all_reduce_that_hangs_ends_the_run_with_the_known_remedy(data: TrainingData, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(HANGING)
    done = subprocess.run(
        [sys.executable, str(script), data("detect"), str(tmp_path)],
        env={**os.environ, "XPU_SIMULATOR": "max-1550", "TMPDIR": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("ENDED")]
    assert line.startswith("ENDED CollectivesError The first all-reduce of 2 ranks didn't end within 4 s.")
    assert "oneCCL#215" in line
    assert "CCL_ALLREDUCE=ring" in line
    assert _left(tmp_path) == []


def _left(directory: Path) -> list[Any]:
    """Return what a run in a directory has left: other processes that work there, and temporary files."""
    import psutil

    seen = psutil.process_iter(["pid", "cwd", "cmdline"])
    running = [p.info["cmdline"] for p in seen if p.info["cwd"] == str(directory) and p.info["pid"] != os.getpid()]
    scripts = Path(os.environ["YOLO_CONFIG_DIR"]).rglob("_temp_*")  # Ultralytics' own, by which it starts the ranks
    ours = [path for name in ("yolo-xpu-*", ".in-use.json", "*.part") for path in directory.rglob(name)]
    return [*running, *scripts, *ours]

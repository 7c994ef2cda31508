"""Runs whose processes torchrun starts, one for each XPU of a machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from ..conftest import TrainingData
from .launching import PLAIN_ARITHMETIC, differing, launch, left_behind, needed, notes, torchrun, training

pytestmark = needed

PLAIN = """
import os
import sys
from pathlib import Path

import torch
from ultralytics import YOLO


def note(trainer):
    model = getattr(trainer.model, "module", trainer.model)
    weights = {name: value.cpu() for name, value in model.state_dict().items() if "running" not in name}
    torch.save({"weights": weights}, Path(os.environ["THERE"], f"rank{os.environ['RANK']}-{trainer.epoch}.pt"))


if __name__ == "__main__":
    model = YOLO("yolo11n.yaml")
    model.add_callback("on_train_epoch_end", note)
    model.train(
        data=sys.argv[1], device="xpu:0,1", batch=4, imgsz=32, epochs=2, workers=0, plots=False, amp=False,
        project=os.environ["THERE"],
    )
"""


def test_two_ranks_end_with_the_weights_of_plain_ultralytics_own_two(data: TrainingData, tmp_path: Path) -> None:
    (command,) = torchrun(2)
    ours = launch(tmp_path, [[*command, *training(tmp_path, data("detect"), batch=4, **PLAIN_ARITHMETIC)]])
    assert ours.statuses == [0], ours.outputs
    seen = notes(tmp_path, 2, epoch=1)
    assert [one["device"] for one in seen] == ["xpu:0", "xpu:1"]
    assert [one["world_size"] for one in seen] == [2, 2]
    assert seen[0]["save_dir"] == seen[1]["save_dir"]
    assert not differing(seen[0]["weights"], seen[1]["weights"])
    weights = Path(seen[0]["save_dir"], "weights")
    assert torch.load(weights / "best.pt", weights_only=False)["epoch"] == -1
    assert not left_behind(tmp_path)

    there = tmp_path / "plain"
    there.mkdir()
    script = there / "plain.py"
    script.write_text(PLAIN)
    environment = {**os.environ, "XPU_SIMULATOR": "max-1550", "YOLO_XPU_AUTOLOAD": "0", "THERE": str(there)}
    done = subprocess.run(
        [sys.executable, str(script), data("detect")], env=environment, cwd=there, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for epoch in (0, 1):
        plain, mine = notes(there, 2, epoch), notes(tmp_path, 2, epoch)
        assert not differing(plain[0]["weights"], mine[0]["weights"])


def test_a_rank_that_hangs_is_named_and_an_error_of_one_ends_all_with_its_message(
    data: TrainingData, tmp_path: Path
) -> None:
    wrong = """if RANK == 1 and trainer.epoch == 1:
        if trainer.start_epoch:  # torchrun counts restarts on the node that failed alone
            raise ValueError("a broken label")
        time.sleep(300)"""
    arguments = training(tmp_path, data("detect"), wrong, batch=8, xpu_rank_timeout=6, **PLAIN_ARITHMETIC)
    ended = launch(tmp_path, [[*node, *arguments] for node in torchrun(1, nodes=2, restarts=1)])
    assert all(ended.statuses)
    said = "".join(ended.outputs)
    assert "no rank got on for 6 s (xpu_rank_timeout); behind: rank 1 (" in said
    assert f"XPU: going on with {tmp_path}" in said
    assert "is ended, because rank 1 (" in said.partition("XPU: going on")[2]
    assert all("a broken label" in output for output in ended.outputs)
    (last,) = {path.parent for path in tmp_path.rglob("results.csv")}
    assert torch.load(last / "weights" / "last.pt", weights_only=False)["epoch"] == 0
    assert not left_behind(tmp_path)
    assert ended.seconds < 110


def test_a_rank_that_is_killed_ends_a_run_without_restarts_within_a_minute(data: TrainingData, tmp_path: Path) -> None:
    wrong = """if RANK == 1 and trainer.epoch == 1:
        (HERE / "killed").write_text(str(time.time()))
        os.kill(os.getpid(), signal.SIGKILL)"""
    (command,) = torchrun(2)
    ended = launch(tmp_path, [[*command, *training(tmp_path, data("detect"), wrong, batch=4, **PLAIN_ARITHMETIC)]])
    assert time.time() - float((tmp_path / "killed").read_text()) < 60
    assert ended.statuses != [0]
    assert "Signal 9 (SIGKILL) received" in ended.outputs[0]
    (last,) = tmp_path.rglob("last.pt")
    assert torch.load(last, weights_only=False)["epoch"] == 0
    assert not left_behind(tmp_path)

"""Runs whose processes a launcher starts, one for each XPU: torchrun, on one machine and as two nodes of its own."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from ultralytics.utils import DEFAULT_CFG_DICT

import xpu_simulator

from ..conftest import Train, TrainingData
from ..training import model_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch._C._has_xpu and not xpu_simulator.is_active(), reason="two simulated XPUs are needed"),
    pytest.mark.needs("torch.distributed.is_xccl_available"),
]

# What torchrun runs: the module, with what a test wants to know or to go wrong.
SCRIPT = """
import os
import signal
import sys
import time
from pathlib import Path

import torch
from ultralytics.utils.callbacks.base import default_callbacks

import yolo_xpu_trainer.train

RANK, RESTART = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
HERE = Path(__file__).parent


def note(trainer):
    model = getattr(trainer.model, "module", trainer.model)
    seen = {{
        "weights": {{name: value.cpu() for name, value in model.state_dict().items() if "running" not in name}},
        "device": str(trainer.device),
        "epochs": [trainer.start_epoch, trainer.epoch],
        "save_dir": str(trainer.save_dir),
        "world_size": trainer.world_size,
        "loss": sum(float(value) for value in trainer.tloss.values()),
    }}
    torch.save(seen, HERE / f"rank{{RANK}}-{{trainer.epoch}}.pt")
    (HERE / f"pid{{RANK}}").write_text(str(os.getpid()))


def go_wrong(trainer):
    {wrong}


def gradients(trainer):
    if "GRADIENTS" not in os.environ or trainer.start_epoch:
        return
    model, dataset = trainer.model, trainer.test_loader.dataset
    weights = {{name: value.detach().cpu().clone() for name, value in model.module.state_dict().items()}}
    model.train()
    batch = trainer.preprocess_batch(dataset.collate_fn([dataset[i] for i in range(8)]))
    outputs = torch.utils._pytree.tree_leaves(model(batch["img"]))
    (sum(output.square().mean() for output in outputs) * 8 * trainer.world_size).backward()
    found = {{name: value.grad.cpu().clone() for name, value in model.module.named_parameters() if value.requires_grad}}
    torch.save({{"weights": weights, "gradients": found}}, HERE / f"gradients{{RANK}}.pt")
    trainer.optimizer.zero_grad()


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
        statuses = [process.poll() or 0 if wait_for_ranks else process.wait(timeout=180) for process in processes]
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


def test_a_node_whose_rank_is_killed_goes_on_with_the_other_one_whose_disk_it_does_not_share(
    data: TrainingData, tmp_path: Path, train: Train
) -> None:
    wrong = "if RANK == 1 and not RESTART and trainer.epoch == 1: os.kill(os.getpid(), signal.SIGKILL)"
    arguments = training(tmp_path, data("detect"), wrong, batch=8, **PLAIN_ARITHMETIC)
    nodes = [[*node, *arguments] for node in torchrun(1, nodes=2, restarts=1)]
    ended = launch(tmp_path, nodes, profiles=("arc-b580", "arc-a770"), GRADIENTS="1")
    assert ended.statuses == [0, 0], ended.outputs
    seen = notes(tmp_path, 2, epoch=1)
    assert [one["epochs"] for one in seen] == [[1, 1], [1, 1]]
    assert not differing(seen[0]["weights"], seen[1]["weights"])
    folders = {Path(one["save_dir"]) for one in seen}
    assert folders == {tmp_path / f"node{number}" / "runs" / "train" for number in range(2)}
    assert not left_behind(tmp_path)
    said = "".join(ended.outputs)
    assert "GPUs of different kinds train together, so each step waits for the slowest: rank " in said
    assert_gradients_are_those_of_one_process(tmp_path, data("detect"), train)


def assert_gradients_are_those_of_one_process(folder: Path, data: str, train: Train) -> None:
    """Compare the gradients of 2 ranks × 8 images with those of 1 × 16, which are the same 8 twice.

    Then both have the same statistics in batch normalisation, and differ in the order of sums only. The loss is the
    square of the model's outputs, scaled by the batch as Ultralytics' own: that one divides by what a rank's targets
    come to, or 1 if that is more, as it is for an untrained model, so that it isn't the same for a part of a batch.
    """
    two = [torch.load(folder / f"gradients{rank}.pt") for rank in range(2)]
    assert not differing(two[0]["gradients"], two[1]["gradients"])
    one: dict[str, torch.Tensor] = {}

    def gradients(trainer: Any) -> None:
        dataset = trainer.test_loader.dataset
        trainer.model.load_state_dict(two[0]["weights"])
        trainer.model.train()
        images = [dataset[i % 8] for i in range(16)]
        batch = trainer.preprocess_batch(dataset.collate_fn(images))
        outputs = torch.utils._pytree.tree_leaves(trainer.model(batch["img"]))
        (sum(output.square().mean() for output in outputs) * 16).backward()
        one.update({name: p.grad.cpu().clone() for name, p in trainer.model.named_parameters() if p.requires_grad})
        trainer.optimizer.zero_grad()

    train(data=data, amp=False, val=False, callbacks={"on_train_start": gradients}, **PLAIN_ARITHMETIC)
    assert one.keys() == two[0]["gradients"].keys()
    for name, expected in one.items():
        difference = (two[0]["gradients"][name] - expected).abs().max()
        assert difference <= 1e-4 * expected.abs().max() + 1e-7, name


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


SEVERAL = """
import json
import os
import sys
from pathlib import Path

import torch
from ultralytics import YOLO

HERE = Path(__file__).parent
RANK = int(os.environ["RANK"])


def weights(trainer):
    model = getattr(trainer.model, "module", trainer.model)
    return torch.cat([p.detach().float().cpu().flatten() for p in model.parameters()])


def train(model, **arguments):
    seen = {}

    def before(trainer):
        seen["before"] = weights(trainer)

    def after(trainer):
        mine = weights(trainer)
        everyones = trainer.xpu.group.gather(mine)
        seen["equal"] = all(torch.equal(mine, other) for other in everyones)
        seen["changed"] = not torch.equal(mine, seen.pop("before"))
        seen["images"] = trainer.train_loader.batch_size
        seen["rect"] = getattr(trainer.train_loader.dataset, "rect", None)
        seen["folder"] = trainer.save_dir.name
        seen["sum"] = float(mine.double().sum())
        seen["static"], seen["views"] = trainer.model.static_graph, trainer.model.gradient_as_bucket_view

    yolo = YOLO(model)
    yolo.add_callback("on_train_start", before)
    yolo.add_callback("on_train_epoch_end", after)
    try:
        results = yolo.train(trainer="xpu", device="xpu", epochs=1, workers=0, plots=False, **arguments)
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


def test_every_task_trains_on_two_gpus_with_options_that_they_must_share(data: TrainingData, tmp_path: Path) -> None:
    ordinary = {"imgsz": 64, "batch": 4, "name": "run"}
    trainings = [
        {"model": model_of(task), "data": data(task), **ordinary}
        for task in ("detect", "segment", "classify", "pose", "obb")
    ]
    scale = True if DEFAULT_CFG_DICT["multi_scale"] is False else 0.5
    trainings[0] |= {"batch": 5, "cache": "ram", "multi_scale": scale}
    trainings[1] |= {"rect": True}
    trainings.append({**trainings[0], "batch": 1})
    trainings.append({**trainings[0], "batch": -1})
    seen, said = several(tmp_path, 2, trainings, "max-1550")
    for rank in seen:
        for number, one in enumerate(rank[:5]):
            assert one["equal"], trainings[number]
            assert one["changed"], trainings[number]
            assert one["images"] == 2
            assert not one["rect"]
            assert one["views"]
        assert [one["static"] for one in rank[:5]] == [False, False, True, False, False]
        assert len({one["folder"] for one in rank[:5]}) == 5
        assert rank[5]["error"].startswith("OptionValueError: batch=1 can't be shared by 2 GPUs: each of them")
        assert rank[6]["error"].startswith("OptionValueError: batch=-1 can't be shared by 2 GPUs: AutoBatch")
    assert said.count("batch=5 isn't a multiple of 2 GPUs: each trains on 2, so that a step has 4 images.") == 1
    assert said.count("training with rect=False") == 1


def test_eight_ranks_end_with_the_same_weights_and_count_each_object_once(data: TrainingData, tmp_path: Path) -> None:
    training = {"model": model_of("detect"), "data": data("detect"), "imgsz": 64, "batch": 8}
    seen, _ = several(tmp_path, 8, [training], "max-1550-x6")
    assert all(rank[0]["equal"] and rank[0]["changed"] for rank in seen)
    labels = Path(data("detect")).parent / "labels" / "val"
    # Two images a batch of validation: four ranks have none.
    assert seen[0][0]["objects"] == sum(len(path.read_text().splitlines()) for path in labels.glob("*.txt"))


def test_two_gpus_without_xccl_train_by_way_of_the_host_where_that_is_asked_for(
    data: TrainingData, tmp_path: Path
) -> None:
    training = {"model": model_of("detect"), "data": data("detect"), "imgsz": 32, "batch": 4, "amp": False}
    by_host = {**training, "xpu_gloo": True}
    trainings = [training, by_host, {**by_host, "xpu_bf16_gradients": True}]
    seen, said = several(tmp_path, 2, trainings, "max-1550", XPU_SIMULATOR_FAULTS="no_xccl")
    for refused, trained, rounded in seen:
        assert refused["error"].startswith("NoXCCLError: Asked for xpu:")
        assert "xpu_gloo=True" in refused["error"]
        assert trained["equal"]
        assert trained["changed"]
        assert rounded["equal"]
        assert 0 < abs(rounded["sum"] - trained["sum"]) < 1e-3 * abs(trained["sum"])
    assert said.count("gradients by way of the host (gloo)") == 2
    assert said.count("gradients exchanged in bf16") == 1


@pytest.fixture
def namespaces() -> Iterator[list[str]]:
    """Two network namespaces with a link between them, whose addresses end in .1 and .2."""
    names = [f"xpu{os.getpid() % 10000}{side}" for side in "ab"]

    def ip(*arguments: str) -> None:
        done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"network namespaces can't be made here: {done.stderr.strip()}")

    if shutil.which("ip") is None:
        pytest.skip("network namespaces can't be made here: there is no `ip`")
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", "wire", "netns", names[0], "type", "veth", "peer", "name", "wire", "netns", names[1])
        for number, name in enumerate(names, 1):
            ip("-n", name, "address", "add", f"10.99.0.{number}/24", "dev", "wire")
            ip("-n", name, "link", "set", "wire", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def two_by_two(namespaces: list[str], arguments: Sequence[str]) -> dict[str, Any]:
    """Return what `launch` is told for two nodes of two GPUs, each node in a namespace of its own."""
    where = ["--rdzv-backend=c10d", "--rdzv-endpoint=10.99.0.1:29500", f"--rdzv-id={os.getpid()}", "--nnodes=2"]
    where += ["--nproc-per-node=2", "--monitor-interval=0.2"]
    return {
        "commands": [  # torchrun looks for the endpoint among the addresses of the machine's name
            [
                "torch.distributed.run",
                *where,
                f"--rdzv-conf=is_host={first}",
                f"--local-addr=10.99.0.{number}",
                *arguments,
            ]
            for number, first in ((1, "true"), (2, "false"))
        ],
        "within": [["ip", "netns", "exec", name] for name in namespaces],
        "GLOO_SOCKET_IFNAME": "wire",
    }


def test_two_nodes_of_two_gpus_end_with_the_same_weights(
    data: TrainingData, tmp_path: Path, namespaces: list[str]
) -> None:
    ended = launch(tmp_path, **two_by_two(namespaces, training(tmp_path, data("detect"), batch=8, **PLAIN_ARITHMETIC)))
    assert ended.statuses == [0, 0], ended.outputs
    (first, *others), before = notes(tmp_path, 4, epoch=1), notes(tmp_path, 4, epoch=0)
    assert [one["device"] for one in (first, *others)] == ["xpu:0", "xpu:1"] * 2
    assert [one["world_size"] for one in (first, *others)] == [4] * 4
    assert all(not differing(first["weights"], other["weights"]) for other in others)
    assert differing(first["weights"], before[0]["weights"])
    assert not left_behind(tmp_path)


def test_a_network_cut_between_nodes_ends_both_within_a_minute(
    data: TrainingData, tmp_path: Path, namespaces: list[str]
) -> None:
    cut = f"ip netns exec {namespaces[0]} ip link set wire down"
    wrong = f"""if RANK == 0 and trainer.epoch == 1:
        (HERE / "cut").write_text(str(time.time()))
        os.system("{cut}")"""
    arguments = training(tmp_path, data("detect"), wrong, batch=8, **PLAIN_ARITHMETIC)
    # torchrun itself waits for the store on the other side
    ended = launch(tmp_path, wait_for_ranks=4, **two_by_two(namespaces, arguments))
    for output in ended.outputs:
        assert "gave no sign of life for 30 s" in output or "no rank can be reached any more" in output, output
    assert time.time() - float((tmp_path / "cut").read_text()) < 60
    (last,) = tmp_path.rglob("last.pt")
    assert torch.load(last, weights_only=False)["epoch"] == 0
    assert not left_behind(tmp_path)

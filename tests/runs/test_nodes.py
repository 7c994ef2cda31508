"""Runs of two nodes, each with a torchrun and a folder of its own; some in network namespaces of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from ..conftest import Train, TrainingData
from ..datasets import WRITERS
from .launching import PLAIN_ARITHMETIC, differing, launch, left_behind, needed, notes, torchrun, training

pytestmark = needed


def test_a_node_whose_rank_is_killed_goes_on_with_the_other_one_whose_disk_it_does_not_share(
    data: TrainingData, tmp_path: Path, train: Train
) -> None:
    wrong = "if RANK == 1 and not RESTART and trainer.epoch == 1: os.kill(os.getpid(), signal.SIGKILL)"
    arguments = training(tmp_path, data("detect"), wrong, batch=8, amp=True, **PLAIN_ARITHMETIC)
    nodes = [[*node, *arguments] for node in torchrun(1, nodes=2, restarts=1)]
    ended = launch(tmp_path, nodes, profiles=("arc-b580", "core-ultra-155h"), GRADIENTS="1")
    assert ended.statuses == [0, 0], ended.outputs
    seen = notes(tmp_path, 2, epoch=1)
    assert [one["epochs"] for one in seen] == [[1, 1], [1, 1]]
    assert [one["precision"] for one in seen] == ["fp16", "fp16"], "one of the two has no bf16"
    assert not differing(seen[0]["weights"], seen[1]["weights"])
    folders = {Path(one["save_dir"]) for one in seen}
    assert folders == {tmp_path / f"node{number}" / "runs" / "train" for number in range(2)}
    assert not left_behind(tmp_path)
    said = "".join(ended.outputs)
    assert "GPUs of different kinds train together, so each step waits for the slowest: rank " in said
    assert_gradients_are_those_of_one_process(tmp_path, data("detect"), train)


def assert_gradients_are_those_of_one_process(folder: Path, data: str, train: Train) -> None:
    """Compare the gradients of 2 ranks × 8 images with those of 1 × 16, with batch normalisation left out of it.

    What differs is the order of sums. The loss is the square of the model's outputs, scaled by the batch as
    Ultralytics' own: that one divides by what a rank's targets come to, or 1 if that is more, as it is for an untrained
    model, so that it isn't the same for a part of a batch.
    """
    two = [torch.load(folder / f"gradients{rank}.pt") for rank in range(2)]
    assert not differing(two[0]["gradients"], two[1]["gradients"])
    assert set(differing(two[0]["alone"], two[1]["alone"])) == set(two[0]["alone"])
    one: dict[str, torch.Tensor] = {}

    def gradients(trainer: Any) -> None:
        model = trainer.model
        model.load_state_dict(two[0]["weights"])
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()
        images = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        outputs = torch.utils._pytree.tree_leaves(model(images.to(trainer.device)))
        (sum(output.square().mean() for output in outputs) * 16).backward()
        one.update({name: p.grad.cpu().clone() for name, p in model.named_parameters() if p.requires_grad})
        trainer.optimizer.zero_grad()

    train(data=data, amp=False, val=False, callbacks={"on_train_start": gradients}, **PLAIN_ARITHMETIC)
    assert one.keys() == two[0]["gradients"].keys()
    for name, expected in one.items():
        difference = (two[0]["gradients"][name] - expected).abs().max()
        assert difference <= 1e-4 * expected.abs().max(), name


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


def two_by_two(namespaces: list[str], arguments: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Return what `launch` is told for two nodes of two GPUs, each in a namespace and with arguments of its own."""
    where = ["--rdzv-backend=c10d", "--rdzv-endpoint=10.99.0.1:29500", f"--rdzv-id={os.getpid()}", "--nnodes=2"]
    where += ["--nproc-per-node=2", "--monitor-interval=0.2"]
    return {
        "commands": [  # torchrun looks for the endpoint among the addresses of the machine's name
            [
                "torch.distributed.run",
                *where,
                f"--rdzv-conf=is_host={first}",
                f"--local-addr=10.99.0.{number}",
                *own,
            ]
            for number, first, own in zip((1, 2), ("true", "false"), arguments, strict=True)
        ],
        "within": [["ip", "netns", "exec", name] for name in namespaces],
        "GLOO_SOCKET_IFNAME": "wire",
    }


def test_two_nodes_of_two_gpus_end_with_the_same_weights(tmp_path: Path, namespaces: list[str]) -> None:
    # On each a data set of its own, which nobody has scanned yet.
    own = [str(WRITERS["detect"](tmp_path / f"data{number}")) for number in range(2)]
    arguments = [training(tmp_path, path, batch=8, **PLAIN_ARITHMETIC) for path in own]
    ended = launch(tmp_path, **two_by_two(namespaces, arguments))
    assert ended.statuses == [0, 0], ended.outputs
    (first, *others), before = notes(tmp_path, 4, epoch=1), notes(tmp_path, 4, epoch=0)
    assert [one["device"] for one in (first, *others)] == ["xpu:0", "xpu:1"] * 2
    assert [one["world_size"] for one in (first, *others)] == [4] * 4
    assert all(not differing(first["weights"], other["weights"]) for other in others)
    assert differing(first["weights"], before[0]["weights"])
    for rank, one in enumerate((first, *others)):
        labels = Path(own[rank // 2]).parent / "labels"
        assert one["scanned"] == ([] if rank % 2 else [str(labels / split) for split in ("train", "val")])
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
    ended = launch(tmp_path, wait_for_ranks=4, **two_by_two(namespaces, [arguments] * 2))
    for output in ended.outputs:
        assert "gave no sign of life for 30 s" in output or "no rank can be reached any more" in output, output
    assert time.time() - float((tmp_path / "cut").read_text()) < 60
    (last,) = tmp_path.rglob("last.pt")
    assert torch.load(last, weights_only=False)["epoch"] == 0
    assert not left_behind(tmp_path)

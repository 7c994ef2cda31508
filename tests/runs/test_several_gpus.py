"""Trainings of several processes, one for each XPU of a machine, one training after the other in the same processes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from ultralytics import YOLOE
from ultralytics.utils import DEFAULT_CFG_DICT

from ..conftest import TrainingData
from ..training import model_of
from . import text_encoder
from .cases import CASES, RTDETR, TINY_RTDETR, open_data
from .launching import needed, several

pytestmark = needed


def test_every_task_trains_on_two_gpus_with_options_that_they_must_share(data: TrainingData, tmp_path: Path) -> None:
    ordinary = {"imgsz": 64, "batch": 4, "name": "run"}
    trainings = [
        {"model": model_of(task), "data": data(task), **ordinary}
        for task in ("detect", "segment", "classify", "pose", "obb")
    ]
    scale = True if DEFAULT_CFG_DICT["multi_scale"] is False else 0.5
    trainings[0] |= {"batch": 5, "cache": "ram", "multi_scale": scale}
    trainings[1] |= {"rect": True}
    trainings[3] |= {"workers": 2}
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
        assert rank[3]["ahead"] == 2, "a batch wasn't copied ahead of its step"
        assert rank[3]["pinned"] >= 2
        assert [one["static"] for one in rank[:5]] == [False, False, True, False, False]
        assert len({one["folder"] for one in rank[:5]}) == 5
        assert rank[5]["error"].startswith("OptionValueError: batch=1 can't be shared by 2 GPUs: each of them")
        assert rank[6]["error"].startswith("OptionValueError: batch=-1 can't be shared by 2 GPUs: AutoBatch")
    for first, second in zip(*(rank[:5] for rank in seen), strict=True):
        assert not set(first["files"]) & set(second["files"])
    assert len(seen[0][3]["files"]) == 4
    assert said.count("batch=5 isn't a multiple of 2 GPUs: each trains on 2, so that a step has 4 images.") == 1
    assert said.count("training with rect=False") == 1


def test_every_other_trainer_trains_on_two_gpus(data: TrainingData, tmp_path: Path) -> None:
    here = tmp_path / "node0"  # where the processes work
    here.mkdir()
    (here / RTDETR).write_text(TINY_RTDETR)
    text_encoder.write_mobileclip(here)
    shutil.copy(text_encoder.__file__, tmp_path / "clip.py")  # beside their script
    many = open_data(tmp_path / "open")
    trainings = []
    for name, case in list(CASES.items())[5:]:
        model = case.model
        if case.pretrained:
            model = str(here / f"{case.task}.pt")
            YOLOE(case.model).save(model)
        found = many if case.data == "open" else data(case.data)
        trainings.append({"model": model, "trainer": name, "task": case.task, "data": found, "imgsz": 64, "batch": 4})
    seen, _ = several(tmp_path, 2, trainings, "max-1550")
    for rank in seen:
        for training, one in zip(trainings, rank, strict=True):
            assert "error" not in one, (training, one)
            assert one["equal"], training
            assert one["changed"], training
            assert one["finite"], training


@pytest.mark.parametrize("ranks", [4, 8])
def test_many_ranks_end_with_the_same_weights_and_count_each_object_once(
    data: TrainingData, tmp_path: Path, ranks: int
) -> None:
    training = {"model": model_of("detect"), "data": data("detect"), "imgsz": 64, "batch": 8}
    seen, _ = several(tmp_path, ranks, [training], "max-1550-x6")
    assert [rank[0]["device"] for rank in seen] == [f"xpu:{rank}" for rank in range(ranks)]
    assert all(rank[0]["equal"] and rank[0]["changed"] for rank in seen)
    labels = Path(data("detect")).parent / "labels" / "val"
    # Two images a batch of validation: of eight ranks four have none.
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

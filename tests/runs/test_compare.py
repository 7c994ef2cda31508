"""`yolo-xpu compare`: exports that are as good as their checkpoint, and exports that aren't."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch

from yolo_xpu_trainer.commands import main
from yolo_xpu_trainer.commands.compare import Found, verdict
from yolo_xpu_trainer.commands.synthetic import NAMES, write

pytestmark = pytest.mark.slow

SIZE = 64


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint and a data set on which it is good without a training: the labels are what it detects."""
    from ultralytics import YOLO
    from ultralytics.nn.tasks import DetectionModel

    folder = tmp_path_factory.mktemp("compare")
    torch.manual_seed(0)
    data = write("detect", folder / "data", images=4, size=SIZE, names=NAMES[:1], classes=1)
    network = DetectionModel("yolo11n.yaml", nc=1, verbose=False)
    network.names = {0: NAMES[0]}
    images = [cv2.imread(str(file)) for file in sorted((folder / "data" / "images" / "train").glob("*.png"))]
    batch = torch.stack([torch.from_numpy(image).permute(2, 0, 1) / 255 for image in images])
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        network.train()(batch)  # for the statistics of these images: without them every feature is the same
        for branch in network.model[-1].cv3:
            branch[-1].bias.zero_()
        for branch in network.model[-1].cv2:  # each box is its cell: labels end at the image's edge, detections don't
            branch[-1].weight.zero_()
            branch[-1].bias.view(4, -1)[:, :2] = 10
    model = YOLO("yolo11n.yaml")
    model.model = network.eval()
    model.ckpt = {"train_args": {"imgsz": SIZE, "data": str(data), "task": "detect"}}
    model.save(str(folder / "best.pt"))
    for result in YOLO(str(folder / "best.pt")).predict(folder / "data" / "images" / "val", conf=0.5, device="cpu"):
        lines = [f"0 {' '.join(map(str, box))}" for box in result.boxes.xywhn.tolist()]
        Path(folder, "data", "labels", "val", f"{Path(result.path).stem}.txt").write_text("\n".join(lines))
    return folder / "best.pt"


def export(checkpoint: Path, target: Path, change: Callable[[Any], None] = lambda head: None, imgsz: int = SIZE) -> str:
    """Export a checkpoint as TorchScript, with a head that was changed."""
    from ultralytics import YOLO

    model = YOLO(str(checkpoint))
    with torch.no_grad():
        change(model.model.model[-1])
    made = model.export(format="torchscript", imgsz=imgsz, device="cpu")
    return str(shutil.move(made, target))


def sees_nothing(head: Any) -> None:
    for branch in head.cv3:
        branch[-1].weight.zero_()
        branch[-1].bias.fill_(-100)


def misplaces(head: Any) -> None:
    for branch in head.cv2:
        branch[-1].bias.view(4, -1)[0, 2] = 10  # half a cell too far to the left


def rows(printed: str) -> dict[str, list[str]]:
    """Return the table's rows, by their model's name."""
    return {words[0]: words[1:] for words in map(str.split, printed.splitlines()) if words}


def test_an_export_as_good_as_its_checkpoint_passes(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    good = export(checkpoint, tmp_path / "good.torchscript")
    capsys.readouterr()
    assert main(["compare", str(checkpoint), good]) == 0
    found = rows(capsys.readouterr().out)
    assert float(found["best.pt"][0]) > 0.05
    assert int(found["best.pt"][2]) > 50
    assert found["good.torchscript"][-2:] == ["as", "good"]
    assert abs(float(found["good.torchscript"][1])) <= 0.02


def test_exports_that_find_nothing_or_less_are_told_from_those_of_another_size(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    files = [
        export(checkpoint, tmp_path / "blind.torchscript", sees_nothing),
        export(checkpoint, tmp_path / "askew.torchscript", misplaces),
        export(checkpoint, tmp_path / "small.torchscript", imgsz=32),
    ]
    (tmp_path / "damaged.torchscript").write_bytes(b"PK")
    capsys.readouterr()
    assert main(["compare", str(checkpoint), *files, str(tmp_path / "damaged.torchscript")]) == 1
    printed = capsys.readouterr().out
    found = rows(printed)
    assert found["blind.torchscript"][0] == "0.000"
    assert found["blind.torchscript"][-2:] == ["finds", "nothing"]
    assert found["askew.torchscript"][-1] == "worse"
    assert "other image size: 32×32; --imgsz 32 compares it" in printed
    assert "not validated" in printed
    assert "damaged.torchscript: " in printed
    assert main(["compare", str(checkpoint), files[2]]) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere.pt", "nowhere.onnx"], "there is no nowhere.pt"),
        (["{checkpoint}", "nowhere_openvino_model"], "there is no nowhere_openvino_model"),
        (["{text}", "{checkpoint}"], "is no checkpoint"),
        (["{damaged}", "{checkpoint}"], "can't be loaded"),
        (["{checkpoint}", "{checkpoint}", "--data", "nowhere.yaml"], "can't be validated"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    words: list[str], said: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {"checkpoint": checkpoint, "text": tmp_path / "best.txt", "damaged": tmp_path / "damaged.pt"}
    for name in ("text", "damaged"):
        files[name].write_text("no model")
    assert main(["compare", *(word.format(**files) for word in words)]) == 2
    assert said in capsys.readouterr().err


def test_a_checkpoint_that_finds_nothing_is_refused(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from ultralytics import YOLO

    blind = YOLO(str(checkpoint))
    with torch.no_grad():
        sees_nothing(blind.model.model[-1])
    blind.save(str(tmp_path / "blind.pt"))
    data = str(checkpoint.parent / "data" / "data.yaml")
    given = ["compare", str(tmp_path / "blind.pt"), str(checkpoint), "--data", data, "--imgsz", str(SIZE)]
    assert main(given) == 2
    assert "itself finds nothing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("after", "said"),
    [
        ({"mAP50-95(B)": 0.48, "mAP50-95(M)": 0.40}, "as good"),
        ({"mAP50-95(B)": 0.50, "mAP50-95(M)": 0.37}, "worse"),  # masks alone
        ({"mAP50-95(B)": 0.50, "mAP50-95(M)": float("nan")}, "worse"),
        ({"mAP50-95(B)": 0.0, "mAP50-95(M)": 0.0}, "finds nothing"),
    ],
)
def test_each_of_a_tasks_metrics_counts(after: dict[str, float], said: str) -> None:
    reference = Found("best.pt", {"mAP50-95(B)": 0.5, "mAP50-95(M)": 0.4})
    assert verdict(reference, Found("x", after), tolerance=0.0201) == said


def test_nothing_is_within_no_tolerance() -> None:
    assert verdict(Found("best.pt", {"mAP50-95(B)": 0.01}), Found("x", {"mAP50-95(B)": 0.0}), 0.5) == "finds nothing"

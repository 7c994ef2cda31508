import pytest
import torch
from ultralytics import YOLO
from xpu_grey import xpu_precision

from yolo_xpu_trainer import devices


def test_a_card_of_twelve_gigabytes_computes_in_fp32(xpu: torch.device) -> None:
    assert xpu_precision(devices.info(0), requested=True).name == "fp32"
    assert xpu_precision(devices.info(0), requested="bf16") is None


@pytest.mark.xpu_profile("core-ultra-155h")
def test_an_integrated_gpu_is_left_to_the_built_in_policy(xpu: torch.device) -> None:
    assert xpu_precision(devices.info(0), requested=True) is None


def test_it_trains_on_grey_images(xpu: torch.device, data: str) -> None:
    seen = []

    def look(trainer) -> None:
        first = trainer.model.model[0].conv
        first.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]) if layer.training else None)

    model = YOLO("yolo11n.yaml")
    model.add_callback("on_train_start", look)
    model.train(trainer="grey", data=data, epochs=1, imgsz=32, workers=0, plots=False)
    assert model.trainer.xpu.precision.name == "fp32"
    assert seen
    for images in seen:
        assert images.device == xpu
        assert torch.equal(images[:, 0], images[:, 1])


@pytest.fixture
def data(tmp_path, monkeypatch) -> str:
    """Four images of noise, with a box in the middle."""
    import cv2
    import numpy as np

    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    for i in range(4):
        image = np.random.default_rng(i).integers(0, 255, (32, 32, 3), dtype=np.uint8)
        cv2.imwrite(f"images/{i}.png", image)
        (tmp_path / "labels" / f"{i}.txt").write_text("0 0.5 0.5 0.5 0.5")
    (tmp_path / "data.yaml").write_text(f"path: {tmp_path}\ntrain: images\nval: images\nnames: [box]\n")
    return str(tmp_path / "data.yaml")

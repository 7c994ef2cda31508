"""What a run changes in Ultralytics holds for the process, so a second one in another thread is refused."""

from __future__ import annotations

import threading
from typing import Any

from yolo_xpu_trainer.errors import RunUnderWayError

from ..conftest import TrainingData

SMALL = {"epochs": 1, "imgsz": 64, "batch": 4, "workers": 0, "plots": False, "val": False, "device": "xpu:0"}


def test_a_second_run_in_another_thread_is_refused_and_the_first_goes_on(xpu: Any, data: TrainingData) -> None:
    from ultralytics import YOLO

    from yolo_xpu_trainer import XPUDetectionTrainer

    refused: list[BaseException] = []

    def second() -> None:
        try:
            YOLO("yolo11n.yaml").train(trainer=XPUDetectionTrainer, data=data("detect"), name="second", **SMALL)
        except RunUnderWayError as error:
            refused.append(error)

    def start_another(trainer: Any) -> None:
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()

    model = YOLO("yolo11n.yaml")
    model.add_callback("on_train_start", start_another)
    model.train(trainer=XPUDetectionTrainer, data=data("detect"), name="first", **SMALL)
    assert [type(error) for error in refused] == [RunUnderWayError]
    assert model.trainer.last.exists()
    YOLO("yolo11n.yaml").train(trainer=XPUDetectionTrainer, data=data("detect"), name="third", **SMALL)

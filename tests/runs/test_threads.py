"""What a run changes in Ultralytics holds for the process, so a second one in another thread is refused."""

from __future__ import annotations

import threading
from typing import Any

from yolo_xpu_trainer.errors import RunUnderWayError

from ..conftest import Train


def test_a_second_run_in_another_thread_is_refused_and_the_first_goes_on(train: Train) -> None:
    refused: list[BaseException] = []

    def second() -> None:
        try:
            train(name="second")
        except RunUnderWayError as error:
            refused.append(error)

    def start_another(trainer: Any) -> None:
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()

    trainer = train(name="first", callbacks={"on_train_start": start_another})
    assert [type(error) for error in refused] == [RunUnderWayError]
    assert trainer.last.exists()
    train(name="third")

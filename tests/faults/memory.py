"""A training of many epochs, whose memory after the last is compared with that after the fifth. Run as a script.

`memory.py FOLDER EPOCHS`. A line of JSON says by how much they differ.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any

import psutil
import torch

FIRST = 5


def main() -> None:
    folder, epochs = Path(sys.argv[1]), int(sys.argv[2])
    from ultralytics import YOLO

    seen: dict[int, dict[str, int]] = {}
    emptied: list[int] = []
    in_steps: list[int] = []
    empty_cache = torch.xpu.empty_cache

    def count() -> None:
        emptied.append(1)
        empty_cache()

    def look(trainer: Any) -> None:
        gc.collect()
        seen[trainer.epoch + 1] = {
            "allocated": torch.xpu.memory_allocated(),
            "reserved": torch.xpu.memory_reserved(),
            "host": psutil.Process().memory_info().rss,
        }

    torch.xpu.empty_cache = count
    model: Any = YOLO("yolo11n.yaml")
    model.add_callback("on_train_epoch_start", lambda trainer: emptied.clear())
    model.add_callback("on_train_epoch_end", lambda trainer: in_steps.append(len(emptied)))
    model.add_callback("on_fit_epoch_end", look)
    model.train(
        data=str(folder / "data.yaml"), project=str(folder), name="run", device="xpu:0", epochs=epochs, imgsz=32,
        batch=4, workers=0, plots=False,
    )  # fmt: skip
    first, last = seen[FIRST], seen[epochs]
    growth = {name: last[name] / first[name] - 1 for name in first}
    more = last["reserved"] - first["reserved"]
    print(json.dumps({"epochs": epochs, **growth, "reserved_bytes": more, "emptied": sum(in_steps)}), flush=True)


if __name__ == "__main__":
    main()

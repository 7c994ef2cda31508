"""What is checked on one version of Ultralytics and one simulated device. Nothing of this package is imported.

A capability a function; each prints a line of JSON. The command line runs in a process of its own.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

DTYPE = {"arc-b580": "bfloat16", "arc-a770": "bfloat16", "core-ultra-155h": "float16"}


MODELS = {
    "detect": "yolo11n",
    "segment": "yolo11n-seg",
    "pose": "yolo11n-pose",
    "obb": "yolo11n-obb",
    "classify": "yolo11n-cls",
}


def make_data(root: Path, task: str = "detect") -> Path:
    """Draw a tiny data set: bright rectangles of three colours on noise; whole images of them to classify."""
    if task == "classify":
        return make_folders(root)
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        images, labels = root / "images" / split, root / "labels" / split
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        for i in range(count):
            image = rng.integers(0, 80, (64, 64, 3), dtype=np.uint8)
            lines = []
            for _ in range(2):
                c, (w, h) = int(rng.integers(3)), rng.integers(14, 30, 2)
                x, y = rng.integers(0, 64 - w), rng.integers(0, 64 - h)
                image[y : y + h, x : x + w, c] = 255
                box = [(x + w / 2) / 64, (y + h / 2) / 64, w / 64, h / 64]
                corners = [x / 64, y / 64, (x + w) / 64, y / 64, (x + w) / 64, (y + h) / 64, x / 64, (y + h) / 64]
                label = {"detect": box, "pose": box + corners}.get(task, corners)
                lines.append(" ".join(map(str, [c, *label])))
            cv2.imwrite(str(images / f"{i}.png"), image)
            (labels / f"{i}.txt").write_text("\n".join(lines))
    path = root / "data.yaml"
    path.write_text(f"path: {root}\ntrain: images/train\nval: images/val\nnames: [r, g, b]\nkpt_shape: [4, 2]\n")
    return path


def make_folders(root: Path) -> Path:
    """Draw noise on three colours, in a folder for each."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for c, name in enumerate("rgb"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                image = rng.integers(0, 80, (64, 64, 3), dtype=np.uint8)
                image[..., c] += 150
                cv2.imwrite(str(folder / f"{i}.png"), image)
    return root


# A plugin: Ultralytics' own DDP workers get none of the user's callbacks before 8.4.190.
NOTING = """
import hashlib
import json
import os
from pathlib import Path

from yolo_xpu_trainer import hookimpl

seen = {"weights": [], "losses": []}


def note(trainer):
    parameters = [p.detach().cpu().numpy().tobytes() for p in trainer.model.parameters()]
    seen["weights"].append(hashlib.sha256(b"".join(parameters)).hexdigest())
    mean = trainer.tloss.values() if isinstance(trainer.tloss, dict) else trainer.tloss
    seen["losses"].append(sum(map(float, mean)))
    seen["device"] = str(trainer.device)
    Path(__file__).with_name(f"rank{os.environ['RANK']}.json").write_text(json.dumps(seen))


@hookimpl
def xpu_after_setup(trainer):
    trainer.add_callback("on_train_epoch_end", note)
"""


class Checks:
    """The checks, in an order in which each may use what an earlier one made."""

    def __init__(self, profile: str) -> None:
        self.profile = profile
        self.data = str(make_data(Path.cwd() / "data"))
        self.runs = Path.cwd() / "runs"
        self.best = self.runs / "train" / "weights" / "best.pt"
        self.common: dict[str, Any] = {
            "data": self.data,
            "imgsz": 64,
            "batch": 4,
            "workers": 0,
            "plots": False,
            "project": str(self.runs / "py"),
        }

    def run(self) -> None:
        """Run every check, and say of each what came of it."""
        import ultralytics

        checks: list[Callable[[], None]] = [
            self.seed_case,
            self.same_numbers,
            self.command_line,
            self.val,
            self.predict,
            self.resume,
            # a trial of 8.4.0 is given a save_dir, which its own command line refuses
            *([self.tune] if ultralytics.__version__ != "8.4.0" else []),
            self.pinned_loading,
            self.autobatch,
            self.plain_trainer,
            # they bring devices of their own
            *([self.several_devices, self.launched] if self.profile == "arc-b580" else []),
            self.restored,
        ]
        for check in checks:
            try:
                check()
                result = "ok"
            except BaseException as error:
                traceback.print_exc()
                result = f"{type(error).__name__}: {error}".splitlines()[0]
            print("\n" + json.dumps({"capability": check.__name__.replace("_", " "), "result": result}), flush=True)

    def seed_case(self) -> None:
        """`model.to("xpu:0")` then `train()`: on the XPU from the first batch to the last validation, in autocast."""
        import torch
        from ultralytics import YOLO

        seen: dict[str, set[str]] = {"batch": set(), "conv": set(), "validated": set()}

        def look(trainer: Any) -> None:
            parameters = [p for group in trainer.optimizer.param_groups for p in group["params"]]
            assert {str(p.device) for p in parameters} == {"xpu:0"}
            unwrapped = getattr(trainer.model, "module", trainer.model)
            unwrapped.model[0].conv.register_forward_hook(
                lambda module, inputs, output: (
                    seen["batch"].add(str(inputs[0].device)),
                    seen["conv"].add(str(output.dtype).removeprefix("torch.")),
                )[0]
            )

        def look_at_validation(validator: Any) -> None:
            seen["validated"].add(str(validator.device))

        model = YOLO("yolo11s.yaml")
        model = model.to(torch.device("xpu:0"))
        model.add_callback("on_train_start", look)
        model.add_callback("on_val_end", look_at_validation)
        model.train(epochs=2, name="seed", **self.common)
        assert seen["batch"] == {"xpu:0"}, seen
        assert seen["conv"] == {DTYPE[self.profile]}, seen
        assert seen["validated"] == {"xpu:0"}, seen
        assert all(math.isfinite(float(v)) for v in model.trainer.metrics.values()), model.trainer.metrics
        checkpoint = torch.load(model.trainer.last, map_location="cpu", weights_only=False)
        assert checkpoint["train_args"]["device"] is None
        assert isinstance(checkpoint["train_args"]["amp"], bool)
        assert checkpoint["xpu_trainer"]["device"] == "xpu:0"

    def same_numbers(self) -> None:
        """Every task trains and validates in fp32 as on the CPU, bit for bit, but for what sums in another order."""
        import torch
        from ultralytics import YOLO

        torch.set_num_threads(1)
        for (task, name), optimizer in zip(MODELS.items(), ("SGD", "AdamW", "SGD", "AdamW", "SGD"), strict=True):
            data = str(make_data(Path.cwd() / task, task))
            found: list[list[float]] = []
            for device in ("cpu", "cpu", "xpu:0"):  # the first finds no cache of labels, and draws other random numbers
                losses: list[float] = []
                model = YOLO(f"{name}.yaml")
                model.add_callback("on_train_batch_end", lambda t, losses=losses: losses.append(float(t.loss)))
                model.train(
                    device=device,
                    amp=False,
                    epochs=1,
                    name=f"{task}-{device[:3]}",
                    optimizer=optimizer,
                    seed=1,
                    xpu_channels_last=False,
                    xpu_fused_optimizer=False,
                    **{**self.common, "data": data},
                )
                found.append([*losses, *map(float, model.trainer.metrics.values())])
            assert len(found[0]) > 4, found
            assert found[1] == found[2], (task, found)

    def command_line(self) -> None:
        """`yolo train` with no device at all, and with `trainer=` and an option."""
        command = [*_yolo(), "train", "model=yolo11n.yaml", f"data={self.data}", "imgsz=64", "batch=4", "plots=False"]
        command += ["workers=0", "epochs=1", f"project={self.runs}", "name=train"]
        text = _run(command)
        assert "xpu:0 Intel" in text, text
        assert "bf16 because" in text or "fp16 because" in text, text
        assert self.best.exists()
        text = _run([*command[:-1], "name=named", "trainer=xpu", "xpu_pin_memory=False", "device=xpu:0", "amp=bf16"])
        assert "amp='bf16' asks for it" in text, text
        arguments = (self.runs / "named" / "args.yaml").read_text()
        assert "xpu_pin_memory" not in arguments
        assert "trainer" not in arguments

    def val(self) -> None:
        """`val` on an index, where there is no CUDA, in Python and on the command line."""
        from ultralytics import YOLO

        model = YOLO(self.best)
        metrics = model.val(data=self.data, imgsz=64, device=0, plots=False, workers=0, xpu_pin_memory=True)
        assert math.isfinite(metrics.box.map)
        text = _run(
            [*_yolo(), "val", f"model={self.best}", f"data={self.data}", "imgsz=64", "device=xpu", "plots=False"]
        )
        assert "xpu:0 Intel" in text, text

    def predict(self) -> None:
        """`predict` on an XPU, in Python and on the command line."""
        from ultralytics import YOLO

        source = str(Path("data/images/val/0.png"))
        result = YOLO(self.best).predict(source, imgsz=64, device="xpu:0", conf=0.0001, verbose=False)[0]
        assert result.boxes.data.device.type == "xpu", result.boxes.data.device
        report = Path.cwd() / "launches.json"
        command = [*_yolo(), "predict", f"model={self.best}", f"source={source}", "imgsz=64", "save=False"]
        _run(command, XPU_SIMULATOR_REPORT=str(report))  # before 8.3.200 or so, its output doesn't name the device
        written = list(Path.cwd().glob("launches*.json"))
        assert written
        assert json.loads(written[0].read_text())["launches"] > 100

    def resume(self) -> None:
        """A run that was interrupted goes on, on the same device, in the same precision."""
        import torch
        from ultralytics import YOLO

        class Interruption(Exception):  # noqa: N818 - nothing went wrong
            pass

        def interrupt(trainer: Any) -> None:
            raise Interruption

        model = YOLO("yolo11n.yaml")
        model.add_callback("on_model_save", interrupt)
        with contextlib.suppress(Interruption):
            model.train(epochs=3, name="resumed", device="xpu:0", amp="fp16", **self.common)
        last = model.trainer.last
        scale = torch.load(last, map_location="cpu", weights_only=False)["xpu_trainer"].get("scaler", {}).get("scale")
        model = YOLO(last)
        scales: list[float] = []
        model.add_callback("on_train_start", lambda trainer: scales.append(trainer.scaler.get_scale()))
        model.train(resume=True)
        assert model.trainer.start_epoch == 1
        assert str(model.trainer.device) == "xpu:0"
        assert model.trainer.xpu.precision.name == "fp16"
        assert scales == [scale], (scales, scale)

    def tune(self) -> None:
        """A search of the genetic tuner trains as asked for, and goes on where it was left."""
        import torch
        from ultralytics import YOLO
        from ultralytics.engine import tuner

        if hasattr(tuner, "plot_tune_results"):  # which fails in 8.3.200 to 8.3.240 where no trial has a fitness
            tuner.plot_tune_results = lambda *args, **kwargs: None
        asked = {**self.common, "project": str(self.runs / "search"), "epochs": 1, "val": False}
        for iterations, given in ((1, {}), (2, {"resume": True})):
            YOLO("yolo11n.yaml").tune(
                iterations=iterations, device="xpu:0", amp="bf16", xpu_self_check=False, **asked, **given
            )
        (results,) = (self.runs / "search").rglob("tune_results.*s*")  # csv, or ndjson
        rows = results.read_text().splitlines()
        assert len(rows) - (results.suffix == ".csv") == 2, rows
        saved = [*(self.runs / "search").rglob("last.pt")]
        assert saved, results
        for path in saved:
            settings = torch.load(path, map_location="cpu", weights_only=False)["xpu_trainer"]
            assert (settings["device"], settings["precision"]) == ("xpu:0", "bf16"), settings

    def pinned_loading(self) -> None:
        """With worker processes, batches arrive in pinned memory and are copied without waiting."""
        from ultralytics import YOLO

        import xpu_simulator

        model = YOLO("yolo11n.yaml")
        with xpu_simulator.count() as counts:
            model.train(epochs=1, name="pinned", device="xpu:0", val=False, **{**self.common, "workers": 2})
        batches = 2
        assert counts.h2d["pinned", "non_blocking"] >= batches, counts.h2d
        pageable = [line for line in counts.h2d_lines if "preprocess_batch" in str(line) and "pageable" in str(line)]
        assert not pageable, pageable

    def autobatch(self) -> None:
        """`batch=-1` finds a batch size by the XPU's memory."""
        from ultralytics import YOLO

        model = YOLO("yolo11n.yaml")
        model.train(epochs=1, name="auto", device="xpu:0", val=False, **{**self.common, "batch": -1})
        assert model.trainer.batch_size >= 1
        assert model.trainer.args.batch == model.trainer.batch_size

    def plain_trainer(self) -> None:
        """A trainer that isn't ours trains on the XPU too, and what it goes without is said."""
        from ultralytics import YOLO
        from ultralytics.models.yolo.detect import DetectionTrainer

        class MyTrainer(DetectionTrainer):
            pass

        model = YOLO("yolo11n.yaml")
        model.train(trainer=MyTrainer, epochs=1, name="plain", device="xpu:0", amp=False, **self.common)
        assert str(model.trainer.device) == "xpu:0"
        assert type(model.trainer) is MyTrainer

    def several_devices(self) -> None:
        """`device=xpu:0,1` trains on both, a process each; PyTorch before 2.8 can't, and the run is refused."""
        text = self._on_two([*_yolo(), "train"], "both", "xpu:0,1")
        assert "--nproc_per_node 2" in text or "built without XCCL" in text, text

    def launched(self) -> None:
        """torchrun starts a process for each device, which trains as `yolo train` does."""
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        self._on_two([*launcher, "-m", "yolo_xpu_trainer.train"], "launched", "xpu")

    def _on_two(self, command: list[str], name: str, device: str) -> str:
        """Train on two devices, see that both end with the same weights and learn, and return what was printed."""
        import torch

        arguments = {
            **self.common,
            "model": "yolo11n.yaml",
            "device": device,
            "project": self.runs,
            "name": name,
            "val": False,
            # the same few images in each epoch, with a full step of the optimizer for each batch
            "imgsz": 32,
            "epochs": 4,
            "nbs": 4,
            "warmup_epochs": 0,
            "optimizer": "AdamW",
            "lr0": 0.01,
            **dict.fromkeys(("mosaic", "translate", "scale", "fliplr", "hsv_h", "hsv_s", "hsv_v"), 0.0),
        }
        notes = _noting(Path.cwd() / f"noting-{name}")
        paths = os.pathsep.join([str(notes), *filter(None, [os.environ.get("PYTHONPATH")])])
        refused = not getattr(torch.distributed, "is_xccl_available", lambda: False)()
        text = _run(
            [*command, *(f"{key}={value}" for key, value in arguments.items())],
            fails=refused,
            XPU_SIMULATOR="max-1550",
            PYTHONPATH=paths,
        )
        if refused:
            assert "built without XCCL" in text, text
            return text
        ranks = [json.loads((notes / f"rank{rank}.json").read_text()) for rank in range(2)]
        assert [rank["device"] for rank in ranks] == ["xpu:0", "xpu:1"], ranks
        assert len(ranks[0]["weights"]) == len(set(ranks[0]["weights"])) == 4, ranks
        assert ranks[0]["weights"] == ranks[1]["weights"], ranks
        losses = [sum(both) for both in zip(*(rank["losses"] for rank in ranks), strict=True)]
        assert losses[-1] < 0.9 * losses[0], losses
        checkpoint = torch.load(self.runs / name / "weights" / "last.pt", map_location="cpu", weights_only=False)
        assert checkpoint["xpu_trainer"]["device"] == (device if device[-1].isdigit() else "xpu:0"), checkpoint
        return text

    def restored(self) -> None:
        """After deactivation nothing of this package is left in Ultralytics."""
        from yolo_xpu_trainer.activation import process_patches

        assert process_patches().active
        process_patches().restore()
        for name, module in list(sys.modules.items()):
            if name.partition(".")[0] != "ultralytics":
                continue
            for owner in [module, *(v for v in vars(module).values() if isinstance(v, type))]:
                for key, value in list(vars(owner).items()):
                    home = getattr(value, "__globals__", {}).get("__name__", "")
                    assert not home.startswith("yolo_xpu_trainer"), (name, owner, key)


def _yolo() -> list[str]:
    """Return the command that `yolo` is, of the version that this process has."""
    return [sys.executable, "-c", "from ultralytics.cfg import entrypoint; entrypoint()"]


def _noting(folder: Path) -> Path:
    """Write a plugin as it is installed: each rank notes its weights and its mean loss at the end of each epoch."""
    installed = folder / "noting-1.dist-info"
    installed.mkdir(parents=True)
    (folder / "noting.py").write_text(NOTING)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: noting\nVersion: 1\n")
    (installed / "entry_points.txt").write_text("[yolo_xpu_trainer]\nnoting = noting\n")
    return folder


def _run(command: list[str], *, fails: bool = False, **environment: str) -> str:
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    text = done.stdout + done.stderr
    assert (done.returncode != 0) == fails, text[-2000:]
    return text


if __name__ == "__main__":
    import ultralytics

    assert ultralytics.__version__ == sys.argv[1], ultralytics.__version__
    shutil.rmtree("runs", ignore_errors=True)
    Checks(sys.argv[2]).run()

"""What becomes of each command that the pages print: which test runs it, or why none does.

A command is listed as it is printed. One that ends in ` *` stands for all that begin so.
"""

from __future__ import annotations

__all__ = ["NOT_RUN", "RUN", "commands_of", "untested"]

_DOCS = "tests/runs/test_docs.py::"

RUN: dict[str, tuple[str, ...]] = {
    # As printed, or with a tiny model and data set in the place of those that are printed
    f"{_DOCS}test_a_command_that_prints_something_prints_it": (
        "yolo-xpu --version",
        "yolo-xpu autotune --forget",
        "yolo-xpu bench --help",
        "yolo-xpu init",
        "yolo-xpu init --constraints constraints.txt",
        "yolo-xpu options",
        "yolo-xpu options --markdown",
        "yolo-xpu plugins",
        "yolo settings",
    ),
    f"{_DOCS}test_a_virtual_environment_is_made_and_entered": (
        "python3 -m venv .venv",
        "source .venv/bin/activate",
    ),
    f"{_DOCS}test_pytorch_is_asked_for_its_build": (
        'python -c "import torch; print(torch.__version__)"',
        'python -c "import torch; print(torch.__version__, torch.xpu.is_available())"',
    ),
    f"{_DOCS}test_a_training_of_a_page_trains_on_the_xpu": (
        "yolo train model=yolo11n.pt data=coco8.yaml",
        "yolo train model=yolo11n.pt data=coco8.yaml batch=-1",
        "yolo train model=yolo11n.pt data=coco8.yaml xpu_exact_resume=True",
        "yolo train model=yolo11s.pt data=coco8.yaml epochs=100",
        "yolo train model=yolo11s.pt data=coco8.yaml epochs=100 batch=-1",
    ),
    f"{_DOCS}test_a_supervised_training_of_a_page_ends_well": (
        "yolo-xpu train --restarts 3 model=yolo11n.pt data=coco8.yaml",
    ),
    f"{_DOCS}test_the_first_run_goes_from_its_first_command_to_its_last": (
        "yolo train model=yolo11n.pt data=coco8.yaml epochs=3",
        "yolo val model=runs/detect/train/weights/best.pt data=coco8.yaml",
        "yolo predict model=runs/detect/train/weights/best.pt source=image.jpg",
    ),
    # By tests of what they do, with arguments of their own
    "tests/runs/test_package.py::test_doctor_finds_the_wheel_and_a_gpu_on_which_it_trains": ("yolo-xpu doctor",),
    "tests/unit/test_doctor.py::test_numerics_compares_every_operator": ("yolo-xpu doctor --numerics",),
    "tests/unit/test_doctor.py::test_the_report_has_tables_and_no_paths": ("yolo-xpu doctor --report FILE",),
    "tests/runs/test_restarts.py::test_a_run_goes_on_from_its_last_checkpoint": (
        "yolo-xpu train model=yolo11s.pt data=coco8.yaml epochs=100",
    ),
    "tests/runs/test_demo.py::test_small_run_on_xpu": ("yolo-xpu demo",),
    "tests/runs/test_demo.py::test_small_run_is_complete_and_deterministic": ("yolo-xpu demo --device cpu",),
    "tests/runs/test_bench.py::test_run_on_xpu": (
        "yolo-xpu bench",
        "yolo-xpu bench --devices xpu:1",
        "yolo-xpu bench --model yolo11s.yaml --batch 8 --devices cpu,xpu",
        "yolo-xpu bench --model yolo11s.yaml --imgsz 640 --batch 8",
        "yolo-xpu bench --modes train --precision bf16",
    ),
    "tests/runs/test_bench.py::test_compiled_cases_follow_uncompiled_ones": ("yolo-xpu bench --compile",),
    "tests/runs/test_bench.py::test_a_switch_reaches_the_training": (
        "yolo-xpu bench --modes train --precision bf16 --switches",
    ),
    "tests/runs/test_bench.py::test_training_with_bf16_weights_is_a_reference": (
        "yolo-xpu bench --modes train --precision bf16 --pure-bf16",
    ),
    "tests/runs/test_bench.py::test_several_xpus_are_compared_with_the_first_one_alone": (
        "yolo-xpu bench --devices xpu:0,1",
        "yolo-xpu bench --devices xpu:0,1 --modes train --precision bf16",
    ),
    "tests/runs/test_bench.py::test_files_of_machines_stand_beside_each_other": (
        "yolo-xpu bench --compare a/bench.json b/bench.json",
    ),
    "tests/runs/test_autotune.py::test_the_best_setting_of_a_made_up_gpu_is_found": (
        "yolo-xpu autotune",
        "yolo-xpu autotune --model yolo11s.pt --imgsz 640 --batch 16",
    ),
    "tests/runs/test_compare.py::test_an_export_as_good_as_its_checkpoint_passes": (
        "yolo-xpu compare …",
        "yolo-xpu compare best.pt fp32_openvino_model fp16_openvino_model int8_openvino_model --data coco8.yaml",
    ),
    "tests/runs/test_ddp.py::test_each_rank_trains_on_a_device_of_its_own": (
        "yolo train model=yolo11n.pt data=coco8.yaml device=xpu:0,1",
    ),
    "tests/runs/test_launched.py::test_two_ranks_end_with_the_weights_of_plain_ultralytics_own_two": ("torchrun *",),
    "tests/runs/test_checkpoints.py::test_a_resumed_run_goes_on_as_upstreams_own_does": (
        "yolo train resume model=runs/detect/train/weights/last.pt",
    ),
    "tests/runs/test_example_plugin.py::test_a_training_names_its_trainer_and_its_policy_decides": (
        "pip install ./xpu-grey",
        "yolo train model=yolo11n.pt data=coco8.yaml trainer=grey",
        "yolo train trainer=grey",
    ),
    "tests/runs/test_example_plugin.py::test_its_own_tests_pass": ("pytest",),
    "tests/runs/test_package.py::test_uninstalled_it_leaves_no_trace": ("pip uninstall yolo-xpu-trainer",),
    "tests/runs/test_package.py::test_the_command_answers": ("pip install --no-deps .",),
    "tests/unit/test_init.py::test_pip_with_the_constraints_replaces_neither_wheel": (
        "pip install --upgrade --constraint constraints.txt ultralytics",
    ),
    "tests/unit/test_init.py::test_installing_this_package_replaces_neither_wheel": ("pip install .",),
    "tests/runs/test_hardware.py::test_it_looks_at_the_simulated_device": ("python -m tests.hardware",),
}

NOT_RUN: dict[str, tuple[str, ...]] = {
    "it changes the machine": (
        "export *",
        "pip cache purge",
        "pip install --group dev ./tests/simulator .",
        "pip install ./yolo-xpu-trainer/tests/simulator",
        'pip install "git+ADDRESS"',
        'pip install "ray[tune]"',
        "pip install scikit-learn",
        "pip install torch",
        "pip install torch torchvision --index-url https://download.pytorch.org/whl/xpu",
        "pip install tox",
        "pip install ultralytics",
        "pip uninstall -y torch torchvision torchaudio triton triton-xpu",
        "python -m pip install --upgrade pip",
        "sudo *",
    ),
    "it needs an Intel GPU": ("ls /dev/dri", "ls /dev/dxg", "pytest -m xpu_hardware"),
    "it needs Windows": (r".venv\Scripts\activate", "python -m venv .venv"),
    "it needs Docker": ("docker *",),
    "it needs OpenVINO, which isn't installed with the others: by hand": (
        "yolo export model=best.pt *",
        "yolo predict model=fp16_openvino_model source=image.jpg device=intel:gpu",
    ),
    "it runs the tests": ("tox", "tox *"),
    "it is a name or a part of a command, in a sentence": (
        "pip",
        "pip install",
        "pip install -U",
        "python",
        "python -m venv",
        "yolo",
        "yolo checks",
        "yolo export",
        "yolo train",
        "yolo train xpu_pin_memory=False",
        "yolo val",
        "yolo-xpu",
        "yolo-xpu train",
    ),
}


def commands_of(name: str) -> tuple[str, ...]:
    """Return the commands that a test of `tests/runs/test_docs.py` is to run."""
    return RUN[_DOCS + name]


def untested(printed: set[str]) -> tuple[set[str], set[str]]:
    """Return the printed commands that aren't listed, and the listed ones that aren't printed."""
    listed = {command for commands in (*RUN.values(), *NOT_RUN.values()) for command in commands}
    prefixes = {command[:-1] for command in listed if command.endswith(" *")}
    stale = {command for command in listed - printed if not command.endswith(" *")}
    stale |= {f"{prefix}*" for prefix in prefixes if not any(command.startswith(prefix) for command in printed)}
    return {command for command in printed - listed if not command.startswith(tuple(prefixes))}, stale

"""The `yolo-xpu` command: imports, help, exit codes."""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
from importlib import metadata
from types import ModuleType

import pytest

from yolo_xpu_trainer import commands
from yolo_xpu_trainer.errors import UsageError

HEAVY = ("torch", "ultralytics", "numpy", "cv2", "sklearn", "rich")


@pytest.mark.parametrize("command", [[], ["demo"]])
def test_help_imports_nothing_heavy(command: list[str]) -> None:
    code = (
        "import sys\n"
        "from yolo_xpu_trainer.commands import main\n"
        "try:\n"
        f"    main({[*command, '--help']!r})\n"
        "finally:\n"
        f"    print('imported:', [name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "usage: yolo-xpu" in done.stdout
    assert done.stdout.endswith("imported: []\n")


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        commands.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"yolo-xpu-trainer {metadata.version('yolo-xpu-trainer')}\n"


def test_runs_as_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "yolo_xpu_trainer", "--help"], capture_output=True, text=True, check=True
    )
    for name in commands.COMMANDS:
        assert name in done.stdout


@pytest.mark.parametrize("argv", [[], ["nonsense"], ["--nonsense"]])
def test_unknown_command_prints_usage(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        commands.main(argv)
    assert ended.value.code == 2
    assert "usage: yolo-xpu" in capsys.readouterr().err


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        commands.main([name, "--help"])
    assert ended.value.code == 0
    assert f"usage: yolo-xpu {name}" in capsys.readouterr().out


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Add a command `probe`, whose `run` tests replace."""
    module = ModuleType("yolo_xpu_trainer.commands.probe")
    module.add_arguments = lambda parser: parser.add_argument("--code", type=int, default=0)  # type: ignore[attr-defined]
    module.run = lambda args: args.code  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(commands.COMMANDS, "probe", "a command for tests")
    return module


def test_exit_code_is_the_commands(command: ModuleType) -> None:
    assert commands.main(["probe"]) == 0
    assert commands.main(["probe", "--code", "3"]) == 3


def test_usage_error_is_one_line_and_exit_code_2(
    command: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(args: argparse.Namespace) -> int:
        raise UsageError("no room here")

    monkeypatch.setattr(command, "run", refuse)
    assert commands.main(["probe"]) == 2
    assert capsys.readouterr().err == "yolo-xpu probe: error: no room here\n"


def test_other_errors_propagate(command: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(args: argparse.Namespace) -> int:
        raise RuntimeError("a defect")

    monkeypatch.setattr(command, "run", fail)
    with pytest.raises(RuntimeError, match="a defect"):
        commands.main(["probe"])


def test_a_package_that_was_left_out_is_named_with_what_says_how_to_install_it(
    command: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setattr(command, "run", lambda args: importlib.import_module("rich"))
    assert commands.main(["probe"]) == 2
    assert "rich isn't installed. `yolo-xpu init` says" in capsys.readouterr().err
    monkeypatch.setattr(command, "run", lambda args: importlib.import_module("no_such_module"))
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        commands.main(["probe"])

"""The frame of the command line: what it imports, what it answers, which exit code."""

from __future__ import annotations

import argparse
import subprocess
import sys
from types import ModuleType

import pytest

from yolo_xpu_trainer import cli

HEAVY = ("torch", "ultralytics", "numpy", "cv2", "sklearn", "rich")


@pytest.mark.parametrize("command", [[], ["demo"]])
def test_help_imports_nothing_heavy(command: list[str]) -> None:
    code = (
        "import sys\n"
        "from yolo_xpu_trainer.cli import main\n"
        "try:\n"
        f"    main({[*command, '--help']!r})\n"
        "finally:\n"
        f"    print('imported:', [name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "usage: yolo-xpu" in done.stdout
    assert done.stdout.endswith("imported: []\n")


def test_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "yolo_xpu_trainer", "--help"], capture_output=True, text=True, check=True
    )
    for name in cli.COMMANDS:
        assert name in done.stdout


@pytest.mark.parametrize("argv", [[], ["nonsense"], ["--nonsense"]])
def test_what_is_no_command_ends_with_usage(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(argv)
    assert ended.value.code == 2
    assert "usage: yolo-xpu" in capsys.readouterr().err


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--help"])
    assert ended.value.code == 0
    assert f"usage: yolo-xpu {name}" in capsys.readouterr().out


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Add a command `probe` that does whatever its `run` is made to do."""
    module = ModuleType("yolo_xpu_trainer.probe")
    module.add_arguments = lambda parser: parser.add_argument("--code", type=int, default=0)  # type: ignore[attr-defined]
    module.run = lambda args: args.code  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(cli.COMMANDS, "probe", "look at the frame")
    return module


def test_a_command_decides_the_exit_code(command: ModuleType) -> None:
    assert cli.main(["probe"]) == 0
    assert cli.main(["probe", "--code", "3"]) == 3


def test_a_refusal_is_one_message_and_exit_code_2(
    command: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(args: argparse.Namespace) -> int:
        raise cli.UsageError("no room here")

    monkeypatch.setattr(command, "run", refuse)
    assert cli.main(["probe"]) == 2
    assert capsys.readouterr().err == "yolo-xpu probe: error: no room here\n"


def test_other_errors_keep_their_traceback(command: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(args: argparse.Namespace) -> int:
        raise RuntimeError("a defect")

    monkeypatch.setattr(command, "run", fail)
    with pytest.raises(RuntimeError, match="a defect"):
        cli.main(["probe"])

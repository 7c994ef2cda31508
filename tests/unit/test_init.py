"""`yolo-xpu init`: what it says of faked machines, and that pip, given its constraints, leaves the XPU build alone."""

from __future__ import annotations

import argparse
import base64
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest

import yolo_xpu_trainer
from yolo_xpu_trainer.commands import init
from yolo_xpu_trainer.errors import UsageError

from ..machines import Setup

ROOT = Path(__file__).resolve().parents[2]
UNINSTALL = "python -m pip uninstall -y torch torchvision torchaudio triton triton-xpu pytorch-triton-xpu"
INSTALL = (
    'python -m pip install "torch==2.14.1+xpu" "torchvision==0.29.1+xpu" '
    "--index-url https://download.pytorch.org/whl/xpu"
)


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(tmp_path)


def started(setup: Setup, capsys: pytest.CaptureFixture[str], constraints: Path | None = None) -> tuple[int, str]:
    """Return the exit status and what is printed."""
    status = init.run(argparse.Namespace(constraints=constraints), setup.machine())
    return status, capsys.readouterr().out


def commands(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(("python -m", "yolo-xpu"))]


def remove_torch(setup: Setup) -> None:
    shutil.rmtree(setup.site / "torch")
    setup.uninstall("torch")
    setup.uninstall("torchvision")


def pins(file: Path) -> list[str]:
    return [line for line in file.read_text(encoding="ascii").splitlines() if not line.startswith("#")]


# What is said


def test_in_a_fresh_environment_the_pinned_pair_comes_first_and_then_the_rest(
    setup: Setup, capsys: pytest.CaptureFixture[str]
) -> None:
    remove_torch(setup)
    setup.uninstall("ultralytics")
    setup.package("yolo-xpu-trainer", "0.2.0", ["torch>=2.5", "ultralytics>=8.3.0", "rich>=13", 'x; extra == "demo"'])
    status, text = started(setup, capsys)
    assert status == 0
    assert "Arc B (Battlemage) [8086:e20b]" in text
    assert commands(text) == [
        INSTALL,
        "yolo-xpu init --constraints constraints.txt",
        "python -m pip install -c constraints.txt ultralytics rich",
        "yolo-xpu doctor",
    ]


@pytest.mark.parametrize(("version", "kind"), [("2.14.1+cu130", "CUDA"), ("2.14.1+cpu", "CPU"), ("2.15.0", "CPU")])
def test_another_build_is_uninstalled_first(
    setup: Setup, capsys: pytest.CaptureFixture[str], version: str, kind: str
) -> None:
    setup.torch(version)
    status, text = started(setup, capsys)
    assert status == 0
    assert f"{version}, a {kind} build" in text
    assert commands(text)[:2] == [UNINSTALL, INSTALL]


def test_what_is_left_of_pytorch_without_torch_is_uninstalled_too(
    setup: Setup, capsys: pytest.CaptureFixture[str]
) -> None:
    remove_torch(setup)
    setup.package("torchvision", "0.29.1")
    assert commands(started(setup, capsys)[1])[:2] == [UNINSTALL, INSTALL]


def test_where_all_is_installed_nothing_is_to_be_done_but_kept(
    setup: Setup, capsys: pytest.CaptureFixture[str]
) -> None:
    status, text = started(setup, capsys)
    assert status == 0
    assert "2.14.1+xpu, an XPU build" in text
    assert "Nothing is to be installed" in text
    assert commands(text) == ["python -m pip install -U -c constraints.txt ultralytics"]


def test_an_xpu_build_with_anothers_torchvision_is_fixed_as_doctor_does(
    setup: Setup, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    setup.package("torchvision", "0.29.1+cu130")
    file = tmp_path / "constraints.txt"
    status, text = started(setup, capsys, file)
    assert status == 1
    assert "torchvision 0.29.1+cu130 is built for another PyTorch" in text
    assert commands(text)[0] == "python -m pip uninstall -y torchvision"
    assert pins(file) == ["torch==2.14.1+xpu"]


def test_a_release_that_is_known_to_be_bad_is_warned_of(setup: Setup, capsys: pytest.CaptureFixture[str]) -> None:
    setup.torch("2.13.0+xpu", xpu="20250300")
    status, text = started(setup, capsys, setup.work / "c.txt")
    assert status == 1
    assert "topk" in text
    upgrade, again, look = commands(text)
    assert upgrade.endswith("--upgrade")
    assert again == f"yolo-xpu init --constraints {setup.work / 'c.txt'}"  # the file has what was there before
    assert look == "yolo-xpu doctor"


@pytest.mark.parametrize(
    ("device", "said"), [("", "no Intel GPU is on the PCI bus"), ("a7a0", "not among the GPUs that PyTorch's")]
)
def test_without_a_gpu_that_qualifies_there_is_a_doubt(
    setup: Setup, capsys: pytest.CaptureFixture[str], device: str, said: str
) -> None:
    setup.no_gpu()
    (setup.root / "sys/bus/pci/devices").mkdir(parents=True, exist_ok=True)
    if device:
        setup.gpu(device, "i915")
    status, text = started(setup, capsys)
    assert status == 1
    assert said in text


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"system": "Darwin"}, "Linux and Windows"),
        ({"bits": 32}, "64 bits only"),
        ({"python": (3, 9, 1)}, "Python 3.10"),
        ({"processor": "aarch64"}, "x86-64 only"),
    ],
)
def test_a_machine_without_xpu_builds_is_told_so(
    setup: Setup, capsys: pytest.CaptureFixture[str], more: dict[str, object], said: str, tmp_path: Path
) -> None:
    setup.more |= more
    status, text = started(setup, capsys, tmp_path / "constraints.txt")
    assert status == 2
    assert said in text
    assert commands(text) == []
    assert not (tmp_path / "constraints.txt").exists()


def test_on_windows_and_in_wsl_the_same_wheels_are_named(setup: Setup, capsys: pytest.CaptureFixture[str]) -> None:
    setup.torch("2.14.1+cpu")
    setup.on_windows()
    status, text = started(setup, capsys, setup.work / "to keep.txt")
    assert (status, commands(text)[:2]) == (0, [UNINSTALL, INSTALL])
    assert "Intel(R) Arc(TM) B580" in text
    setup.more.clear()
    setup.in_wsl()
    status, text = started(setup, capsys)
    assert (status, commands(text)[:2]) == (0, [UNINSTALL, INSTALL])


def test_it_runs_where_nothing_but_this_package_is_installed(tmp_path: Path) -> None:
    source = tmp_path / "source"  # not where it is installed, with PyTorch beside it
    shutil.copytree(Path(yolo_xpu_trainer.__file__).parent, source / "yolo_xpu_trainer")
    autoload = importlib.util.find_spec("_yolo_xpu_trainer_autoload")
    assert autoload is not None
    assert autoload.origin is not None
    shutil.copy(autoload.origin, source)
    environ = {**os.environ, "PYTHONPATH": str(source)}
    command = [sys.executable, "-S", "-m", "yolo_xpu_trainer", "init", "--constraints", "c.txt"]  # no site-packages
    done = subprocess.run(command, capture_output=True, text=True, env=environ, cwd=tmp_path)
    assert done.returncode in (0, 1), done.stderr  # 1 where there is no Intel GPU
    assert f"uv pip {INSTALL.removeprefix('python -m pip ')}" in done.stdout  # there is no pip, either
    assert "PyTorch: none." in done.stdout
    assert pins(tmp_path / "c.txt") == ["torch==2.14.1+xpu", "torchvision==0.29.1+xpu"]


# The constraints


@pytest.mark.parametrize(("torch", "triton"), [("2.14.1", "triton-xpu"), ("2.9.1", "pytorch-triton-xpu")])
def test_constraints_are_exactly_what_is_installed(
    setup: Setup, capsys: pytest.CaptureFixture[str], tmp_path: Path, torch: str, triton: str
) -> None:
    setup.torch(f"{torch}+xpu", xpu="20250300")
    setup.package(triton, "3.8.0")
    vision = {"2.14.1": "0.29.0+xpu", "2.9.1": "0.24.0+xpu"}[torch]
    file = tmp_path / "constraints.txt"
    status, text = started(setup, capsys, file)
    assert status == 0
    assert pins(file) == [f"torch=={torch}+xpu", f"torchvision=={vision}", f"{triton}==3.8.0"]
    assert f"-c {file} ultralytics" in text


def test_constraints_of_another_build_are_those_of_the_recommended_one(
    setup: Setup, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    setup.torch("2.15.0+cu130")
    setup.package("triton", "3.9.0")
    started(setup, capsys, tmp_path / "constraints.txt")
    assert pins(tmp_path / "constraints.txt") == ["torch==2.14.1+xpu", "torchvision==0.29.1+xpu"]


def test_an_older_file_of_its_own_is_overwritten_and_no_other(
    setup: Setup, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "constraints.txt"
    started(setup, capsys, file)
    setup.torch("2.15.0+xpu", xpu="20250300")
    started(setup, capsys, file)
    assert pins(file)[0] == "torch==2.15.0+xpu"
    file.write_text("numpy<2\n")
    with pytest.raises(UsageError, match="isn't of this command"):
        started(setup, capsys, file)
    assert file.read_text() == "numpy<2\n"
    with pytest.raises(UsageError, match="can't write"):
        started(setup, capsys, tmp_path)


# With the real pip


def wheel(folder: Path, name: str, version: str, requires: Sequence[str] = ()) -> Path:
    """Write a wheel without code."""
    info = f"{name}-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {requirement}\n" for requirement in requires)
    files = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    if name == "torch":
        files["torch/version.py"] = f"__version__ = {version!r}\nxpu = '20250300'\n"
    record = ""
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(text)}\n"
    made = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(made, "w") as archive:
        for path, text in {**files, f"{info}/RECORD": record + f"{info}/RECORD,,\n"}.items():
            archive.writestr(path, text)
    return made


Pip = Callable[..., str]


@pytest.fixture
def pip(setup: Setup, tmp_path: Path) -> Pip:
    """Make an environment with the pair of XPU wheels, which `setup` sees; return pip in it, which installs nothing.

    It prints what it would install of newer ones, and of what this package needs.
    """
    if find_spec("pip") is None:
        pytest.skip("there is no pip here")
    shop, shelf, environment = tmp_path / "shop", tmp_path / "shelf", tmp_path / "environment"
    shop.mkdir()
    shelf.mkdir()
    venv.create(environment)
    python = environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "XPU_SIM", "PYTHON"))}
    environ |= {"PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}

    def run(*arguments: str | Path) -> str:
        command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-index", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=environ)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.splitlines()[-1]

    installed = [wheel(shelf, "torch", "2.14.1+xpu"), wheel(shelf, "torchvision", "0.29.1+xpu", ["torch>=2.14.0"])]
    run("--no-deps", *installed)
    wheel(shop, "torch", "2.15.0")
    wheel(shop, "torchvision", "0.29.2", ["torch>=2.14.0"])
    wheel(shop, "ultralytics", "8.4.190", ["torch>=1.8.0,!=2.4.0", "torchvision>=0.9.0"])
    for name in ("pluggy", "psutil", "rich", "wrapt"):
        wheel(shop, name, "99")
    (setup.site,) = environment.rglob("site-packages")
    return lambda *arguments: run("--dry-run", "--find-links", shop, *arguments)


def test_pip_with_the_constraints_replaces_neither_wheel(
    setup: Setup, pip: Pip, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "constraints.txt"
    started(setup, capsys, file)
    assert pins(file) == ["torch==2.14.1+xpu", "torchvision==0.29.1+xpu"]

    upgrade = ["-U", "--upgrade-strategy", "eager", "ultralytics"]
    without = pip(*upgrade)
    assert "torch-2.15.0" in without
    assert "torchvision-0.29.2" in without
    assert pip(*upgrade, "-c", file) == "Would install ultralytics-8.4.190"


@pytest.mark.skipif(not (ROOT / "pyproject.toml").exists(), reason="the sources are needed")
def test_installing_this_package_replaces_neither_wheel(pip: Pip, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (ours,) = tmp_path.glob("*.whl")
    version = ours.name.split("-")[1]
    names = f"pluggy-99 psutil-99 rich-99 ultralytics-8.4.190 wrapt-99 yolo-xpu-trainer-{version}"
    assert pip(ours) == f"Would install {names}"

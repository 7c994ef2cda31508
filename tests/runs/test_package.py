"""What is published: the wheel and the sdist, what an index asks of them, and the wheel at work without the sources."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.metadata import Metadata

import xpu_simulator

from ..conftest import TrainingData

ROOT = Path(__file__).parents[2]
MODULES = ("_yolo_xpu_trainer_autoload", "yolo_xpu_trainer")
pytestmark = pytest.mark.slow


def run(*command: str | Path, folder: Path | None = None, **variables: str) -> str:
    """Run a command in a shell's place, without this process's search path; return what it prints."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(
        [str(word) for word in command], cwd=folder, env={**environ, **variables}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def build(sources: Path, folder: Path, kind: str) -> Path:
    """Build as `python -m build` does, with the hatchling that is here."""
    run(sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", folder, folder=sources)
    (made,) = folder.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return made


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("sdist"), "sdist")


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build it of the sdist alone."""
    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (sources,) = folder.iterdir()
    return build(sources, folder / "dist", "wheel")


def version() -> str:
    (found,) = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    return str(found)


# As an index looks at it


def metadata(file: Path) -> Metadata:
    if file.suffix == ".whl":
        with zipfile.ZipFile(file) as archive:
            (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
            return Metadata.from_email(archive.read(name))
    with tarfile.open(file) as archive:
        (member,) = [m for m in archive.getmembers() if m.name.count("/") == 1 and m.name.endswith("/PKG-INFO")]
        content = archive.extractfile(member)
        assert content
        return Metadata.from_email(content.read())


@pytest.mark.parametrize("kind", ["sdist", "wheel"])
def test_metadata_is_valid_and_describes_the_package(kind: str, request: pytest.FixtureRequest) -> None:
    """`twine check --strict` asks for a description that can be shown; an index for valid fields besides."""
    found = metadata(request.getfixturevalue(kind))  # which raises where a field is invalid
    assert (found.name, str(found.version)) == ("yolo-xpu-trainer", version())
    assert found.description_content_type == "text/markdown"
    assert found.license_files == ["LICENSE"]
    # An index shows the README, with links that hold there: those of the release's tag.
    assert found.description
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    address = "https://github.com/yolo-xpu-trainer/yolo-xpu-trainer"
    linked = re.findall(rf"\]\({address}/(?:blob|raw)/v{re.escape(version())}/([^)#]+)", found.description)
    assert len(linked) == len(re.findall(r"\]\((?!https?:|#)", readme)) > 20
    assert all((ROOT / path).is_file() for path in linked)
    assert not re.findall(r"\]\((?!https?:|#)", found.description)
    assert re.sub(rf"\({address}/(blob|raw)/v[^/]+/", "(", found.description) == readme


def test_the_wheel_of_the_sdist_holds_every_module_and_nothing_else(wheel: Path) -> None:
    sources = {p.relative_to(ROOT / "src") for p in (ROOT / "src").rglob("*") if p.is_file() and p.suffix != ".pyc"}
    assert Path("yolo_xpu_trainer/py.typed") in sources
    with zipfile.ZipFile(wheel) as archive:
        held = {Path(name) for name in archive.namelist() if ".dist-info/" not in name}
    assert held == sources


# Installed


@pytest.fixture(scope="module")
def scripts(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the scripts' directory of an environment with the wheel; a .pth file adds what is installed here.

    What the wheel brings comes before that.
    """
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "venv", with_pip=False)
    directory = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    (site,) = (folder / "venv").rglob("site-packages")
    here = [path for path in sys.path if Path(path).name == "site-packages"]
    pip(directory, "install", "--no-deps", str(wheel))  # before what is here, which may be the same version, is seen
    (site / "here.pth").write_text("\n".join([*here, str(Path(xpu_simulator.__file__).parents[1])]))
    return directory


def pip(scripts: Path, *words: str) -> None:
    run(sys.executable, "-m", "pip", "--python", scripts / "python", "--quiet", "--no-cache-dir", *words)


def test_the_command_answers(scripts: Path, tmp_path: Path) -> None:
    command = scripts / "yolo-xpu"
    assert run(command, "--version", folder=tmp_path) == f"yolo-xpu-trainer {version()}\n"
    assert "xpu_channels_last" in run(command, "options", folder=tmp_path)
    assert "torch-import" in run(command, "doctor", "--list", folder=tmp_path)
    code = f"import {', '.join(MODULES)}; print({', '.join(f'{name}.__file__' for name in MODULES)})"
    said = run(scripts / "python", "-c", code, folder=tmp_path).split()
    assert len(said) == len(MODULES)
    assert all(Path(file).is_relative_to(scripts.parent) for file in said)


def test_ultralytics_command_trains_on_the_xpu_with_nothing_imported(
    scripts: Path, data: TrainingData, tmp_path: Path
) -> None:
    words = f"detect train model=yolo11n.yaml data={data('detect')} epochs=1 imgsz=32 batch=4 workers=0 plots=False"
    words += f" project={tmp_path}"
    code = "from ultralytics.cfg import entrypoint; entrypoint()"  # what the script `yolo` does
    said = run(scripts / "python", "-c", code, *words.split(), folder=tmp_path, XPU_SIMULATOR="arc-b580")
    assert "xpu:0 Intel Arc B580 Graphics (11.3 GiB), bf16" in said
    assert (tmp_path / "train" / "weights" / "best.pt").exists()


def test_doctor_finds_the_wheel_and_a_gpu_on_which_it_trains(scripts: Path, tmp_path: Path) -> None:
    said = run(scripts / "yolo-xpu", "doctor", folder=tmp_path, XPU_SIMULATOR="arc-b580")
    assert "All is well" in said


def test_uninstalled_it_leaves_no_trace(scripts: Path) -> None:
    def files() -> set[str]:
        return {path.name.partition(".exe")[0] for path in scripts.parent.rglob("*") if "yolo" in path.name.lower()}

    assert {"yolo-xpu", "yolo_xpu_trainer", "_yolo_xpu_trainer_autoload.py"} <= files()
    pip(scripts, "uninstall", "--yes", "yolo-xpu-trainer")
    assert files() == set()

"""What a release needs beside the code: its version in one place, workflows and forms that can be read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
GITHUB = ROOT / ".github"
pytestmark = pytest.mark.skipif(not GITHUB.exists(), reason="a source distribution has no workflows")


def settings() -> str:
    return (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def steps(workflow: str) -> list[dict[str, Any]]:
    jobs = yaml.safe_load((GITHUB / "workflows" / workflow).read_text())["jobs"]
    return [step for job in jobs.values() for step in job.get("steps", [])]


def test_the_newest_version_in_the_changelog_is_that_of_the_package() -> None:
    version = re.search(r'^version = "(.+)"$', settings(), re.MULTILINE)
    newest = re.search(r"^## \[(\d.*?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert version
    assert newest
    assert version[1] == newest[1]


def test_the_version_stands_in_no_other_file_of_the_package() -> None:
    version = re.search(r'^version = "(.+)"$', settings(), re.MULTILINE)
    assert version
    assert [p for p in (ROOT / "src").rglob("*.py") if f'"{version[1]}"' in p.read_text(encoding="utf-8")] == []


def test_ci_runs_the_gates_environments_and_the_pages() -> None:
    matrix = yaml.safe_load((GITHUB / "workflows" / "ci.yml").read_text())["jobs"]["linux"]["strategy"]["matrix"]
    gate = re.findall(r"^tox(?: -e (\w+))?$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert matrix["environment"] == [name or "py" for name in gate]
    run = [step.get("run", "") for step in steps("ci.yml")]
    assert "tox -e docs" in run
    assert any(command.startswith("twine check") for command in run)


def test_ci_names_tests_that_exist() -> None:
    named = [path for step in steps("ci.yml") for path in re.findall(r"tests/\S+\.py", step.get("run", ""))]
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_publishing_needs_no_token_and_comes_after_the_tests() -> None:
    text = (GITHUB / "workflows" / "publish.yml").read_text()
    publish = yaml.safe_load(text)["jobs"]["publish"]
    assert publish["permissions"] == {"id-token": "write"}
    assert "ci" in publish["needs"]
    assert "secrets." not in text
    uploaded = [s["with"]["name"] for s in steps("ci.yml") if "upload-artifact" in s.get("uses", "")]
    assert [s["with"]["name"] for s in publish["steps"] if "download-artifact" in s["uses"]] == uploaded


@pytest.mark.parametrize(("form", "required"), [("bug.yml", True), ("hardware.yml", False)])
def test_an_issue_form_asks_for_the_doctors_report(form: str, required: bool) -> None:
    body = yaml.safe_load((GITHUB / "ISSUE_TEMPLATE" / form).read_text())["body"]
    named = [field["id"] for field in body if field["type"] != "markdown"]
    assert len(named) == len(set(named))
    doctor = next(field for field in body if field.get("id") == "doctor")
    assert "yolo-xpu doctor --report" in doctor["attributes"]["label"]
    assert doctor["validations"] == {"required": required}  # which a bundle holds


def test_pages_name_the_form_for_hardware_as_it_is_called() -> None:
    name = yaml.safe_load((GITHUB / "ISSUE_TEMPLATE" / "hardware.yml").read_text())["name"]
    pages = [path.read_text(encoding="utf-8").replace("\n", " ") for path in (ROOT / "docs").glob("*.md")]
    assert sum(f'"{name}"' in text for text in pages) == 1

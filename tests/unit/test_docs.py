"""The README and the pages of `docs/`: links, commands, lengths, the table of options, the table of contents."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import statistics
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from yolo_xpu_trainer import commands
from yolo_xpu_trainer.commands import options as options_command
from yolo_xpu_trainer.devices import XPU_WHEELS
from yolo_xpu_trainer.plugins import declared_options
from yolo_xpu_trainer.remedies import PYTORCH_PACKAGES

from .. import documented

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="the pages are in the repository, which isn't here")

OPTIONS_BEGIN, OPTIONS_END = "<!-- options: begin -->\n", "<!-- options: end -->"
MOST_WORDS_OF_README = 900
MOST_WORDS_OF_MEDIAN_PAGE = 800

# What a page tells its reader to type that can only be tried there: it changes the machine, or needs its hardware.
ON_THE_READERS_MACHINE = {"sudo", "ls", "docker", "export", "source", r".venv\Scripts\activate"}
INSTALLED = {"pip", "ultralytics", "scikit-learn", "tox", "yolo-xpu-trainer", "git+ADDRESS", "ray[tune]"}
INSTALLED |= {*PYTORCH_PACKAGES.split()}
OF_EXAMPLES = {"./xpu-grey", "./yolo-xpu-trainer/tests/simulator"}  # folders of the page on plugins


def pages() -> list[Path]:
    return sorted(DOCS.rglob("*.md"))


def documents() -> list[Path]:
    return sorted(path for path in (*ROOT.glob("*.md"), *pages()))


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(path: Path) -> str:
    """Return a document's text without its blocks of code."""
    return re.sub(r"^( *)```.*?^\1```$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def blocks(path: Path, language: str) -> list[str]:
    """Return the blocks of code in a language, without their indentation."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```$", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [re.sub(rf"^{indentation}", "", code, flags=re.MULTILINE) for indentation, code in found]


# Links


def anchors(path: Path) -> set[str]:
    """Return the anchors of a document's headings that GitHub and MkDocs agree on."""
    found = set()
    for heading in re.findall(r"^#+ +(.+)$", prose(path), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)|[`*]", r"\1", heading).strip().lower()
        on_github = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
        in_mkdocs = re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip())
        if on_github == in_mkdocs:
            found.add(on_github)
    return found


@pytest.mark.parametrize("path", documents(), ids=named)
def test_the_rows_of_a_table_stand_together(path: Path) -> None:
    assert re.findall(r"^\|.*\n\n+\|(?!.*\n\|[-| :]+\n).*", prose(path), re.MULTILINE) == []


@pytest.mark.parametrize("path", documents(), ids=named)
def test_every_relative_link_and_anchor_resolves(path: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if re.match(r"https?://|mailto:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
        elif path.is_relative_to(DOCS) and not target.is_relative_to(DOCS):
            broken.append(f"{link}, which isn't part of the built pages")
    assert broken == []


@pytest.mark.parametrize("path", documents(), ids=named)
def test_issues_of_others_are_links(path: Path) -> None:
    text = re.sub(f"{OPTIONS_BEGIN}.*{OPTIONS_END}", "", prose(path), flags=re.DOTALL)  # also printed on a terminal
    text = re.sub(r"\[[^\]]*\]\([^)]*\)|`[^`]*`", "", text)
    assert re.findall(r"[\w/-]+#\d+", text) == []


def test_the_table_of_contents_has_every_page_and_no_other() -> None:
    import yaml

    def files(entries: Any) -> Iterator[str]:
        for entry in entries:
            for value in entry.values() if isinstance(entry, dict) else [entry]:
                if isinstance(value, list):
                    yield from files(value)
                else:
                    yield value

    listed = [DOCS / name for name in files(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])]
    assert len(listed) == len(set(listed))
    assert {*listed} == set(pages())


def test_the_first_page_lists_every_command() -> None:
    page = (DOCS / "index.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `yolo-xpu (\w+)", page, re.MULTILINE)) == set(commands.COMMANDS)


# Lengths


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").split()) < MOST_WORDS_OF_README


def test_the_median_page_is_short() -> None:
    words = {named(path): len(path.read_text(encoding="utf-8").split()) for path in pages()}
    assert statistics.median(words.values()) < MOST_WORDS_OF_MEDIAN_PAGE, words


def test_nothing_is_said_twice() -> None:
    said: dict[str, str] = {}
    twice = []
    for path in [README, *pages()]:
        for sentence in re.split(r"(?<=[.:!?])\s+|\|", re.sub(r"^#.*$", "", prose(path), flags=re.MULTILINE)):
            plain = " ".join(sentence.split())
            if len(plain.split()) >= 12 and said.setdefault(plain, named(path)) != named(path):
                twice.append(f"{said[plain]} and {named(path)}: {plain}")
    assert twice == []


# The table of options


def test_the_table_of_options_is_what_policies_declare() -> None:
    page = (DOCS / "options.md").read_text(encoding="utf-8")
    table = page.partition(OPTIONS_BEGIN)[2].partition(OPTIONS_END)[0]
    rows = [f"| `{key}` | `{default}` | {what} |" for key, default, what in options_command.rows()]
    assert table.splitlines()[2:] == rows, "put what `yolo-xpu options --markdown` prints between the page's two marks"


# Commands


def typed(path: Path) -> list[str]:
    """Return the commands that a page tells its reader to type: after `$`, and in its sentences."""
    lines = [line for block in blocks(path, "console") for line in re.sub(r" \\\n +", " ", block).splitlines()]
    in_text = re.findall(r"`((?:yolo-xpu|yolo|python|pip|tox|pytest)(?: [^`]*)?)`", prose(path))
    return [line[2:] for line in lines if line.startswith("$ ")] + [" ".join(text.split()) for text in in_text]


def commands_of_pages() -> list[tuple[Path, str]]:
    return [(path, command) for path in [README, ROOT / "CONTRIBUTING.md", *pages()] for command in typed(path)]


def test_every_command_is_run_by_a_test_or_it_is_known_why_not() -> None:
    printed = {re.split(r" +# ", command)[0] for _, command in commands_of_pages()}
    unlisted, stale = documented.untested(printed)
    assert unlisted == set(), "say in tests/documented.py which test runs it, or why none does"
    assert stale == set(), "no page prints it any more: take it out of tests/documented.py"


def test_each_test_that_runs_a_command_exists() -> None:
    for test in documented.RUN:
        path, name = test.split("::")
        assert re.search(rf"^def {name}\(", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE), test


def check_yolo_xpu(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if words and not {"--help", "--version"} & {*words}:
        given = commands.build_parser(words[0]).parse_args(words)
        if words[0] == "train" and len(words) > 1:
            check_yolo(["train", *given.arguments], monkeypatch)


def check_yolo(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Ultralytics' own command read the words, and note what it would do."""
    import ultralytics
    from ultralytics.cfg import entrypoint

    if words in (["checks"], ["settings"]):
        return
    calls: list[dict[str, Any]] = []

    class Model:
        task = "detect"

        def __init__(self, *args: Any, **kwargs: Any) -> None: ...

        def __getattr__(self, name: str) -> Any:
            return lambda **arguments: calls.append(arguments)

    monkeypatch.setattr(ultralytics, "YOLO", Model)
    entrypoint(" ".join(["yolo", *words]))
    assert len(calls) == 1, "nothing would be done"
    unknown = {key for key in calls[0] if key.startswith("xpu_")} - {option.key for option in declared_options()}
    assert unknown == set()


def check_python(words: list[str]) -> None:
    if words[:1] == ["-c"]:
        ast.parse(words[1])
    elif words[:2] == ["-m", "pip"]:
        check_pip(words[2:])
    elif words[:1] == ["-m"]:
        assert importlib.util.find_spec(words[1])


def check_pip(words: list[str]) -> None:
    if not words:
        return
    assert words[0] in ("install", "uninstall", "cache"), words
    groups = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[dependency-groups]")[2]
    rest = iter(words[1:])
    for word in rest:
        if word == "--index-url":
            assert XPU_WHEELS.endswith(f" {next(rest)}")
        elif word == "--group":
            assert re.search(rf"^{next(rest)} = \[", groups, re.MULTILINE)
        elif word == "--constraint":
            next(rest)
        elif word.startswith("."):
            assert word in OF_EXAMPLES or (ROOT / word.partition("[")[0]).exists(), word
        elif not word.startswith("-") and words[0] != "cache":
            assert word in INSTALLED, f"{word} isn't on a package index, or isn't needed"


def check_tox(words: list[str]) -> None:
    settings = (ROOT / "tox.ini").read_text(encoding="utf-8")
    if "-e" in words:
        name = words[words.index("-e") + 1]
        assert re.search(rf"^\[testenv:(.*[{{,])?{name}\b", settings, re.MULTILINE), name


def check_pytest(words: list[str]) -> None:
    if "-m" in words:
        marker = words[words.index("-m") + 1]
        assert f'"{marker}' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("path", "command"), commands_of_pages(), ids=lambda given: named(given) if isinstance(given, Path) else given
)
def test_every_command_is_one(path: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    command, *comment = re.split(r" +# ", command)
    assert not comment or (path.parent == ROOT and path != README), "# starts no comment in Windows' cmd.exe"
    windows = "\\" in command.partition('"')[0]  # a path, rather than text that Python reads
    program, *words = shlex.split(re.sub(r" > \S+$", "", command), posix=not windows)
    if "…" in command:
        return
    if program == "yolo-xpu":
        check_yolo_xpu(words, monkeypatch)
    elif program == "yolo" and words:
        check_yolo(words, monkeypatch)
    elif program in ("python", "python3"):
        check_python(words)
    elif program == "torchrun":
        from torch.distributed.run import parse_args

        given = parse_args(words)
        assert (given.module, given.training_script) == (True, "yolo_xpu_trainer.train")
        check_yolo(["train", *given.training_script_args], monkeypatch)
    elif program == "pip":
        check_pip(words)
    elif program == "tox":
        check_tox(words)
    elif program == "pytest":
        check_pytest(words)
    elif program != "yolo":
        assert program in ON_THE_READERS_MACHINE, f"nothing here can try {program}"
    for word in words:
        if word.startswith("docs/"):
            assert (ROOT / word).exists()


def test_wherever_pytorch_is_installed_another_one_is_uninstalled_first() -> None:
    for path in [README, *pages()]:
        for block in blocks(path, "console"):
            before, installs, _ = block.partition("pip install torch ")
            assert not installs or "pip uninstall -y torch torchvision torchaudio triton triton-xpu" in before, named(
                path
            )


@pytest.mark.parametrize("path", [README, *pages()], ids=named)
def test_python_in_pages_compiles_and_names_arguments_that_exist(path: Path) -> None:
    from ultralytics.utils import DEFAULT_CFG_DICT

    known = {*DEFAULT_CFG_DICT, "trainer", *(option.key for option in declared_options())}
    for block in blocks(path, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "train":
                assert {keyword.arg for keyword in node.keywords} <= known


# Files that pages name


def test_the_container_gets_the_device_its_group_and_shared_memory() -> None:
    import yaml

    service = yaml.safe_load((DOCS / "containers" / "compose.yaml").read_text())["services"]["train"]
    assert service["devices"] == ["/dev/dri:/dev/dri"]
    assert "RENDER_GID" in service["group_add"][0]
    assert service["shm_size"]
    context = (DOCS / "containers" / service["build"]["context"]).resolve()
    dockerfile = context / service["build"]["dockerfile"]
    assert context == ROOT
    assert dockerfile == DOCS / "containers" / "Dockerfile"
    for line in dockerfile.read_text(encoding="utf-8").splitlines():
        if line.startswith("COPY "):
            assert all((context / name).exists() for name in line.split()[1:-1]), line
    assert XPU_WHEELS.partition(" ")[2] in dockerfile.read_text(encoding="utf-8").replace("--no-cache-dir ", "")


def test_the_page_of_the_api_names_every_public_name() -> None:
    import yolo_xpu_trainer

    page = (DOCS / "reference" / "api.md").read_text(encoding="utf-8")
    whole = {"errors", "hookspecs"}  # modules that are described as wholes
    homes = yolo_xpu_trainer._HOMES
    assert [name for name in homes if homes[name] not in whole and not re.search(rf"\b{name}\b", page)] == []

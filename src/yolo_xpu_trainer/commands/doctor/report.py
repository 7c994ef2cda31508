"""What others read: JSON, a script, and Markdown for a bug report, from which what is private is taken out."""

from __future__ import annotations

import getpass
import json
import re
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from ...diagnosis import Machine, Verdict
from .render import MARKS
from .runner import Result, exit_status

__all__ = ["Private", "as_json", "as_markdown", "as_script"]

_SHOWN = re.compile(
    r"^(ZE|ZES|ONEAPI|UR|SYCL|NEO|IGC|PYTORCH|TORCH|YOLO_XPU|XPU|CCL|ONEDNN|DNNL|OMP|OverrideDefault)\w*$|"
    r"^(SETVARS_COMPLETED|CMPLR_ROOT|LD_LIBRARY_PATH|CONDA_DEFAULT_ENV)$"
)
_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSW|KEY|CREDENTIAL|AUTH", re.IGNORECASE)
_SECRETS = [
    (re.compile(r"(?<=://)[^/\s:@]+(:[^/\s@]*)?@"), ""),  # in an address
    (re.compile(r"\b(gh[pousr]_|github_pat_|glpat-|hf_|sk-|xox[abpr]-|AKIA|ul-)[A-Za-z0-9_-]{8,}"), "<token>"),
    (re.compile(r"(?i)\b(token|secret|passw(or)?d|api[_-]?key|authorization)(\s*[=:]\s*)\S+"), r"\1\3<token>"),
    (re.compile(r"\b(?=[A-Za-z0-9_-]*\d)(?=[A-Za-z0-9_-]*[A-Za-z])[A-Za-z0-9_-]{32,}\b"), "<token>"),
    (re.compile(r"\b[\w.+-]+@[\w-]+\.[\w.]+\b"), "<address>"),
]
_ENDS_SESSION = re.compile(r"(sudo )?(reboot|newgrp)\b")
_OF_HOST = re.compile(r"(docker|podman|lxc|pct|wsl)\b")
"""Commands that a script for this machine can't run: they end its session, or belong to another machine."""
# A name in Windows may hold blanks, which only a separator after it tells from the text that goes on.
_HOMES = re.compile(
    r"(?:[A-Za-z]:|(?<=\\))[\\/]+Users[\\/]+[^\\/:;'\"<>|\n]{1,64}(?=[\\/])|"
    r"(?:[A-Za-z]:)?[\\/]+(?:home|Users)[\\/]+[^\\/\s:;'\"]+",
    re.IGNORECASE,
)
_SEPARATOR = re.compile(r"[\\/]")
_OF_SYSTEMS = re.compile(r"/(usr|lib|lib64|opt/intel|run/opengl-driver)\b.*")
_WORDS_OF_REPORTS = re.compile(
    "root|localhost|user|host|torch|pytorch|torchvision|intel|[xgc]pu|arc|yolo|ultralytics|python|pip|linux|windows|wsl|"
    "ubuntu|debian|docker|render|level|zero|sycl|oneapi|driver|kernel|report|ok|the|is|a|of|no",
    re.IGNORECASE,
)
"""Names that are words of any report, which would be mangled without hiding anyone."""


class Private:
    """Takes user names, home directories, host names, paths and tokens out of texts.

    Args:
        machine: The machine that the texts are of.
        user: The user's name, by default this process's.
        host: The host's name, by default this one's.
        home: The home directory, by default this user's.
    """

    def __init__(
        self, machine: Machine, *, user: str | None = None, host: str | None = None, home: Path | None = None
    ) -> None:
        packages = [path for path in machine.packages if path.name in ("site-packages", "dist-packages")]
        folders = {**{str(path): "<packages>" for path in packages}, str(machine.folder): "<folder>"}
        folders |= {str(v): "<environment>" for n in ("VIRTUAL_ENV", "CONDA_PREFIX") if (v := machine.environ.get(n))}
        searched = [part for part in machine.environ.get("LD_LIBRARY_PATH", "").split(":") if part.startswith("/")]
        searched += [str(Path(part).resolve()) for part in searched]
        folders |= {part: "<path>" for part in searched if not _OF_SYSTEMS.fullmatch(part)}
        home = _home() if home is None else home
        if home is not None:
            folders[str(home)] = "~"
        self._folders = sorted(
            ((path, name) for path, name in folders.items() if len(path) > 1), key=lambda pair: -len(pair[0])
        )
        self._cases = re.IGNORECASE if machine.is_windows else re.RegexFlag(0)
        host = socket.gethostname() if host is None else host
        words = {host: "<host>", host.partition(".")[0]: "<host>", _user() if user is None else user: "<user>"}
        private = ((w, name) for w, name in words.items() if len(w) > 1 and not _WORDS_OF_REPORTS.fullmatch(w))
        self._words = [(re.compile(rf"(?<!\w){re.escape(w)}(?!\w)", re.IGNORECASE), name) for w, name in private]

    def __call__(self, text: str) -> str:
        """Return a text without them."""
        for path, name in self._folders:
            text = re.sub(re.escape(path), name, text, flags=self._cases)
        text = _HOMES.sub("~", text)
        for pattern, instead in _SECRETS:
            text = pattern.sub(instead, text)
        for pattern, instead in self._words:
            text = pattern.sub(instead, text)
        return text


def _home() -> Path | None:
    try:
        return Path.home()
    except RuntimeError:
        return None


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return ""


def as_json(results: Sequence[Result], version: str) -> str:
    """Return results as one JSON object."""
    return json.dumps(
        {
            "version": version,
            "status": exit_status(results),
            "checks": [
                {
                    "name": result.check.name,
                    "what": result.check.what,
                    "verdict": result.verdict.value,
                    "seen": result.diagnosis.seen,
                    "fix": list(result.diagnosis.fix),
                    "advice": result.diagnosis.advice,
                    "table": [list(row) for row in result.diagnosis.table],
                }
                for result in results
            ],
        },
        indent=1,
    )


def as_script(results: Sequence[Result], machine: Machine) -> str:
    """Return the commands that fix what was found, in their order, each once, with what they are for as comments.

    What restarts the machine, begins a session or belongs to a container's host is a comment.
    """
    mark = "rem " if machine.is_windows else "# "
    lines = ["@echo on"] if machine.is_windows else ["#!/bin/sh"]
    lines.append(f"{mark}Printed by `yolo-xpu doctor --fix`. Read it before you run it; nothing was run.")
    done: set[str] = set()
    last: list[str] = []
    for verdict, title in ((Verdict.PROBLEM, "problem"), (Verdict.WARNING, "warning")):
        for result in results:
            said = result.diagnosis
            if result.verdict is not verdict:
                continue
            lines += ["", *_comment(mark, f"{title}, {result.check.name}: {said.seen}")]
            lines += _comment(mark, said.advice) if said.advice else []
            for command in said.fix:
                if command not in done and _ENDS_SESSION.match(command):
                    last.append(command)
                elif command not in done:
                    lines.append(f"{mark}On the host: {command}" if _OF_HOST.match(command) else command)
            if said.fix and done.issuperset(said.fix):
                lines.append(f"{mark}The commands are above.")
            done.update(said.fix)
    variables = any(re.match(r"(un)?set |export ", line) for line in lines)
    if variables and not machine.is_windows:  # which a script can't change in the shell that starts it
        lines.insert(2, f"{mark}Run it with `. FILE`, so that variables change in your shell.")
    if last:
        # A script would end in the middle, or go on in a session without the change.
        lines += ["", f"{mark}Then, by hand:", *(f"{mark}{command}" for command in dict.fromkeys(last))]
    if not done and len(lines) == 2:
        lines.append(f"{mark}There is nothing to fix.")
    return "\n".join(lines) + "\n"


def _comment(mark: str, text: str) -> list[str]:
    return [mark + line for line in text.splitlines()]


def as_markdown(results: Sequence[Result], machine: Machine, version: str, private: Private | None = None) -> str:
    """Return results as Markdown, without what is private."""
    private = private or Private(machine)
    lines = [
        "### `yolo-xpu doctor`",
        "",
        f"yolo-xpu-trainer {version}; status {exit_status(results)} (0 trains, 1 with warnings, 2 doesn't)",
        "",
        "| | check | seen |",
        "|---|---|---|",
        *(f"| {MARKS[r.verdict][0]} | {r.check.name} | {_cell(r.diagnosis.seen)} |" for r in results),
    ]
    for result in results:
        if len(result.diagnosis.table) > 1:
            lines += ["", f"<details><summary>{result.check.name}</summary>", "", *_table(result.diagnosis.table), ""]
            lines += ["</details>"]
    shown = _variables(machine.environ)
    lines += ["", "Environment:", "", "```text", *(f"{name}={value}" for name, value in shown.items()), "```", ""]
    return private("\n".join(lines))


def _variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that matter to an XPU."""
    return {name: _value(name, environ[name]) for name in sorted(environ) if _SHOWN.match(name)}


def _value(name: str, value: str) -> str:
    if _SECRET_NAME.search(name):
        return "<token>"
    if name == "LD_LIBRARY_PATH":  # whose directories tell what is wrong
        return ":".join(map(_directory, value.split(":")))
    return "<path>" if _SEPARATOR.search(value) else value


def _directory(path: str) -> str:
    """Return a directory of the system's or of oneAPI's, and of others that they are there."""
    inside = re.search(r"/oneapi(/|$).*", path, re.IGNORECASE)
    return path if not path or _OF_SYSTEMS.fullmatch(path) else "<path>" + (inside[0] if inside else "")


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    heading, *rest = rows
    lines = [f"| {' | '.join(map(_cell, row))} |" for row in rest]
    return [f"| {' | '.join(_cell(c) or ' ' for c in heading)} |", "|" + "---|" * len(heading), *lines]

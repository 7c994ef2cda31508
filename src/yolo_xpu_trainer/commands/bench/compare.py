"""`--compare`: several `bench.json` files beside each other. Nothing is trained, and PyTorch isn't imported."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from rich import box
from rich.table import Column, Table
from rich.text import Text

from ...errors import UsageError
from .output import figure
from .results import SCHEMA

__all__ = ["Measured", "NotBenchResultsError", "beside", "read"]

_NONE = "-"
_SOFTWARE = {"torch": "torch", "ultralytics": "Ultralytics", "yolo_xpu_trainer": "yolo-xpu-trainer", "os": "OS"}


class NotBenchResultsError(UsageError):
    """A file to compare isn't one that `yolo-xpu bench` wrote, or can't be read.

    Attributes:
        path: The file.
        seen: What is wrong with it.
    """

    def __init__(self, path: Path, seen: str) -> None:
        super().__init__(
            f"can't compare {path}: {seen}. Its figures can't be set beside others. Name files bench.json, which "
            "`yolo-xpu bench` writes to the folder of its results."
        )
        self.path = path
        self.seen = seen


@dataclass(frozen=True)
class Measured:
    """What one file says of one device: a column of the table.

    Attributes:
        file: The file's name, with its folder's.
        title: The device, marked if it is simulated.
        is_xpu: Whether it is one.
        driver: Version of its driver.
        software: Versions, by their names in the file.
        subject: Model and sizes.
        figures: Images per second by line and code, None where the measurement failed.
        joules: Images per joule, likewise, where the device told its power.
    """

    file: str
    title: str
    is_xpu: bool
    driver: str
    software: dict[str, str]
    subject: str
    figures: dict[tuple[str, str], float | None]
    joules: dict[tuple[str, str], float | None]


def read(path: Path) -> list[Measured]:
    """Read a file that a bench wrote.

    Args:
        path: A `bench.json`.

    Returns:
        What was measured on each device.

    Raises:
        NotBenchResultsError: It is none, it can't be read, or a later release wrote it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise NotBenchResultsError(path, f"it can't be read ({error.strerror or error})") from error
    except ValueError as error:  # also of bytes that are no text
        raise NotBenchResultsError(path, f"it isn't JSON ({error})") from error
    if not isinstance(content, dict) or not {"schema", "environment", "settings", "results"} <= set(content):
        raise NotBenchResultsError(path, "it is JSON, but not the results of a bench")
    if content["schema"] != SCHEMA:
        seen = f"its schema is {content['schema']!r}, and this release reads {SCHEMA}; another release wrote it"
        raise NotBenchResultsError(path, seen)
    try:
        return [_of_device(path, content, device) for device in content["environment"]["devices"]]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        seen = f"part of a bench's results is missing or damaged ({type(error).__name__}: {error})"
        raise NotBenchResultsError(path, seen) from error


def _of_device(path: Path, content: dict[str, Any], device: dict[str, Any]) -> Measured:
    environment, settings = content["environment"], content["settings"]
    figures: dict[tuple[str, str], float | None] = {}
    joules: dict[tuple[str, str], float | None] = {}
    for result in content["results"]:
        if result["device"] == device["name"] and result["status"] != "skipped":
            speed = result["images_per_second"]
            key = _line(result), str(result["implementation"])
            figures[key] = float(speed["median"]) if speed else None
            if result.get("images_per_joule"):  # older files have none
                joules[key] = float(result["images_per_joule"])
    return Measured(
        file=str(PurePath(path.absolute().parent.name, path.name)),
        title=f"{device['title']}{' (simulated)' * bool(device['simulated'])}",
        is_xpu=device["name"] != "cpu",
        driver=str(device["driver"]),
        software={name: str(environment[name]) for name in _SOFTWARE},
        subject=f"{PurePath(settings['model']).stem}, imgsz {settings['imgsz']}, batch {settings['batch']}",
        figures=figures,
        joules=joules,
    )


def _line(result: dict[str, Any]) -> str:
    arguments = "".join(f" {name}={value}" for name, value in result.get("arguments", {}).items())  # likewise
    return f"{result['mode']} {result['precision']}{' compiled' * bool(result['compile'])}{arguments}"


def beside(measured: Sequence[Measured]) -> Table:
    """Return a table with a column for each device of each file; processors come last.

    A ratio is to the first column that has a figure on the line, among those with the same model and sizes.

    Args:
        measured: What the files say, in the order of the files.
    """
    columns = sorted(measured, key=lambda one: not one.is_xpu)
    table = Table(
        Column("", no_wrap=True),
        Column("code", no_wrap=True),
        *(Column(Text(one.title, justify="left"), overflow="fold") for one in columns),
        title="Images per second",
        caption=_caption(columns),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_row("file", "", *(Text(one.file) for one in columns))
    table.add_row("driver", "", *(Text(one.driver) for one in columns))
    for key, name in _SOFTWARE.items():
        table.add_row(name, "", *(Text(one.software[key]) for one in columns))
    table.add_row("measured", "", *(Text(one.subject) for one in columns), end_section=True)
    for line in dict.fromkeys(line for one in columns for line, _ in one.figures):
        codes = dict.fromkeys(code for one in columns for of, code in one.figures if of == line)
        head = line
        for code in codes:
            cells = _cells([one.figures.get((line, code), _NONE) for one in columns], columns)
            table.add_row(Text(head), code, *cells)
            head = ""
            if any((line, code) in one.joules for one in columns):
                cells = _cells([one.joules.get((line, code), _NONE) for one in columns], columns)
                table.add_row("", f"{code}, images/J", *cells)
        if {"plain", "ours"} <= set(codes):
            table.add_row("", "ours / plain", *(_ratio(one.figures, line) for one in columns))
    return table


def _cells(values: Sequence[float | str | None], columns: Sequence[Measured]) -> list[str]:
    """Return the figures of a line, each with its ratio to the first one."""
    cells: list[str] = []
    base: tuple[str, float] | None = None
    for value, one in zip(values, columns, strict=True):
        if not isinstance(value, float):
            cells.append("failed" if value is None else _NONE)
        elif base is None:
            base = one.subject, value
            cells.append(figure(value))
        else:
            ratio = f" ({value / base[1]:.2f} x)" if one.subject == base[0] and base[1] else ""
            cells.append(figure(value) + ratio)
    return cells


def _ratio(figures: dict[tuple[str, str], float | None], line: str) -> str:
    plain, ours = figures.get((line, "plain")), figures.get((line, "ours"))
    return f"{ours / plain:.2f}" if plain and ours else _NONE


def _caption(columns: Sequence[Measured]) -> str:
    notes = ["In brackets: the ratio to the first figure of the line; drivers and versions may have a part in it."]
    if len({one.subject for one in columns}) > 1:
        notes.append("Other models or sizes were measured in some files: between those there is no ratio.")
    if any(one.title.endswith("(simulated)") for one in columns):
        notes.append("SIMULATED: the figures of a simulated XPU say nothing about hardware.")
    return "\n".join(notes)

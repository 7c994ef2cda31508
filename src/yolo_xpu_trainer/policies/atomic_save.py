"""Checkpoints and `results.csv` are at every instant the old or the new file, whole.

Ultralytics writes them in place: a process that is killed, or a disk that is full, leaves a `last.pt` that can't be
loaded. Its final evaluation rewrites `last.pt` and `best.pt` once more.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import NotSavedError
from ..files import AtomicPath, quoted, remove_leftovers, replacing
from ..hookspecs import hookimpl
from ..patches import Patch, patch
from ..run import checkpoint_of

__all__: list[str] = []

_OF_PYTORCHS_WRITER = "inline_container"  # the file that names itself in an error of writing, which has no type
_OF_CHECKPOINTS = ("last", "best", "wdir")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_OF_DISKS = _FULL | {
    getattr(errno, name)
    for name in ("EACCES", "EIO", "EISDIR", "ENODEV", "ENOENT", "ENOTDIR", "ENXIO", "EPERM", "EROFS", "ESTALE")
    if hasattr(errno, name)
}


@hookimpl
def xpu_patches(trainer: Any) -> list[Patch]:
    """Let whatever a run writes into its folder replace the file that is there."""

    @patch("torch:save", why="a process that is killed while it saves leaves a part of a file", everywhere=False)
    def save(original: Callable[..., Any], obj: Any, f: Any, *args: Any, **kwargs: Any) -> Any:
        """Save an object; to a file of the run by way of one beside it."""
        if not isinstance(f, (str, os.PathLike)) or not _is_of_run(trainer, f):
            return original(obj, f, *args, **kwargs)
        with _explained(trainer, Path(f)), replacing(f) as beside:
            try:
                return original(obj, str(beside), *args, **kwargs)
            except RuntimeError as error:
                if _OF_PYTORCHS_WRITER not in str(error):
                    raise
                raise OSError(errno.ENOSPC, "only a part of it was written, as on a full disk") from error

    return [save, save_metrics]


@patch(
    "ultralytics.engine.trainer:BaseTrainer.save_metrics",
    why="a disk that is full leaves a part of a row in results.csv",
)
def save_metrics(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    """Append a row to a copy of `results.csv`, which takes its place."""
    csv = self.csv
    with _explained(self, csv), replacing(csv) as beside:
        if csv.exists():
            shutil.copyfile(csv, beside)
        self.csv = beside
        try:
            return original(self, *args, **kwargs)
        finally:
            self.csv = csv


@hookimpl
def xpu_after_setup(trainer: Any) -> None:
    """Let the rows of a run that is resumed join: `results.csv` may be an epoch ahead of the checkpoint."""
    trainer.add_callback("on_train_start", _drop_later_rows)


def _drop_later_rows(trainer: Any) -> None:
    csv, first = trainer.csv, trainer.start_epoch
    if not first or not csv.is_file() or os.environ.get("RANK", "-1") not in ("-1", "0"):
        return
    head, *rows = csv.read_text(encoding="utf-8", errors="surrogateescape").splitlines(keepends=True) or [""]
    if head.partition(",")[0].strip() != "epoch":  # a table of a user's own, or one that a full disk left empty
        return
    kept = [row for row in rows if _epoch(row) <= first]
    if len(kept) < len(rows):
        AtomicPath(csv).write_text("".join((head, *kept)), encoding="utf-8", errors="surrogateescape")


def _epoch(row: str) -> float:
    try:
        return float(row.partition(",")[0])
    except ValueError:
        return float("inf")


@hookimpl
@contextmanager
def xpu_around_run(trainer: Any) -> Iterator[None]:
    """Remove what a killed process has left in the run's folder, which it has if this is resumed."""
    for directory in (trainer.save_dir, trainer.wdir):
        remove_leftovers(Path(directory))
    yield


@hookimpl
@contextmanager
def xpu_around_save(trainer: Any) -> Iterator[None]:
    """Let the trainer's paths replace what they are written to."""
    before = {name: getattr(trainer, name, None) for name in _OF_CHECKPOINTS}
    atomic = {name: AtomicPath(path) for name, path in before.items() if isinstance(path, Path)}
    for name, path in atomic.items():
        setattr(trainer, name, path)
    try:
        with _explained(trainer, Path(trainer.wdir)):
            yield
    finally:
        for name, path in atomic.items():
            if getattr(trainer, name, None) is path:
                setattr(trainer, name, before[name])


def _is_of_run(trainer: Any, file: str | os.PathLike[str]) -> bool:
    """Whether a file is in a run's folder, of which `weights` may be a link to another disk."""
    folders = [Path(os.path.realpath(folder)) for folder in (trainer.save_dir, trainer.wdir)]
    return any(folder in Path(os.path.realpath(file)).parents for folder in folders)


@contextmanager
def _explained(trainer: Any, path: Path) -> Iterator[None]:
    """Say of a file that can't be written what is there, and what to do.

    Raises:
        NotSavedError: The disk is full, the folder can't be written to, and so on.
    """
    try:
        yield
    except NotSavedError:
        raise
    except OSError as error:
        if error.errno not in _OF_DISKS or (
            isinstance(error.filename, str) and not _is_of_run(trainer, error.filename)
        ):
            raise  # of what users' code does beside, such as sending the checkpoint somewhere
        last = checkpoint_of(trainer)
        seen = error.strerror or str(error)
        full = error.errno in _FULL
        remedy = "Free some space" if full else f"See that {path.parent if path.suffix else path} can be written to"
        remains = f"{last} is whole" if last else "Nothing was saved of this run yet"
        resume = f", then go on with `yolo train resume=True {quoted(f'model={last}')}`" if last else ""
        epoch = getattr(trainer, "epoch", None)  # there is none before the first
        what = "The run" if epoch is None else f"Epoch {epoch + 1}"
        raise NotSavedError(
            f"{what} can't be saved to {path}: {seen}. {remains}. {remedy}{resume}.",
            path=str(path),
            errno=error.errno,
        ) from error

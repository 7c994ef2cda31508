"""`model.tune()`: each trial, a process that the tuner starts, has the trainer and the options asked for."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..errors import UnknownTrainerError
from ..options import Options
from ..patches import Patch, applied, patch
from ..plugins import declared_options
from ..run import AMP_VARIABLE
from .child_processes import trainings_patch
from .model import TRAINER_VARIABLE

__all__ = ["PATCHES", "handed_down"]


def handed_down(kwargs: MutableMapping[str, Any]) -> dict[str, str]:
    """Take the trainer, the precision and the `xpu_*` options out of the arguments of a search.

    Args:
        kwargs: The arguments, from which they are removed: Ultralytics refuses them.

    Returns:
        The environment variables that tell them to a trial.

    Raises:
        UnknownTrainerError: The trainer isn't given by its name.
        OptionError: An option is unknown, or its value invalid.
    """
    environment = Options.environment_of(Options.pop_from(kwargs, declared_options()))
    trainer = kwargs.pop("trainer", None)
    if trainer is not None:
        if not isinstance(trainer, str):
            raise UnknownTrainerError(
                f"tune(trainer={trainer!r}) can't reach the processes that tuning starts. Name a registered trainer, "
                "such as trainer='xpu'.",
                name=str(trainer),
                known=["xpu"],
            )
        environment[TRAINER_VARIABLE] = trainer
    if str(kwargs.get("amp")).lower() in ("bf16", "fp16", "fp32"):
        environment[AMP_VARIABLE] = str(kwargs.pop("amp")).lower()
    return environment


@patch(
    "ultralytics.engine.model:Model.tune",
    why="the processes that it starts would not know the trainer and options asked for",
)
def tune(original: Callable[..., Any], self: Any, use_ray: bool = False, *args: Any, **kwargs: Any) -> Any:
    """Tune; each iteration is a process, whose environment tells it the trainer, precision and options."""
    if use_ray:  # whose trials are told by `ray_trials`
        return original(self, use_ray, *args, **kwargs)
    environment = handed_down(kwargs)
    # The tuner starts its processes itself, or since 8.4.90 or so by way of MultiTrainer.
    children = [trainings_patch(f"ultralytics.engine.{module}", environment) for module in ("tuner", "trainer")]
    with applied([*children, *_resuming(kwargs)], None):
        return original(self, use_ray, *args, **kwargs)


def _resuming(kwargs: dict[str, Any]) -> list[Patch]:
    """Return patches with which a search goes on in its folder, where this Ultralytics can't: it resumes each trial."""
    from ultralytics.engine.tuner import Tuner

    if "resume" in Tuner.__init__.__code__.co_names or not kwargs.pop("resume", False):
        return []
    done = 0

    def folder_of_tuner(run: Any, original: Callable[..., Path]) -> Callable[..., Path]:
        def get_save_dir(args: Any, name: str | None = None) -> Path:
            nonlocal done
            if name is None:  # a trial's
                return original(args)
            folder = original(SimpleNamespace(**{**vars(args), "exist_ok": True}), name=name)
            results = folder / "tune_results.csv"
            done = len(results.read_text(encoding="utf-8").splitlines()) - 1 if results.exists() else 0
            return folder

        return get_save_dir

    def iterations_left(run: Any, original: Any) -> Any:
        asked = False

        def range(stop: int) -> Any:  # the loop over iterations is the first to ask for one
            nonlocal asked
            first, asked = (0 if asked else done), True
            return original(first, stop)

        return range

    why = "a search would begin anew, and resume=True would reach its trials"
    return [
        Patch("ultralytics.engine.tuner:get_save_dir", why, folder_of_tuner, everywhere=False),
        Patch("ultralytics.engine.tuner:range", why, iterations_left, everywhere=False),
    ]


PATCHES = [tune]

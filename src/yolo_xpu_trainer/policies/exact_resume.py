"""A run that was interrupted computes what it would have computed undisturbed, bit for bit, once it is resumed.

Ultralytics resumes from averaged weights and an optimizer's state in half precision, draws other random numbers, and
forgets gradients that wait for their step. With `xpu_exact_resume=True` a checkpoint has all of it, and each epoch's
random numbers follow from the seed and the epoch alone.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from ..hookspecs import hookimpl
from ..options import Option
from ..own_code import unwrapped
from ..patches import Patch, is_upstream, patch
from ..run import CHECKPOINT_KEY, Run, StashKey, saved_settings
from ..transfer import to_host

__all__: list[str] = []

_LOGGER = logging.getLogger("ultralytics")

EXACT_RESUME = Option(
    "exact_resume",
    False,
    "a resumed run computes bit for bit what it would have computed undisturbed; checkpoints are some four times as "
    "large, and each epoch starts the data loader's workers anew",
)
_KEY = "exact"
_STOPPER = ("best_fitness", "best_epoch", "possible_stop")


class _Accumulation:
    """How far a run is on the way to its optimizer's next step.

    Attributes:
        batches: How many batches no step has used yet.
        gradients: What they came to before the run was interrupted, until they are put back.
        resumed: Whether steps fall where they would have: Ultralytics begins to count with the resumed run.
    """

    def __init__(self) -> None:
        self.batches = 0
        self.gradients: dict[str, torch.Tensor] = {}
        self.resumed = False
        self._stepping = False

    def step_of_loop(self, step: Callable[[], Any]) -> Any:
        """Step, as Ultralytics' loop wants, unless it counts from a wrong batch."""
        if self.resumed and not self._stepping:
            return None
        self.batches = 0
        return step()

    def step_if_due(self, trainer: Any) -> None:
        """Step where an undisturbed run would have."""
        if self.resumed and self.batches >= trainer.accumulate:
            self.batches = 0
            self._stepping = True
            try:
                trainer.optimizer_step()
            finally:
                self._stepping = False


_ACCUMULATION = StashKey[_Accumulation]()


@hookimpl
def xpu_options() -> list[Option[bool]]:
    return [EXACT_RESUME]


@hookimpl
def xpu_after_setup(trainer: Any) -> None:
    """Let each epoch begin with random numbers of its own, before anybody else draws any in it."""
    run: Run = trainer.xpu
    if not run.options[EXACT_RESUME]:
        return
    run.stash[_ACCUMULATION] = _Accumulation()
    for event, function in (
        ("on_train_epoch_start", _begin_epoch),
        ("on_train_batch_start", _count_batch),
        ("on_train_batch_end", _step_if_due),
    ):
        trainer.callbacks[event].insert(0, function)


@hookimpl
def xpu_patches(trainer: Any) -> list[Patch]:
    run: Run = trainer.xpu
    return [resume_training, optimizer_step, save] if run.options[EXACT_RESUME] else []


@patch(
    "ultralytics.engine.trainer:BaseTrainer.optimizer_step",
    why="a resumed run would step at other batches than an undisturbed one",
)
def optimizer_step(run: Run, original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    """Step where an undisturbed run would have."""
    if _ACCUMULATION not in run.stash:
        return original(self, *args, **kwargs)
    return run.stash[_ACCUMULATION].step_of_loop(lambda: original(self, *args, **kwargs))


@patch("torch:save", why="a finished run's weights would be many times as large", everywhere=False)
def save(original: Callable[..., Any], obj: Any, *args: Any, **kwargs: Any) -> Any:
    """Leave the state out of a checkpoint that nothing can go on from: that of a finished run."""
    settings = saved_settings(obj) if isinstance(obj, dict) else {}
    if settings.pop(_KEY, None) is not None and obj.get("optimizer") is None:
        obj = {**obj, CHECKPOINT_KEY: settings}
    return original(obj, *args, **kwargs)


@hookimpl
def xpu_checkpoint(trainer: Any) -> dict[str, Any]:
    """Return the live and the averaged weights, the optimizer's state and gradients that wait, in full precision."""
    run: Run = trainer.xpu
    if not run.options[EXACT_RESUME]:
        return {}
    accumulation = run.stash[_ACCUMULATION]
    model = unwrapped(trainer.model)
    waiting = {name: p.grad for name, p in model.named_parameters() if accumulation.batches and p.grad is not None}
    state = {
        "model": model.state_dict(),
        "ema": trainer.ema.ema.state_dict(),
        "optimizer": trainer.optimizer.state_dict()["state"],
        "gradients": waiting,
    }
    leaves, spec = torch.utils._pytree.tree_flatten(state)
    at = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
    for i, tensor in zip(at, to_host([leaves[i].detach() for i in at]), strict=True):
        leaves[i] = tensor
    state = torch.utils._pytree.tree_unflatten(leaves, spec)
    if not all(bool(t.isfinite().all()) for part in ("model", "ema") for t in state[part].values()):
        return {}  # which Ultralytics repairs as it saves: there is nothing to go on from exactly
    state["waiting"] = accumulation.batches
    state["batch"] = trainer.batch_size
    state["stopper"] = {name: getattr(trainer.stopper, name) for name in _STOPPER if hasattr(trainer.stopper, name)}
    return {_KEY: state}


@patch(
    "ultralytics.engine.trainer:BaseTrainer.resume_training",
    why="a run is resumed from averaged weights in half precision, and so differs from an undisturbed one",
)
def resume_training(run: Run, original: Callable[..., Any], self: Any, ckpt: Any, *args: Any, **kwargs: Any) -> Any:
    """Resume, then restore what the checkpoint has in full precision."""
    result = original(self, ckpt, *args, **kwargs)
    if ckpt is None or not self.resume:
        return result
    run.resumed = {key: value for key, value in run.resumed.items() if key != _KEY}  # as large as the model
    state = saved_settings(ckpt).get(_KEY)
    if state is None:
        _LOGGER.warning(
            f"XPU: this run is resumed as Ultralytics does, not exactly, because the checkpoint was saved without "
            f"{EXACT_RESUME.key}=True. What it saves from now on can be resumed exactly."
        )
        return result
    _restore(self, state)
    return result


def _restore(trainer: Any, state: dict[str, Any]) -> None:
    accumulation = trainer.xpu.stash[_ACCUMULATION]
    unwrapped(trainer.model).load_state_dict(state["model"])
    if trainer.ema:
        trainer.ema.ema.load_state_dict(state["ema"])
    groups = trainer.optimizer.state_dict()["param_groups"]
    trainer.optimizer.load_state_dict({"state": state["optimizer"], "param_groups": groups})
    vars(trainer.stopper).update(state["stopper"])
    if trainer.batch_size == state["batch"] and is_upstream(type(trainer).optimizer_step):  # a user's steps as it likes
        accumulation.resumed = True
        accumulation.batches = state["waiting"]
        accumulation.gradients = state["gradients"]


def _begin_epoch(trainer: Any) -> None:
    accumulation = trainer.xpu.stash[_ACCUMULATION]
    for name, parameter in unwrapped(trainer.model).named_parameters():
        if name in accumulation.gradients:  # Ultralytics dropped all others before the first epoch
            parameter.grad = torch.empty_like(parameter).copy_(accumulation.gradients[name])
    accumulation.gradients = {}
    trainer.xpu.recovery.calling(_seed, trainer)


def _count_batch(trainer: Any) -> None:
    trainer.xpu.stash[_ACCUMULATION].batches += 1


def _step_if_due(trainer: Any) -> None:
    trainer.xpu.stash[_ACCUMULATION].step_if_due(trainer)


def _seed(trainer: Any) -> None:
    """Let whatever is drawn in an epoch, here and in the loader's workers, follow from the seed and the epoch."""
    is_distributed = torch.distributed.is_initialized()
    rank = torch.distributed.get_rank() if is_distributed else 0
    entropy = np.random.SeedSequence([abs(int(trainer.args.seed)), int(trainer.epoch), rank])
    seed = int(entropy.generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    loader = trainer.train_loader
    if is_distributed and hasattr(getattr(loader, "sampler", None), "set_epoch"):
        loader.sampler.set_epoch(trainer.epoch)  # which Ultralytics does later, when workers have their order already
    for generator in _generators(loader):
        generator.manual_seed(seed)
    for dataset in _datasets(getattr(loader, "dataset", None)):
        _forget_images(dataset)
    if hasattr(loader, "reset"):
        loader.reset()


def _generators(loader: Any) -> Iterator[torch.Generator]:
    """Yield the generators that a loader and its samplers draw from."""
    sampler = getattr(loader, "sampler", None)
    for holder in (loader, sampler, getattr(loader, "batch_sampler", None)):
        if isinstance(generator := getattr(holder, "generator", None), torch.Generator):
            yield generator


def _datasets(dataset: Any) -> Iterator[Any]:
    """Yield a data set, and those that it is made of."""
    yield dataset
    for part in getattr(dataset, "datasets", ()):
        yield from _datasets(part)


def _forget_images(dataset: Any) -> None:
    """Empty the buffer of recent images, from which a mosaic draws without workers: earlier epochs filled it."""
    buffer = getattr(dataset, "buffer", None)
    if not isinstance(buffer, list) or not all(hasattr(dataset, name) for name in ("ims", "im_hw0", "im_hw")):
        return  # a list of a user's own
    for i in buffer:
        if getattr(dataset, "cache", None) != "ram":
            dataset.ims[i], dataset.im_hw0[i], dataset.im_hw[i] = None, None, None
    buffer.clear()

"""What people bring to Ultralytics: their own trainers, batches, loaders, losses, models, optimizers and callbacks.

Each trainer is written for plain Ultralytics. `CALLBACKS` and `ARGUMENTS` of a trainer are given to its training.
"""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils.data import DataLoader, WeightedRandomSampler
from ultralytics.models.yolo.detect import DetectionTrainer, DetectionValidator
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.loss import v8DetectionLoss

TRAINERS: list[type[DetectionTrainer]] = []


def case(trainer: type) -> type:
    """Note a trainer as a case."""
    TRAINERS.append(trainer)
    return trainer


# Batches


@case
class JoiningTrainer(DetectionTrainer):
    """Joins four images into one, after Ultralytics preprocessed them (the total number of labels stays)."""

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        batch = super().preprocess_batch(batch)
        a, b, c, d = batch["img"]
        batch["img"] = torch.cat((torch.cat((a, b), 2), torch.cat((c, d), 2)), 1)[None]
        index = batch["batch_idx"].long().view(-1)
        corner = torch.stack((index % 2, index // 2), 1).to(batch["bboxes"].dtype)
        batch["bboxes"] = torch.cat(((batch["bboxes"][:, :2] + corner) / 2, batch["bboxes"][:, 2:] / 2), 1)
        batch["batch_idx"] = torch.zeros_like(batch["batch_idx"])
        return batch


@case
class NumpyTrainer(DetectionTrainer):
    """Works on the images with NumPy, before Ultralytics moves them."""

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        batch["img"] = torch.from_numpy(batch["img"].numpy()[..., ::-1].copy())
        return super().preprocess_batch(batch)


@case
class AddingTrainer(DetectionTrainer):
    """Adds a label to each batch, on the device."""

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        batch = super().preprocess_batch(batch)
        for key, row in (("batch_idx", [3.0]), ("cls", [[0.0]]), ("bboxes", [[0.5, 0.5, 0.2, 0.2]])):
            batch[key] = torch.cat((batch[key], torch.tensor(row).to(batch[key])))
        return batch


@case
class AddingBeforeTrainer(DetectionTrainer):
    """Adds a label to each batch, on the host."""

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        for key, row in (("batch_idx", [3.0]), ("cls", [[0.0]]), ("bboxes", [[0.5, 0.5, 0.2, 0.2]])):
            batch[key] = torch.cat((batch[key], torch.tensor(row).to(batch[key])))
        return super().preprocess_batch(batch)


@case
class DroppingTrainer(DetectionTrainer):
    """Drops labels that are small."""

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        batch = super().preprocess_batch(batch)
        large = batch["bboxes"][:, 2:].prod(1) > 0.02
        for key in ("batch_idx", "cls", "bboxes"):
            batch[key] = batch[key][large]
        return batch


@case
class EmptyingTrainer(DetectionTrainer):
    """Trains on background alone."""

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        batch = super().preprocess_batch(batch)
        for key in ("batch_idx", "cls", "bboxes"):
            batch[key] = batch[key][:0]
        return batch


@case
class ReorderingTrainer(DetectionTrainer):
    """Turns the order of the images round, and of the labels with them."""

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        batch = super().preprocess_batch(batch)
        for key in ("img", "batch_idx", "cls", "bboxes"):
            batch[key] = batch[key].flip(0)
        batch["batch_idx"] = len(batch["img"]) - 1 - batch["batch_idx"]
        return batch


@case
class InPlaceTrainer(DetectionTrainer):
    """Gives all labels to the first image, in place."""

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        batch = super().preprocess_batch(batch)
        batch["batch_idx"].zero_()
        return batch


@case
class InPlaceByDataTrainer(DetectionTrainer):
    """Gives all labels to the first image, behind autograd's back."""

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        batch = super().preprocess_batch(batch)
        batch["batch_idx"].data.zero_()
        return batch


@case
class IgnoringTrainer(DetectionTrainer):
    """Goes on with the batch that it gave, which Ultralytics changes in place."""

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        super().preprocess_batch(batch)
        return batch


@case
class OrderedTrainer(DetectionTrainer):
    """Makes a dict of another class of each batch."""

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        return super().preprocess_batch(OrderedDict(batch))


@case
class OtherKeysTrainer(DetectionTrainer):
    """Gives batches further keys, of all kinds."""

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        batch.update(note="text", nothing=None, nested=[torch.ones(2), {"a": torch.zeros(1)}], weight=torch.ones(3))
        batch = super().preprocess_batch(batch)
        assert batch["note"] == "text"
        assert batch["nothing"] is None
        assert batch["nested"][0].device.type == "cpu"
        return batch


@case
class MovingTrainer(DetectionTrainer):
    """Moves the batch to the device itself."""

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        batch = {k: v.to(self.device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
        return super().preprocess_batch(batch)


@case
class KeepingTrainer(DetectionTrainer):
    """Keeps copies of the batches, made before and after."""

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        self.kept = [copy.deepcopy(batch), pickle.loads(pickle.dumps(batch))]
        batch = super().preprocess_batch(batch)
        self.kept += [copy.copy(batch), copy.deepcopy(batch)]
        assert {type(kept) for kept in self.kept} == {dict}
        return batch


@case
class MixingTrainer(DetectionTrainer):
    """Blends each image with another, and joins their labels."""

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        batch = super().preprocess_batch(batch)
        n = len(batch["img"])
        batch["img"] = (batch["img"] + batch["img"].roll(1, 0)) / 2
        batch["batch_idx"] = torch.cat((batch["batch_idx"], (batch["batch_idx"] + 1) % n))
        for key in ("cls", "bboxes"):
            batch[key] = torch.cat((batch[key], batch[key]))
        order = batch["batch_idx"].argsort(stable=True)  # Ultralytics takes labels in the order of their images
        for key in ("batch_idx", "cls", "bboxes"):
            batch[key] = batch[key][order]
        return batch


@case
class StridedTrainer(DetectionTrainer):
    """Gives Ultralytics images in an order of memory of their own."""

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        batch["img"] = batch["img"].permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        return super().preprocess_batch(batch)


# Loaders


class OwnDataLoader(DataLoader[Any]):
    """A loader as one writes it, with what Ultralytics' loop needs."""

    def reset(self) -> None:
        """Do nothing."""


class _LoadingTrainer(DetectionTrainer):
    def loader_of(self, dataset: Any, batch_size: int) -> Any:
        raise NotImplementedError

    def get_dataloader(self, dataset_path: str, batch_size: int = 16, rank: int = 0, mode: str = "train") -> Any:
        loader = super().get_dataloader(dataset_path, batch_size, rank, mode)
        return self.loader_of(loader.dataset, batch_size) if mode == "train" else loader


@case
class PlainLoaderTrainer(_LoadingTrainer):
    """Has a plain loader."""

    def loader_of(self, dataset: Any, batch_size: int) -> Any:
        return OwnDataLoader(dataset, batch_size, collate_fn=dataset.collate_fn)


@case
class WeightedTrainer(_LoadingTrainer):
    """Has a weighted sampler."""

    def loader_of(self, dataset: Any, batch_size: int) -> Any:
        generator = torch.Generator().manual_seed(0)
        sampler = WeightedRandomSampler([1.0 + i for i in range(len(dataset))], len(dataset), generator=generator)
        return OwnDataLoader(dataset, batch_size, sampler=sampler, collate_fn=dataset.collate_fn)


@case
class PersistentTrainer(_LoadingTrainer):
    """Has a loader whose worker persists."""

    def loader_of(self, dataset: Any, batch_size: int) -> Any:
        return OwnDataLoader(
            dataset, batch_size, num_workers=1, persistent_workers=True, collate_fn=dataset.collate_fn, drop_last=True
        )


class Batches:
    """Batches of a loader, through a function: no `DataLoader`, without anything that isn't needed."""

    num_workers = 0

    def __init__(self, loader: Any, change: Callable[[Any], Any]) -> None:
        self._loader = loader
        self._change = change
        self.dataset, self.sampler = loader.dataset, loader.sampler
        self.batch_size, self.drop_last = loader.batch_size, loader.drop_last

    def reset(self) -> None:
        """Do nothing."""

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        return map(self._change, self._loader)


@case
class IterableTrainer(_LoadingTrainer):
    """Has a loader that is a class of its own."""

    def loader_of(self, dataset: Any, batch_size: int) -> Any:
        return Batches(DataLoader(dataset, batch_size, collate_fn=dataset.collate_fn), lambda batch: batch)


@case
class OnDeviceTrainer(_LoadingTrainer):
    """Has a loader whose batches are on the device already."""

    def loader_of(self, dataset: Any, batch_size: int) -> Any:
        def move(batch: dict[str, Any]) -> dict[str, Any]:
            return {k: v.to(self.device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}

        return Batches(DataLoader(dataset, batch_size, collate_fn=dataset.collate_fn), move)


@case
class ReplacedLoaderTrainer(DetectionTrainer):
    """Gets another training loader from a callback."""

    @staticmethod
    def replace(trainer: Any) -> None:
        dataset = trainer.train_loader.dataset
        trainer.train_loader = OwnDataLoader(dataset, 2, collate_fn=dataset.collate_fn)

    CALLBACKS: ClassVar = {"on_train_epoch_start": replace}


# Losses and models


class FocalLoss(v8DetectionLoss):
    """Weighs classes, and looks at the foreground in its own way."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.weights = torch.linspace(0.5, 1.5, self.nc, device=self.device)
        self.bce = nn.BCEWithLogitsLoss(reduction="none", pos_weight=self.weights)


class KeepingLoss(v8DetectionLoss):
    """Keeps the foreground of the last batch, so that it is saved with the model."""

    def get_assigned_targets_and_loss(self, preds: Any, batch: Any) -> Any:
        found = super().get_assigned_targets_and_loss(preds, batch)
        self.foreground, self.number = found[0][0], found[0][0].sum()
        return found


class ForegroundLoss(v8DetectionLoss):
    """Adds a term of the foreground, by many ways to ask a mask."""

    def get_assigned_targets_and_loss(self, preds: Any, batch: Any) -> Any:
        assigned, loss, items = super().get_assigned_targets_and_loss(preds, batch)
        mask = assigned[0]
        scores = preds["scores"].permute(0, 2, 1)
        extra = scores[mask].sum() / mask.sum().clamp(min=1)
        extra = extra + torch.where(mask[..., None], scores, torch.zeros_like(scores)).mean()
        extra = extra + scores.masked_select(mask[..., None]).mean() if mask.any() else extra
        extra = extra + (scores.mean(-1) * (~mask).float()).mean() + mask.float().mean()
        per_image = mask.sum(-1).float()
        extra = extra + (per_image / (per_image.max() + 1)).mean() + torch.stack(list(mask)).float().sum() * 1e-3
        loss = loss.clone()
        loss[1] = loss[1] + extra
        return assigned, loss, items


class ScalingLoss(v8DetectionLoss):
    """Changes the vector of its parts, with gradients and without, and keeps a number that it changes later."""

    def get_assigned_targets_and_loss(self, preds: Any, batch: Any) -> Any:
        assigned, loss, items = super().get_assigned_targets_and_loss(preds, batch)
        loss[0] *= 2
        with torch.no_grad():
            self.seen = [float(part) for part in loss]
            loss[2] *= 0.5
        total = loss[1] + preds["scores"].float().mean()
        loss[1] = total
        total += 1
        return assigned, loss, items


class LookingLoss(v8DetectionLoss):
    """Has a layer on the feature maps, and changes predictions."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.layer = nn.Conv2d(model.model[-1].cv2[0][0].conv.in_channels, 1, 1).to(self.device)

    def loss(self, preds: Any, batch: Any) -> Any:
        assert type(preds) is dict
        looked = self.layer(preds["feats"][0]).float().mean()
        preds["scores"].mul_(0)
        loss, items = super().loss(preds, batch)
        assert not preds["scores"].any()
        return loss + looked, items


class CriterionModel(DetectionModel):
    """A detector with a loss of its own."""

    criterion_class: type[v8DetectionLoss] = FocalLoss

    def init_criterion(self) -> Any:
        return self.criterion_class(self)


class KeepingModel(CriterionModel):
    """A detector whose loss keeps the foreground."""

    criterion_class = KeepingLoss


class ForegroundModel(CriterionModel):
    """A detector whose loss looks at the foreground."""

    criterion_class = ForegroundLoss


class ScalingModel(CriterionModel):
    """A detector whose loss changes its parts."""

    criterion_class = ScalingLoss


class LookingModel(CriterionModel):
    """A detector whose loss looks at its features."""

    criterion_class = LookingLoss


class _ModelTrainer(DetectionTrainer):
    model_class: type = CriterionModel

    def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> Any:
        return self.model_class(cfg, nc=self.data["nc"], ch=self.data["channels"], verbose=False)


@case
class FocalTrainer(_ModelTrainer):
    """Has a loss of its own."""


@case
class KeepingLossTrainer(_ModelTrainer):
    """Has a loss that keeps what it computed."""

    model_class = KeepingModel


@case
class ForegroundTrainer(_ModelTrainer):
    """Has a loss that asks the foreground for all kinds of things."""

    model_class = ForegroundModel


@case
class ScalingTrainer(_ModelTrainer):
    """Has a loss that changes its parts."""

    model_class = ScalingModel


@case
class LookingTrainer(_ModelTrainer):
    """Has a loss that looks at features, and changes predictions."""

    model_class = LookingModel


class Distilled(DetectionModel):
    """A detector that learns from another one as well."""

    def loss(self, batch: Any, preds: Any = None) -> Any:
        loss, items = super().loss(batch, preds)
        if self.training:
            with torch.no_grad():
                taught = self.model[0].conv(batch["img"]).detach()
            loss = loss + nn.functional.mse_loss(self.model[0](batch["img"]), taught)
        return loss, items


@case
class DistillingTrainer(_ModelTrainer):
    """Learns from a teacher."""

    model_class = Distilled


class Foreign(nn.Module):
    """A model that is nothing of Ultralytics', but takes a batch and gives a loss."""

    def __init__(self, cfg: Any, nc: int, **more: Any) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.head = nn.Linear(8, nc)
        self.names, self.nc, self.yaml, self.stride = {i: str(i) for i in range(nc)}, nc, {}, torch.tensor([32.0])

    criterion = None

    def set_head_attr(self, **kwargs: Any) -> None:
        """Do nothing: there is no such head."""

    def forward(self, x: Any) -> Any:
        images = x["img"] if isinstance(x, dict) else x
        logits = self.head(self.features(images).flatten(1))
        if not isinstance(x, dict):
            return logits
        wanted = torch.zeros_like(logits)
        wanted[x["batch_idx"].long().view(-1), x["cls"].long().view(-1)] = 1
        loss = nn.functional.binary_cross_entropy_with_logits(logits, wanted)
        return loss, {"mine": loss.detach()}


@case
class ForeignTrainer(_ModelTrainer):
    """Trains a model that isn't Ultralytics', and doesn't validate it."""

    model_class = Foreign
    loss_names = ("mine",)

    def set_model_attributes(self) -> None:
        self.model.args = self.args

    def get_validator(self) -> Any:
        class Metrics:
            keys: ClassVar = []

        class Validator:
            metrics, args, dataloader = Metrics(), copy.copy(self.args), None

        return Validator()

    def validate(self) -> Any:
        return {}, 0.5

    def final_eval(self) -> None:
        pass


# Optimizers


class Lion(torch.optim.Optimizer):
    """An optimizer that PyTorch doesn't have."""

    def __init__(self, parameters: Any, lr: float = 1e-4) -> None:
        super().__init__(parameters, {"lr": lr, "initial_lr": lr, "momentum": 0.9})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    average = self.state[parameter].setdefault("average", torch.zeros_like(parameter))
                    parameter.add_(average.lerp(parameter.grad, 0.1).sign_(), alpha=-group["lr"])
                    average.lerp_(parameter.grad, 0.01)
        return loss


@case
class LionTrainer(DetectionTrainer):
    """Has an optimizer that PyTorch doesn't have."""

    def build_optimizer(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        return Lion(model.parameters())


@case
class HookedOptimizerTrainer(DetectionTrainer):
    """Hangs a hook and a scheduler on the optimizer that it gets."""

    def build_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        optimizer = super().build_optimizer(*args, **kwargs)
        self.steps: list[int] = []
        optimizer.register_step_post_hook(lambda *_: (self.steps.append(1), self.own.step())[0])
        self.own = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
        return optimizer

    CALLBACKS: ClassVar = {"on_train_end": lambda trainer: trainer.steps or 1 / 0}


@case
class AddedGroupTrainer(DetectionTrainer):
    """Gets a group of weights later, which were frozen first."""

    ARGUMENTS: ClassVar = {"freeze": 2, "epochs": 2}

    @staticmethod
    def thaw(trainer: Any) -> None:
        if trainer.epoch == 1:
            known = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
            frozen = [p for n, p in trainer.model.named_parameters() if not p.requires_grad and "dfl" not in n]
            for parameter in frozen:
                parameter.requires_grad_(True)
            if fresh := [p for p in frozen if id(p) not in known]:
                trainer.optimizer.add_param_group({"params": fresh, "initial_lr": 0.01, "lr": 0.01})

    CALLBACKS: ClassVar = {"on_train_epoch_start": thaw}


@case
class ClippingTrainer(DetectionTrainer):
    """Steps in its own way, by a closure."""

    def optimizer_step(self) -> None:
        torch.nn.utils.clip_grad_value_(self.model.parameters(), 0.1)
        self.optimizer.step(lambda: self.loss)
        self.optimizer.zero_grad()
        self.ema.update(self.model)


@case
class ReplacedOptimizerTrainer(DetectionTrainer):
    """Gets another optimizer from a callback."""

    @staticmethod
    def replace(trainer: Any) -> None:
        groups = [{**group, "initial_lr": 1e-3} for group in trainer.optimizer.param_groups]
        trainer.optimizer = torch.optim.RMSprop([{"params": g["params"], "initial_lr": 1e-3} for g in groups], 1e-3)
        trainer._setup_scheduler()

    CALLBACKS: ClassVar = {"on_pretrain_routine_end": replace}


@case
class SchedulingTrainer(DetectionTrainer):
    """Has a schedule of its own."""

    def _setup_scheduler(self) -> None:
        self.lf = lambda epoch: 0.5**epoch
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self.lf)


# Callbacks and other methods


@case
class ReadingTrainer(DetectionTrainer):
    """Has everything read at each event."""

    @staticmethod
    def read(trainer: Any) -> None:
        names = (
            "model",
            "optimizer",
            "train_loader",
            "ema",
            "scaler",
            "args",
            "loss",
            "loss_items",
            "tloss",
            "metrics",
        )
        seen = [getattr(trainer, name, None) for name in names]
        if isinstance(seen[8], dict):
            values = [float(value) for value in seen[8].values()]
            assert values == [seen[8][key].item() for key in seen[8]]
            assert sorted(values)[-1] == max(float(v) for v in seen[8].values())
        if trainer.ema is not None and hasattr(trainer, "optimizer"):
            copy.deepcopy(trainer.ema.ema)
            pickle.dumps(trainer.optimizer.state_dict())

    CALLBACKS: ClassVar = dict.fromkeys(
        (
            "on_pretrain_routine_end",
            "on_train_start",
            "on_train_epoch_start",
            "on_train_batch_start",
            "on_train_batch_end",
            "on_train_epoch_end",
            "on_fit_epoch_end",
            "on_model_save",
            "on_train_end",
        ),
        read,
    )


class SlowAverage:
    """An average of weights of one's own."""

    def __init__(self, model: Any) -> None:
        self.ema = copy.deepcopy(model).eval()
        self.updates, self.enabled = 0, True

    def update(self, model: Any) -> None:
        self.updates += 1
        with torch.no_grad():
            for mine, its in zip(self.ema.state_dict().values(), model.state_dict().values(), strict=True):
                if mine.is_floating_point():
                    mine.lerp_(its.to(mine), 0.5)

    def update_attr(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing."""


@case
class AverageTrainer(DetectionTrainer):
    """Gets another average of its weights."""

    CALLBACKS: ClassVar = {"on_train_start": lambda trainer: setattr(trainer, "ema", SlowAverage(trainer.model))}


@case
class ScalerTrainer(DetectionTrainer):
    """Gets another gradient scaler."""

    CALLBACKS: ClassVar = {
        "on_train_start": lambda trainer: setattr(trainer, "scaler", torch.amp.GradScaler("cpu", enabled=False))
    }


@case
class ArgumentsTrainer(DetectionTrainer):
    """Gets other arguments while it trains."""

    @staticmethod
    def change(trainer: Any) -> None:
        trainer.args.nbs, trainer.args.val, trainer.accumulate = 4, False, 1

    CALLBACKS: ClassVar = {"on_train_start": change}


@case
class WrappedModelTrainer(DetectionTrainer):
    """Gets hooks on its modules and parameters."""

    @staticmethod
    def hook(trainer: Any) -> None:
        trainer.model.model[0].register_forward_hook(lambda module, inputs, output: output * 1.5)
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.register_hook(lambda gradient: gradient * 0.5)

    CALLBACKS: ClassVar = {"on_train_start": hook}


@case
class StoppingTrainer(DetectionTrainer):
    """Is stopped by a callback, in the middle of an epoch."""

    ARGUMENTS: ClassVar = {"epochs": 3}
    CALLBACKS: ClassVar = {"on_train_batch_end": lambda trainer: setattr(trainer, "stop", trainer.epoch == 1)}


class OwnValidator(DetectionValidator):
    """Matches in its own way, and keeps what it saw."""

    def update_metrics(self, preds: Any, batch: Any) -> None:
        self.seen_devices = {value.device.type for pred in preds for value in pred.values()}
        super().update_metrics(preds, batch)

    def _process_batch(self, preds: Any, batch: Any) -> Any:
        found = super()._process_batch(preds, batch)
        return {key: value.copy() for key, value in found.items()}


@case
class ValidatingTrainer(DetectionTrainer):
    """Has a validator of its own."""

    def get_validator(self) -> Any:
        validator = super().get_validator()
        return OwnValidator(self.test_loader, self.save_dir, copy.copy(self.args), validator.callbacks)


@case
class SavingTrainer(DetectionTrainer):
    """Saves in its own way."""

    def save_model(self) -> Any:
        torch.save({"weights": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}, self.wdir / "own.pt")
        return super().save_model()


@case
class MeasuringTrainer(DetectionTrainer):
    """Measures in its own way."""

    def validate(self) -> Any:
        metrics, _ = super().validate()
        return {**metrics, "mine": 1.0}, 1.0

    def label_loss_items(self, loss_items: Any = None, prefix: str = "train") -> Any:
        found = super().label_loss_items(loss_items, prefix)
        return {f"my/{key}": value for key, value in found.items()} if isinstance(found, dict) else found


@case
class TiedTrainer(DetectionTrainer):
    """Ties two layers' weights."""

    def set_model_attributes(self) -> None:
        super().set_model_attributes()
        first, second = (self.model.model[-1].cv2[0][i].bn for i in (0, 1))
        second.weight, second.bias = first.weight, first.bias


@case
class NestedTrainer(DetectionTrainer):
    """Computes with its model in a callback, on the device and without gradients."""

    @staticmethod
    def look(trainer: Any) -> None:
        images = torch.zeros(1, 3, 64, 64, device=trainer.device)
        with torch.no_grad():
            trainer.ema.ema(images)
        trainer.model.eval()
        with torch.inference_mode():
            trainer.model(images)
        trainer.model.train()

    CALLBACKS: ClassVar = {"on_train_batch_end": look}

"""Recipe, data -> history: the training loop of notebook 04, plus validation.

It knows no disk: whoever consumes the rows that ``train`` yields decides what is kept, as
``unetlib.fit`` does.
"""

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import partial

import pandas as pd
import torch
from torch import nn
from torch.amp import GradScaler
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR
from tqdm.auto import tqdm

from unetlib.dataset import CarvanaDataset, make_loader
from unetlib.device import autocast, pick_device, pick_precision
from unetlib.metrics import evaluate
from unetlib.model import build
from unetlib.muon import Muon
from unetlib.recipe import BUILT_IN, Recipe, resolve
from unetlib.seeds import seeded

OPTIMIZERS = {
    "adam": partial(torch.optim.Adam, fused=True),
    "adamw": partial(torch.optim.AdamW, fused=True),
    "sgd": partial(torch.optim.SGD, fused=True, momentum=0.9),
    "muon": Muon,
}
KEPT = "finished epochs are kept"
EXPLODED = 1e4  # a mean loss per pixel; sound ones are below 1 after some steps


def one_cycle(optimizer: torch.optim.Optimizer, total_steps: int) -> OneCycleLR:
    """Up to the optimizer's learning rate and down to almost 0."""
    peaks = [group["lr"] for group in optimizer.param_groups]
    return OneCycleLR(optimizer, peaks, total_steps)


SCHEDULES = {"constant": None, "one_cycle": one_cycle, "cosine": CosineAnnealingLR}


class TrainingError(RuntimeError):
    """Training cannot go on: one sentence that names the remedy."""


class Learner:
    """What training changes (weights, optimizer, schedule), and one step of it.

    Args:
        total_steps: of the whole run, which a schedule needs to know.
        lr, device: in place of the recipe's, and of the best there is.
        metrics: further ones by name, see ``evaluate``.

    Attributes:
        model: the network, untrained at first or with the weights of ``start_from``.
        forward: computes logits with the same weights: the model itself, or what ``wrap`` returns.
        optimizer, scheduler, device, precision: as the recipe says; the scheduler may be None.
        rank: the number of this process among those that train together.
    """

    rank = 0

    def __init__(self, recipe: Recipe, total_steps: int, lr=None, device=None, metrics=None):
        self.recipe, self.device, lr = recipe, device or pick_device(), lr or recipe.lr
        self.loss, self.metrics = resolve("loss", recipe.loss), dict(metrics or {})
        auto = recipe.precision == "auto"
        self.precision = pick_precision(self.device) if auto else recipe.precision
        # fp16 has no small numbers: gradients are multiplied, and divided again before the step.
        self.scaler = GradScaler(self.device.type, 1024.0, enabled=self.precision == "fp16")
        # Measured: with fp32 on a CPU, PyTorch's default memory order beats channels_last.
        usual = self.precision == "fp32" and self.device.type != "cuda"
        self.model = build(recipe)
        if recipe.start_from is not None:  # a file of save_model
            start = torch.load(recipe.start_from, map_location="cpu", weights_only=True)
            self.model.load_state_dict(start["state_dict"])
        order = torch.contiguous_format if usual else torch.channels_last
        self.model.to(self.device, memory_format=order)
        self.forward: nn.Module = self.wrap(self.model)
        decay = {} if recipe.weight_decay is None else dict(weight_decay=recipe.weight_decay)
        optimizer = resolve("optimizer", recipe.optimizer)
        self.optimizer = optimizer(list(self.model.parameters()), lr, **decay)
        if not isinstance(self.optimizer, torch.optim.Optimizer):
            raise ValueError(f"optimizer={optimizer} gave {self.optimizer!r}: return an Optimizer.")
        held = {id(one) for group in self.optimizer.param_groups for one in group["params"]}
        if held.isdisjoint(map(id, self.model.parameters())):
            raise ValueError(f"optimizer={optimizer} holds none of the parameters it was given.")
        schedule = resolve("schedule", recipe.schedule)
        self.scheduler = schedule and schedule(self.optimizer, total_steps)

    def wrap(self, model: nn.Module) -> nn.Module:
        """What computes the logits in place of the model; here the model itself."""
        return model

    def batches(self, dataset: CarvanaDataset, batch_size: int, epoch: int) -> Iterable:
        """An epoch's batches, shuffled and augmented by recipe, seed and epoch alone."""
        dataset.epoch = self.recipe.seed, epoch
        return make_loader(dataset, batch_size, True, self.recipe.seed, epoch)

    def compute(self, images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """The loss of a batch that is on the device, with gradient."""
        with autocast(self.device, self.precision):
            logits = self.forward(images)
        return self.loss(logits.float(), masks)

    def step(self, images: torch.Tensor, masks: torch.Tensor, weight: float = 1.0) -> float:
        """Learn from a batch, float32 ``(B, C, H, W)`` and ``(B, 1, H, W)``; the sum of its losses.

        ``weight`` multiplies the gradient; it is 1 unless processes share the batch.
        TrainingError: see ``read``. ValueError: the loss is not one number, with a gradient.
        """
        images, masks = (part.to(self.device) for part in (images, masks))
        loss = self.compute(images, masks)
        if not isinstance(loss, torch.Tensor) or loss.ndim or not loss.requires_grad:
            shown = getattr(loss, "shape", loss)
            raise ValueError(f"loss={self.loss} gave {shown}: it needs one number, with gradient.")
        self.optimizer.zero_grad()
        self.scaler.scale(loss * weight).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scheduler is not None:
            self.scheduler.step()
        return self.read(loss.detach()) * len(images)

    def read(self, loss: torch.Tensor) -> float:
        """A loss as a number; TrainingError if it is none, or far too large."""
        value, lr = loss.item(), self.optimizer.param_groups[0]["lr"]
        if not value < (EXPLODED if self.recipe.loss in BUILT_IN["loss"] else math.inf):  # or nan
            remedy = f"lower the learning rate (now {lr:.2g}) and check the images"
            raise TrainingError(f"The loss became {value:.3g}: {remedy}; {KEPT}.")
        return value

    def validate(self, dataset: CarvanaDataset) -> dict[str, float]:
        """val_loss, val_dice, val_iou and the metrics: means over the images, see ``evaluate``; if
        some masks are empty, val_dice_objects, too: the mean Dice of the others (nan: none).
        """
        scores = self.scores(dataset)
        means = scores[["loss", "dice", "iou", *self.metrics]].mean()
        objects = dataset.coverage.max((1, 2)) >= 128
        if not objects.all():
            means["dice_objects"] = scores["dice"][objects].mean()
        return {f"val_{name}": float(value) for name, value in means.items()}

    def scores(self, dataset: CarvanaDataset, rows=None) -> pd.DataFrame:
        """The table of ``evaluate``, as the recipe trains."""
        settings = dict(loss=self.loss, metrics=self.metrics, precision=self.precision)
        return evaluate(self.model, dataset, rows=rows, **settings)

    def total(self, value: float) -> float:
        """The sum over all processes that train together; here there is only one."""
        return value


def train(
    learner: Learner, train_sets: Mapping, val_sets: Mapping, batch_size: int, first_epoch=1
) -> Iterator[dict[str, float]]:
    """Train epoch by epoch; yields a row of the history after each.

    TrainingError: a loss is not a number, or far too large.

    Args:
        train_sets: by image size; the recipe says which size an epoch sees.
        val_sets: by image size, pictures of other groups; an epoch is judged at the size it saw.
        batch_size: images per step.
        first_epoch: counted from 1; above 1 for a learner that goes on after a stop.

    Yields:
        epoch, lr (at its start), train_loss (mean over images), val_loss, val_dice, val_iou and
        val_ further metrics (see ``Learner.validate``), seconds (validation included).
    """
    recipe = learner.recipe
    images = len(train_sets[recipe.size])
    steps = math.ceil(images / batch_size)
    done, hidden = (first_epoch - 1) * steps, learner.rank > 0
    some_empty = any((one.coverage.max((1, 2)) < 128).any() for one in val_sets.values())
    with tqdm(None, "training", recipe.epochs * steps, initial=done, disable=hidden) as bar:
        for epoch in range(first_epoch, recipe.epochs + 1):
            started, lr = time.perf_counter(), learner.optimizer.param_groups[0]["lr"]
            learner.forward.train()
            loss, train_set = 0.0, train_sets[recipe.size_in(epoch)]
            with seeded(recipe.seed, epoch, learner.rank):  # what dropout draws, or an own loss
                for batch in learner.batches(train_set, batch_size, epoch):
                    loss += learner.step(*batch)
                    bar.update()
                row = dict(epoch=epoch, lr=lr, train_loss=learner.total(loss) / images)
                row |= learner.validate(val_sets[recipe.size_in(epoch)])
            if some_empty:  # small objects vanish at half size: a column of all epochs, or none
                row.setdefault("val_dice_objects", row["val_dice"])
            if not math.isfinite(row["val_loss"]):
                remedy = f"lower the learning rate (lr={recipe.lr:g}) and check the images"
                raise TrainingError(f"The validation loss is {row['val_loss']}: {remedy}; {KEPT}.")
            bar.set_postfix(loss=f"{row['train_loss']:.4f}", dice=f"{row['val_dice']:.4f}")
            yield row | dict(seconds=time.perf_counter() - started)

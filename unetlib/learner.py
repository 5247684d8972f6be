"""Recipe -> training steps: the model, optimizer and schedule that a recipe names, and one step.

Here is what makes a step fast or makes it fit (number format, memory order, batch size), and the
learning-rate range test, which needs steps but no run.
"""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, find_executable_batch_size, gather_object
from torch import nn
from tqdm.auto import tqdm

from unetlib.dataset import CarvanaDataset, make_loader
from unetlib.metrics import LOSSES, dataset_logits, dice, iou
from unetlib.model import UNet, autocast, memory_kept, pick_device, pick_precision
from unetlib.recipe import Recipe

OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
EXPLODED = 1e4  # a mean loss per pixel; sound ones are below 1 after some steps
BASE_BATCH, FEWEST_STEPS = 16, 20
PREVIEWS = 4


class TrainingError(RuntimeError):
    """Training cannot go on: one sentence that names the remedy."""


class ExplodedError(TrainingError):
    """The loss is no number, or too large to be true."""


@contextmanager
def memory_named(images: int, side: int, device: torch.device) -> Iterator[None]:
    """The errors of a memory that is too small, which have many names, as one ``TrainingError``."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        out_of_memory = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        # The words of Linux and macOS, of Windows, of MPS, of oneDNN, which names no cause.
        says_so = (
            "can't allocate memory",
            "not enough memory",
            "out of memory",
            "could not create a primitive",
        )
        if not out_of_memory and not any(words in str(error) for words in says_so):
            raise
        raise TrainingError(
            f"{images} images of {side}x{side} pixels at once do not fit in the memory of the "
            f"{device.type.upper()}: lower batch_size, size or widths; finished epochs are kept."
        ) from None


def start_accelerator(patience: timedelta = timedelta(hours=1)) -> Accelerator:
    """The devices and processes there are, CUDA before MPS before CPU.

    Precision is the recipe's affair, so Accelerate's own is switched off. Several processes use
    CUDA or the CPU; they wait for each other as long as ``patience``: decoding a large set takes
    its time.
    """
    device, handlers = pick_device().type, []
    on_cpu = device == "cpu"
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        on_cpu, handlers = device != "cuda", [InitProcessGroupKwargs(timeout=patience)]
    return Accelerator(cpu=on_cpu, mixed_precision="no", kwargs_handlers=handlers)


@dataclass
class Learner:
    """What training changes: weights, optimizer, schedule; and how a step is computed."""

    recipe: Recipe
    model: UNet
    wrapped: nn.Module  # the same weights; averages gradients over processes
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler | None
    precision: str
    accelerator: Accelerator

    @classmethod
    def begin(
        cls, recipe: Recipe, lr: float, steps: int, accelerator: Accelerator, alone: bool = False
    ) -> "Learner":
        """An untrained model and all that belongs to it.

        Args:
            lr: learning rate, or the schedule's peak.
            steps: in an epoch.
            alone: even among several processes, compute without the others.
        """
        device = accelerator.device
        precision = pick_precision(device) if recipe.precision == "auto" else recipe.precision
        # Measured: with fp32 on a CPU, PyTorch's default order is faster than channels_last.
        swift = precision == "bf16" or device.type == "cuda"
        order = torch.channels_last if swift else torch.contiguous_format
        model = UNet(**recipe.network).to(device, memory_format=order)
        wrapped = model if alone else _wrap(model, accelerator)
        if recipe.compile:
            wrapped.compile()
        optimizer = OPTIMIZERS[recipe.optimizer](model.parameters(), lr=lr, fused=True)
        scheduler = None
        if recipe.schedule == "one_cycle":
            scheduler = torch.optim.lr_scheduler.OneCycleLR(
                optimizer, lr, total_steps=recipe.epochs * steps
            )
        return cls(recipe, model, wrapped, optimizer, scheduler, precision, accelerator)

    def step(self, images: torch.Tensor, masks: torch.Tensor, weight: float = 1.0) -> float:
        """Learn from one batch; returns its mean loss.

        Args:
            images, masks: float32 ``(B, 1, H, W)``.
            weight: this process's part of the whole batch, times the number of processes.

        Raises:
            TrainingError: the loss is no number or too large, or memory does not suffice.
        """
        with memory_named(len(images), images.shape[-1], self.accelerator.device):
            loss = self.compute(images, masks, weight)
        if not loss < EXPLODED:  # also true of nan
            rate = self.optimizer.param_groups[0]["lr"]
            raise ExplodedError(
                f"The loss became {loss:.3g}: lower the learning rate (now {rate:.2g}) and check "
                "the images; finished epochs are kept."
            )
        if self.scheduler is not None:
            self.scheduler.step()
        return loss

    def compute(self, images: torch.Tensor, masks: torch.Tensor, weight: float = 1.0) -> float:
        """The five lines of notebook 04."""
        device = self.accelerator.device
        images, masks = (batch.to(device, non_blocking=True) for batch in (images, masks))
        with autocast(device, self.precision):
            logits = self.wrapped(images)
        loss = LOSSES[self.recipe.loss](logits, masks)
        self.optimizer.zero_grad()
        (loss * weight).backward()
        self.optimizer.step()
        return loss.item()

    @torch.no_grad()
    def validate(
        self, val_set: CarvanaDataset, batch_size: int
    ) -> tuple[dict[str, float], tuple[np.ndarray, np.ndarray, np.ndarray] | None]:
        """Judge the whole set, each image by one process.

        Returns:
            val_loss, val_dice and val_iou, means over the images; and this process's
            ``Run.preview``.

        Raises:
            TrainingError: the loss is no number, or memory does not suffice.
        """
        accelerator, loss_of = self.accelerator, LOSSES[self.recipe.loss]
        rank, processes = accelerator.process_index, accelerator.num_processes
        if processes > 1:
            for buffer in self.model.buffers():
                buffer.copy_(accelerator.reduce(buffer.double(), "mean"))
        scores, previews = [], []
        part = val_set.part(rank, processes)
        if len(part):
            with memory_named(len(part), val_set.size, accelerator.device):
                logits = dataset_logits(self.model, part, batch_size, self.precision)
            target = torch.from_numpy(part.coverage >= 128)[:, None]
            masks = target.float()
            predicted = logits > 0
            losses = [
                loss_of(logits[row : row + 1], masks[row : row + 1]).item()
                for row in range(len(part))
            ]
            overlaps = dice(predicted, target).tolist(), iou(predicted, target).tolist()
            scores = list(zip(losses, *overlaps, strict=True))
            every = max(1, len(part) // PREVIEWS)
            shown = slice(0, every * PREVIEWS, every)
            previews = [
                np.array(part.images[shown]),
                np.array(part.coverage[shown]),
                torch.sigmoid(logits[shown, 0]).numpy(),
            ]
        # Means in one order, whoever judged the images: exactly the single process's figures.
        parts = gather_object([scores])
        ordered = [parts[row % processes][row // processes] for row in range(len(val_set))]
        loss, mean_dice, mean_iou = np.array(ordered).mean(axis=0).tolist()
        if not math.isfinite(loss):
            raise TrainingError(
                f"The validation loss became {loss}: lower the learning rate "
                f"(lr={self.recipe.lr:g}) and check the images; finished epochs are kept."
            )
        return dict(val_loss=loss, val_dice=mean_dice, val_iou=mean_iou), tuple(previews) or None

    def state_dict(self) -> dict:
        return dict(
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            scheduler=self.scheduler.state_dict() if self.scheduler else None,
        )

    def load_state_dict(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        # A run may go on on a machine with another memory order; fused optimizers need one order.
        for parameter, averages in self.optimizer.state.items():
            for name in ("exp_avg", "exp_avg_sq"):
                averages[name] = torch.empty_like(parameter).copy_(averages[name])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])


def _wrap(model: UNet, accelerator: Accelerator) -> nn.Module:
    """The model as every process of a distributed run calls it.

    Batch normalisation takes its statistics from a process's own share of the batch, except on
    CUDA, where the processes exchange them. So on CPUs two processes do not compute exactly what
    one does; without batch normalisation they do. The running statistics, which validation uses,
    are each process's own, and averaged before they are used.
    """
    if accelerator.num_processes == 1:
        return model
    if accelerator.device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    wrapped = accelerator.prepare_model(model)
    wrapped.forward_sync_buffers = False  # else the main process's statistics replace all others
    return wrapped


def settle_batch_size(recipe: Recipe, images: int, accelerator: Accelerator) -> tuple[int, float]:
    """Batch size over all processes, and learning rate: the recipe's, or found for ``auto``.

    ``auto`` is 16 on CPU and MPS, where asking for too much memory ends the process. On CUDA it is
    the largest power of two that fits and leaves at least 20 steps an epoch; the learning rate then
    grows with the square root of the batch size, the rule for Adam and its kin
    (https://arxiv.org/abs/2205.10287).

    Raises:
        TrainingError: not even one image fits.
    """
    if recipe.batch_size != "auto":
        return recipe.batch_size, recipe.lr
    if accelerator.device.type != "cuda":
        return BASE_BATCH, recipe.lr
    processes = accelerator.num_processes
    size = 2 ** int(math.log2(max(1, images // FEWEST_STEPS / processes)))

    def halve() -> int:
        nonlocal size
        size //= 2
        return size

    @find_executable_batch_size(starting_batch_size=size, reduce_batch_size_fn=halve)
    def fits(batch_size: int) -> int:
        constant = replace(recipe, schedule="constant")
        learner = Learner.begin(constant, recipe.lr, 1, accelerator, alone=True)
        example = torch.zeros(batch_size, 1, recipe.size, recipe.size)
        for _ in range(2):  # the optimizer's memory comes with the first step
            learner.compute(example, example)
        return batch_size

    try:
        fitting = fits()
    except RuntimeError as error:
        if "No executable batch size" not in str(error):
            raise
        fitting = 0
    batch_size = processes * min(gather_object([fitting]))
    if not batch_size:
        raise TrainingError(
            f"Not one image of {recipe.size}x{recipe.size} pixels fits in the GPU's memory: lower "
            "size or widths."
        )
    return batch_size, recipe.lr * math.sqrt(batch_size / BASE_BATCH)


def lr_find(
    recipe: Recipe,
    train: pd.DataFrame,
    lowest: float = 1e-6,
    highest: float = 1.0,
    steps: int = 60,
) -> pd.DataFrame:
    """Learning-rate range test: raise the rate a little with every step and watch the loss.

    L. Smith: Cyclical Learning Rates, https://arxiv.org/abs/1506.01186. ``plots.plot_lr_find``
    draws it. Nothing is kept of the model.

    Args:
        train: sample table, as for ``fit``.
        lowest, highest: the range; it ends early where the loss explodes.
        steps: at least 3.

    Returns:
        A row per step: ``lr``, ``loss``, and ``smoothed`` (a running mean of the loss).

    Raises:
        TrainingError: the loss explodes within the first steps, or a batch does not fit in memory.
    """
    accelerator = start_accelerator()
    dataset = CarvanaDataset(train, recipe.size, recipe.mask, recipe.augment)
    constant = replace(recipe, schedule="constant")
    batch_size, lr = settle_batch_size(constant, len(train), accelerator)
    learner = Learner.begin(constant, lr, 1, accelerator)
    learner.wrapped.train()
    rows, average, epoch = [], 0.0, 0
    with memory_kept(accelerator.device), tqdm(total=steps, desc="learning rates") as bar:
        while len(rows) < steps:
            epoch += 1
            dataset.set_epoch(recipe.seed, epoch)
            for images, masks in make_loader(dataset, batch_size, True, recipe.seed, epoch):
                if len(rows) == steps:
                    break
                lr = lowest * (highest / lowest) ** (len(rows) / (steps - 1))
                learner.optimizer.param_groups[0]["lr"] = lr
                try:
                    loss = learner.step(images, masks)
                except ExplodedError:
                    return _range_tested(rows)
                average = 0.8 * average + 0.2 * loss
                smoothed = average / (1 - 0.8 ** (len(rows) + 1))
                rows.append(dict(lr=lr, loss=loss, smoothed=smoothed))
                bar.update()
                if smoothed > 4 * min(row["smoothed"] for row in rows):
                    return _range_tested(rows)
    return _range_tested(rows)


def _range_tested(rows: list[dict]) -> pd.DataFrame:
    if len(rows) < 3:
        raise TrainingError("The loss exploded at once: begin the range test lower (lowest=...).")
    return pd.DataFrame(rows)


def steepest_lr(table: pd.DataFrame) -> float:
    """The learning rate of ``lr_find`` at which the smoothed loss falls fastest: a sound choice."""
    slope = np.gradient(table["smoothed"], np.log(table["lr"]))
    return float(table["lr"][int(np.argmin(slope))])

"""Recipe -> Run: train a U-Net, keep its home folder, take up where it stopped.

A run lives in ``runs/<hash>/``; the hash covers recipe, data and profile, so that the same question
is answered at once and a changed number trains a run of its own:

    recipe.json   the settings            history.csv   a line per epoch
    run.json      data, device, versions  best.pth      the model of the best validation Dice
    last.pth      everything needed to go on after the last finished epoch
"""

import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import pandas as pd
import torch
from tqdm.auto import tqdm

from unetlib import __version__, config
from unetlib.carvana import fingerprint
from unetlib.dataset import Augmentation, CarvanaDataset, MaskKind, make_loader
from unetlib.metrics import LOSSES, dataset_logits, dice, iou
from unetlib.model import (
    UNet,
    autocast,
    load_model,
    pick_device,
    pick_precision,
    save_atomically,
    save_model,
)

OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


class TrainingError(RuntimeError):
    """Training cannot go on: one sentence that names the remedy."""


@dataclass(frozen=True)
class Recipe:
    """All settings of a training run; the defaults are the course's baseline recipe.

    Attributes:
        widths: channels per level of the U-Net.
        batch_norm: batch normalisation after each 3x3 convolution.
        skips: skip connections from encoder to decoder.
        up_kernel: kernel of the transposed convolutions, 3 or 2.
        size: image side in pixels.
        mask: train against ``hard`` (0/1) or ``soft`` (area coverage) masks.
        augment: ``none``, ``flip`` or ``mild`` (see ``dataset.augmentation``).
        loss: ``bce``, ``dice`` or ``bce_dice`` (see ``metrics``).
        optimizer: ``adam`` or ``adamw``.
        schedule: ``constant``, or ``one_cycle``: up to ``lr`` and down to almost 0
            (Smith: Super-Convergence, https://arxiv.org/abs/1708.07120).
        lr: learning rate; with ``one_cycle`` its peak.
        epochs: passes over the training images.
        batch_size: images per step.
        precision: ``fp32``, ``bf16`` (autocast), or ``auto``: bf16 where the hardware has it.
        seed: of initial weights, image order and augmentation.
    """

    widths: tuple[int, ...] = (64, 128, 256)
    batch_norm: bool = True
    skips: bool = True
    up_kernel: Literal[3, 2] = 3
    size: int = 128
    mask: MaskKind = "hard"
    augment: Augmentation = "none"
    loss: Literal["bce", "dice", "bce_dice"] = "bce"
    optimizer: Literal["adam", "adamw"] = "adam"
    schedule: Literal["constant", "one_cycle"] = "constant"
    lr: float = 1e-4
    epochs: int = 10
    batch_size: int = 16
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    seed: int = 0

    def __post_init__(self):
        object.__setattr__(self, "widths", tuple(self.widths))
        for name, kind in get_type_hints(Recipe).items():
            value, allowed = getattr(self, name), get_args(kind)
            if get_origin(kind) is Literal and value not in allowed:
                raise ValueError(
                    f"Recipe: {name}={value!r} is unknown: use one of "
                    f"{', '.join(map(repr, allowed))}."
                )
        for name in ("lr", "epochs", "batch_size"):
            if not getattr(self, name) > 0:
                raise ValueError(f"Recipe: {name}={getattr(self, name)} must be above 0.")
        stride = 2 ** (len(self.widths) - 1)
        if self.size < stride or self.size % stride:
            raise ValueError(f"Recipe: size={self.size} must be a multiple of {stride}.")

    @property
    def network(self) -> dict:
        """The arguments of ``UNet`` that this recipe sets."""
        names = ("widths", "batch_norm", "skips", "up_kernel", "seed")
        return {name: getattr(self, name) for name in names}


@dataclass
class Run:
    """A training run, finished or stopped half-way.

    Attributes:
        folder: its home ``runs/<hash>/``.
        recipe: its settings.
        history: a row per epoch: epoch, lr, train_loss, val_loss, val_dice, val_iou, seconds.
        details: device, precision, train_ids, val_ids, train_images, profile, data, versions.
    """

    folder: Path
    recipe: Recipe
    history: pd.DataFrame
    details: dict

    @property
    def finished(self) -> bool:
        return len(self.history) >= self.recipe.epochs

    @property
    def checkpoint(self) -> Path:
        """The model file of the best validation Dice."""
        return self.folder / "best.pth"

    @property
    def best_epoch(self) -> int:
        return int(self.history.loc[self.history["val_dice"].idxmax(), "epoch"])

    @property
    def best_dice(self) -> float:
        """Best validation Dice: mean over images, hard masks, at the recipe's size."""
        return float(self.history["val_dice"].max())

    @property
    def seconds(self) -> float:
        return float(self.history["seconds"].sum())

    @property
    def images_per_second(self) -> float:
        """Training images per second, validation included."""
        return self.details["train_images"] * len(self.history) / max(self.seconds, 1e-9)

    @property
    def device(self) -> str:
        return self.details["device"]

    @property
    def precision(self) -> str:
        return self.details["precision"]

    @property
    def train_ids(self) -> list[str]:
        return self.details["train_ids"]

    @property
    def val_ids(self) -> list[str]:
        return self.details["val_ids"]

    def model(self, which: str = "best") -> UNet:
        """The trained U-Net, on the CPU in evaluation mode; ``which`` is ``best`` or ``last``."""
        if which == "best":
            return load_model(self.checkpoint)[0]
        state = torch.load(self.folder / "last.pth", map_location="cpu", weights_only=True)
        model = UNet(**self.recipe.network)
        model.load_state_dict(state["model"])
        return model.eval()


def load_run(folder: str | Path) -> Run:
    """Open a run's folder.

    Raises:
        FileNotFoundError: the folder is no run.
    """
    folder = Path(folder)
    try:
        recipe = Recipe(**json.loads((folder / "recipe.json").read_text()))
        details = json.loads((folder / "run.json").read_text())
    except FileNotFoundError:
        raise FileNotFoundError(f"{folder}: no run in this folder; train one with fit().") from None
    path = folder / "history.csv"
    return Run(folder, recipe, pd.read_csv(path) if path.exists() else pd.DataFrame(), details)


def fit(
    recipe: Recipe,
    train: pd.DataFrame,
    val: pd.DataFrame,
    on_epoch: Callable[[Run], None] | None = None,
    retrain: bool = False,
) -> Run:
    """Train a U-Net by a recipe; a finished run of the same question is returned at once.

    Interrupted (stop button, Ctrl-C, crash), the run keeps its finished epochs, and calling ``fit``
    again goes on after the last of them.

    Args:
        recipe: all settings.
        train, val: sample tables (rows of ``carvana.find_samples`` with masks).
        on_epoch: called with the run after every epoch.
        retrain: train anew even if the run is finished.

    Raises:
        TrainingError: the loss is no longer a number.
        DataError: an empty table or an unreadable file.
    """
    data = f"{fingerprint(train)}-{fingerprint(val)}"
    question = json.dumps([asdict(recipe), data, config.profile().name], sort_keys=True)
    folder = config.runs_dir() / hashlib.sha256(question.encode()).hexdigest()[:12]
    last = folder / "last.pth"
    if retrain:
        last.unlink(missing_ok=True)
    elif last.exists() and (run := load_run(folder)).finished:
        print(
            f"run {folder.name}: already trained, best Dice {run.best_dice:.4f} "
            "(retrain=True trains anew)"
        )
        return run

    device = pick_device()
    precision = pick_precision(device) if recipe.precision == "auto" else recipe.precision
    train_set = CarvanaDataset(train, recipe.size, recipe.mask, recipe.augment)
    val_set = CarvanaDataset(val, recipe.size, recipe.mask)
    details = dict(
        profile=config.profile().name,
        data=data,
        train_images=len(train),
        device=str(device),
        precision=precision,
        versions=dict(
            unetlib=__version__, torch=torch.__version__, python=platform.python_version()
        ),
        train_ids=list(train["id"]),
        val_ids=list(val["id"]),
    )
    run = Run(folder, recipe, pd.DataFrame(), details)
    _write(folder / "recipe.json", json.dumps(asdict(recipe), indent=1))
    _write(folder / "run.json", json.dumps(details, indent=1))

    memory_format = torch.channels_last if precision == "bf16" else torch.contiguous_format
    model = UNet(**recipe.network).to(device, memory_format=memory_format)
    optimizer = OPTIMIZERS[recipe.optimizer](model.parameters(), lr=recipe.lr)
    steps = -(-len(train_set) // recipe.batch_size)
    scheduler = None
    if recipe.schedule == "one_cycle":
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, recipe.lr, total_steps=recipe.epochs * steps
        )
    if last.exists():
        _resume(run, model, optimizer, scheduler)

    bar = tqdm(total=recipe.epochs * steps, initial=len(run.history) * steps, desc="training")
    try:
        for epoch in range(len(run.history) + 1, recipe.epochs + 1):
            started = time.perf_counter()
            lr = optimizer.param_groups[0]["lr"]
            train_loss = _train_epoch(
                recipe, model, train_set, optimizer, scheduler, epoch, device, precision, bar
            )
            scores = _validate(recipe, model, val_set, precision)
            _check_finite(scores["val_loss"], epoch, recipe)
            seconds = time.perf_counter() - started
            row = dict(epoch=epoch, lr=lr, train_loss=train_loss, **scores, seconds=seconds)
            run.history = pd.concat([run.history, pd.DataFrame([row])], ignore_index=True)
            _keep(run, model, optimizer, scheduler)
            bar.set_postfix(loss=f"{train_loss:.4f}", dice=f"{scores['val_dice']:.4f}")
            if on_epoch is not None:
                on_epoch(run)
    except KeyboardInterrupt:
        print(f"stopped after epoch {len(run.history)} of {recipe.epochs}: fit again to go on")
    finally:
        bar.close()
    return run


def _train_epoch(recipe, model, train_set, optimizer, scheduler, epoch, device, precision, bar):
    """One pass over the training images; returns the mean loss per image."""
    model.train()
    loss_of = LOSSES[recipe.loss]
    total = 0.0
    # Each epoch draws from its own seed, so that a resumed run repeats an uninterrupted one.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1000 * recipe.seed + epoch)
        loader = make_loader(train_set, recipe.batch_size, True, recipe.seed, epoch)
        for images, masks in loader:
            images, masks = images.to(device), masks.to(device)
            with autocast(device, precision):
                logits = model(images)
            loss = loss_of(logits, masks)
            _check_finite(loss.item(), epoch, recipe)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            total += loss.item() * len(images)
            bar.update()
    return total / len(train_set)


def _check_finite(loss: float, epoch: int, recipe: Recipe) -> None:
    if not math.isfinite(loss):
        raise TrainingError(
            f"The loss became {loss} in epoch {epoch}: lower the learning rate (lr={recipe.lr:g}) "
            "and check the images; earlier epochs are kept."
        )


def _validate(recipe, model, val_set, precision) -> dict[str, float]:
    logits = dataset_logits(model, val_set, recipe.batch_size, precision)
    target = torch.from_numpy(val_set.coverage >= 128)[:, None]
    masks = torch.stack([mask for _, mask in val_set])
    predicted = torch.sigmoid(logits) > 0.5
    return dict(
        val_loss=LOSSES[recipe.loss](logits, masks).item(),
        val_dice=dice(predicted, target).mean().item(),
        val_iou=iou(predicted, target).mean().item(),
    )


def _keep(run: Run, model, optimizer, scheduler) -> None:
    """Write what the run has learned so far; ``last.pth`` makes the epoch count."""
    if run.best_epoch == len(run.history):
        info = dict(recipe=asdict(run.recipe), epoch=run.best_epoch, val_dice=run.best_dice)
        save_model(run.checkpoint, model, run.recipe.size, **info)
    state = dict(
        model=model.state_dict(),
        optimizer=optimizer.state_dict(),
        scheduler=scheduler.state_dict() if scheduler else None,
        history=run.history.to_dict("records"),
    )
    save_atomically(state, run.folder / "last.pth")
    _write(run.folder / "history.csv", run.history.to_csv(index=False))


def _resume(run: Run, model, optimizer, scheduler) -> None:
    state = torch.load(run.folder / "last.pth", map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    if scheduler is not None:
        scheduler.load_state_dict(state["scheduler"])
    run.history = pd.DataFrame(state["history"])
    _write(run.folder / "history.csv", run.history.to_csv(index=False))
    print(f"run {run.folder.name}: goes on after epoch {len(run.history)}")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)

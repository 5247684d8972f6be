"""Learning-rate range test: which rates a recipe can bear, from one short training."""

from contextlib import suppress
from dataclasses import replace
from itertools import chain, count

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from unetlib.dataset import CarvanaDataset
from unetlib.recipe import Recipe
from unetlib.seeds import seeded
from unetlib.store.model_file import weights_named
from unetlib.support.cache import decode_once
from unetlib.support.speed import memory_kept, out_of_memory_named
from unetlib.training import Learner, TrainingError


def lr_find(
    recipe: Recipe, train: pd.DataFrame, lowest: float = 1e-6, highest: float = 1.0, steps: int = 60
) -> pd.DataFrame:
    """Range test (https://arxiv.org/abs/1506.01186): raise the rate step by step, watch the loss.

    A row per step: ``lr``, ``loss``, and ``smoothed`` (a running mean of the loss).

    Args:
        train: sample table, as for ``fit``.
        lowest, highest: the range; it ends early where the loss explodes.
        steps: at least 3 (TrainingError: it explodes earlier, or a batch does not fit in memory).
    """
    batch_size = 16 if recipe.batch_size == "auto" else recipe.batch_size
    settings = recipe.size, recipe.mask, recipe.augment, decode_once, recipe.colour
    dataset = CarvanaDataset(train, *settings)
    with weights_named(recipe.start_from):
        learner = Learner(replace(recipe, schedule="constant"), steps)
    epochs = (learner.batches(dataset, batch_size, epoch) for epoch in count(1))
    batches, rates, losses = chain.from_iterable(epochs), np.geomspace(lowest, highest, steps), []
    learner.forward.train()
    with (
        seeded(recipe.seed),
        memory_kept(learner.device),
        out_of_memory_named(batch_size, recipe.size, learner.device),
        suppress(TrainingError),  # the loss has exploded
    ):
        for lr in tqdm(rates, "learning rates"):
            for group in learner.optimizer.param_groups:
                group["lr"] = lr
            images, masks = next(batches)
            losses.append(learner.step(images, masks) / len(images))
            smoothed = pd.Series(losses).ewm(alpha=0.2).mean()
            least = smoothed.min()  # below 0 with some losses
            if smoothed.iloc[-1] > least + 3 * abs(least):
                break
    if len(losses) < 3:
        raise TrainingError("The loss exploded at once: begin the range test lower (lowest=...).")
    return pd.DataFrame(dict(lr=rates[: len(losses)], loss=losses, smoothed=smoothed))

"""Several processes that train one model, with Hugging Face Accelerate."""

import math
import os
from dataclasses import replace
from datetime import timedelta

import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, gather_object
from torch import nn

from unetlib.dataset import CarvanaDataset
from unetlib.device import pick_device
from unetlib.pictures import sides
from unetlib.recipe import Recipe
from unetlib.support.feeding import FastLearner
from unetlib.training import Learner, TrainingError

BASE_BATCH, FEWEST_STEPS = 16, 75


def start_accelerator() -> Accelerator:
    """The devices and processes there are, CUDA before MPS before CPU.

    The recipe decides on precision, not Accelerate. Several processes use CUDA or the CPU and wait
    for each other up to a week: computers may differ in speed.
    """
    several, device = int(os.environ.get("WORLD_SIZE", 1)) > 1, pick_device().type
    handlers = [InitProcessGroupKwargs(timeout=timedelta(days=7))] if several else []
    on_cpu = device == "cpu" or (several and device == "mps")
    return Accelerator(cpu=on_cpu, mixed_precision="no", kwargs_handlers=handlers)


class SharedLearner(FastLearner):
    """A learner that is one of several processes: each computes its share of every batch.

    Batch normalisation takes its statistics from a process's own share, except on CUDA, where the
    processes exchange them: on CPUs two processes compute exactly what one does only without it.
    The running statistics, which validation uses, are averaged before.
    """

    def __init__(self, recipe: Recipe, total_steps: int, lr: float, accelerator, metrics=None):
        self.accelerator = accelerator
        self.rank, self.world_size = accelerator.process_index, accelerator.num_processes
        self.share = slice(self.rank, None, self.world_size)
        super().__init__(recipe, total_steps, lr, accelerator.device, metrics)

    def wrap(self, model: nn.Module) -> nn.Module:
        if self.device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(model)
        wrapped = self.accelerator.prepare_model(model)
        wrapped.forward_sync_buffers = False  # else rank 0's statistics replace all others
        return wrapped

    def step(self, images: torch.Tensor, masks: torch.Tensor, weight: float = 1.0) -> float:
        # The first ranks' shares are one larger; in a small last batch some shares are empty.
        share = len(range(self.rank, self.batch, self.world_size))
        weight *= share * self.world_size / self.batch
        return super().step(images, masks, weight) * share / len(images)

    def total(self, value: float) -> float:
        return sum(gather_object([super().total(value)]))

    def scores(self, dataset: CarvanaDataset, rows=None) -> pd.DataFrame:
        with torch.no_grad():
            for buffer in self.model.buffers():
                buffer.copy_(self.accelerator.reduce(buffer.double(), "mean"))
        table = super().scores(dataset, range(self.rank, len(dataset), self.world_size))
        # In the order of the rows, whoever judged them: exactly the single process's means.
        return pd.concat(gather_object([table])).sort_index()


def settle_batch_size(recipe: Recipe, images: int, accelerator: Accelerator) -> tuple[int, float]:
    """Batch size over all processes, and learning rate: the recipe's, or found for ``auto``.

    ``Recipe`` says what ``auto`` is; on CPU and MPS asking for too much memory ends the process.
    TrainingError: not even one image fits.
    """
    if recipe.batch_size != "auto" or accelerator.device.type != "cuda":
        return BASE_BATCH if recipe.batch_size == "auto" else recipe.batch_size, recipe.lr
    alone = replace(recipe, schedule="constant", compile=False)
    most = images * min(1, recipe.epochs / FEWEST_STEPS) / accelerator.num_processes
    fitting = 2 ** int(math.log2(max(1, most)))
    while fitting:
        # Half of it object; and one power of two less than fits, as pictures need room as well.
        batch = torch.zeros(2 * fitting, recipe.channels, *sides(recipe.size), dtype=torch.float32)
        batch[..., ::2] = 1
        try:
            learner = Learner(alone, 2, device=accelerator.device)  # other processes may differ
            learner.step(batch, batch[:, :1])
            learner.step(batch, batch[:, :1])  # now with the optimizer's memory
            break
        except torch.OutOfMemoryError:
            fitting //= 2
    torch.cuda.empty_cache()
    batch_size = accelerator.num_processes * min(gather_object([fitting]))
    if not batch_size:
        raise TrainingError("Not even one image fits in the GPU's memory: lower size or widths.")
    # Measured: Muon's steps, of one length whatever the gradient, want the same rate.
    lr = recipe.lr * (1 if recipe.optimizer == "muon" else math.sqrt(batch_size / BASE_BATCH))
    if accelerator.is_main_process:
        steps = recipe.epochs * math.ceil(images / batch_size)
        print(f"batch_size='auto': {batch_size}, so {steps} steps in the run, lr {lr:.2g}")
    return batch_size, lr

"""A learner that a GPU need not wait for: pictures stay on it, losses are read now and then."""

from collections.abc import Iterator

import torch

from unetlib.dataset import CarvanaDataset, make_loader
from unetlib.dataset import __name__ as BUILT_IN
from unetlib.training import Learner

UNREAD = 50  # steps on a GPU between two readings of their losses, which wait for the GPU


class FastLearner(Learner):
    """``Learner`` without what a GPU would wait for; on a CPU to the same numbers.

    All decoded pictures are copied to a GPU with the first batch and stay, if they fill at most an
    eighth of its free memory; else each batch is copied while the GPU still works on the last one.
    Built-in augmentations compute there, own ones on the CPU, where most draw random numbers.
    """

    share = slice(None)  # of each batch, where several processes share it

    def __init__(self, *settings, **more):
        super().__init__(*settings, **more)
        self.largest, self.held = 0, {}  # images in a batch; pictures on the GPU, by dataset
        self.late, self.unread = self.device.type == "cuda", []
        # Not of a method, which would hold the learner; and one graph a size.
        self.compiled = self.recipe.compile and torch.compile(Learner.compute, dynamic=False)

    def batches(self, dataset: CarvanaDataset, batch_size: int, epoch: int) -> Iterator:
        dataset.epoch, share = (self.recipe.seed, epoch), self.share
        ours = dataset.augment is None or getattr(dataset.augment, "__module__", "") == BUILT_IN
        apart = dataset.augment is None or dataset.by_image
        for rows in make_loader(dataset, batch_size, True, self.recipe.seed, epoch).batch_sampler:
            self.batch = len(rows)  # of all processes; one stays in step if nothing is left for it
            rows = (rows[share] or rows[:1]) if apart else rows
            on_gpu = ours and self.device.type == "cuda"
            pair = dataset.batch(rows, self._on_gpu(dataset, rows) if on_gpu else None)
            yield pair if apart else [one[share] if len(one[share]) else one[:1] for one in pair]

    def _on_gpu(self, dataset: CarvanaDataset, rows: list[int]) -> list[torch.Tensor]:
        """uint8 pictures and coverage of these rows, on the GPU or on their way to it."""
        if dataset not in self.held:
            whole = [torch.from_numpy(one) for one in (dataset.images, dataset.coverage)]
            fit = sum(one.nbytes for one in whole) < torch.cuda.mem_get_info(self.device)[0] / 8
            self.held[dataset] = [one.to(self.device) for one in whole] if fit else None
        if (held := self.held[dataset]) is None:
            stored = (torch.from_numpy(one[rows]) for one in (dataset.images, dataset.coverage))
            return [one.pin_memory().to(self.device, non_blocking=True) for one in stored]
        index = torch.tensor(rows).pin_memory().to(self.device, non_blocking=True)
        return [one[index] for one in held]

    def compute(self, images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        # The last batch of an epoch may be smaller, and would be compiled anew.
        self.largest = max(self.largest, len(images))
        whole = self.compiled and len(images) == self.largest
        return (self.compiled if whole else Learner.compute)(self, images, masks)

    def read(self, loss: torch.Tensor) -> float | torch.Tensor:
        if not self.late:
            return super().read(loss)
        self.unread.append(loss)
        if len(self.unread) == UNREAD:
            self._read_all()
        return loss

    def total(self, value: float | torch.Tensor) -> float:
        self._read_all()
        return super().total(float(value))

    def _read_all(self) -> None:
        """TrainingError, before anything of the epoch is kept: a loss is none, or far too large."""
        losses, self.unread = self.unread, []
        if losses:
            super().read(torch.stack(losses).max())  # nan if one is

"""Batch sizes, processes and memory: what stands between a recipe and the machine."""

import ctypes
import sys
from dataclasses import replace

import psutil
import pytest
import torch
from other_process import in_another_process
from torchvision.transforms import v2

from unetlib import CarvanaDataset, Recipe, TrainingError
from unetlib.support.feeding import FastLearner
from unetlib.support.processes import SharedLearner, settle_batch_size, start_accelerator
from unetlib.support.speed import memory_kept, out_of_memory_named
from unetlib.training import train

RECIPE = Recipe(widths=(4, 8), size=32, lr=1e-2, epochs=2, augment="mild", precision="fp32")
AUTOMATIC = replace(RECIPE, batch_size="auto")
CPU = torch.device("cpu")

# -------------------------------------------------------------------------------------- processes


def test_sharing_with_nobody_computes_what_one_process_does(tables):
    """Several real processes: test_distributed."""
    train_set, val_set = (CarvanaDataset(table, 32, augment="mild") for table in tables)
    accelerator = start_accelerator()
    alone = FastLearner(RECIPE, 8, device=accelerator.device)
    shared = SharedLearner(RECIPE, 8, RECIPE.lr, accelerator)
    assert (shared.rank, shared.world_size) == (0, 1)
    one, other = (list(train(each, {32: train_set}, {32: val_set}, 5)) for each in (alone, shared))
    for row, same in zip(one, other, strict=True):
        assert row | dict(seconds=0) == same | dict(seconds=0)


@pytest.mark.parametrize("world_size", [2, 3, 5])
@pytest.mark.parametrize("augment", ["none", "mild", v2.RandomHorizontalFlip()], ids=str)
def test_processes_share_every_batch_out(tables, augment, world_size):
    """16 images in batches of 5: the last batch of one leaves most processes without a share."""
    dataset = CarvanaDataset(tables[0], 32, augment=augment)
    learner = SharedLearner(RECIPE, 8, RECIPE.lr, start_accelerator())
    whole = [batch for batch, _ in FastLearner(RECIPE, 8).batches(dataset, 5, epoch=1)]
    for rank in range(world_size):
        learner.share = slice(rank, None, world_size)
        for batch, (share, _) in zip(whole, learner.batches(dataset, 5, epoch=1), strict=True):
            own = batch[rank::world_size]
            assert torch.equal(share, own if len(own) else batch[:1])


# ------------------------------------------------------------------------------------- batch size


def test_auto_is_16_where_memory_cannot_be_probed():
    accelerator = start_accelerator()
    if accelerator.device.type == "cuda":
        pytest.skip("this computer has a GPU, where the size is probed")
    assert settle_batch_size(AUTOMATIC, 5000, accelerator) == (16, RECIPE.lr)
    assert settle_batch_size(replace(RECIPE, batch_size=3), 5000, accelerator) == (3, RECIPE.lr)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("epochs", "batch_size"), [(2, 64), (20, 1024)])
def test_auto_leaves_75_steps_in_the_run_on_a_gpu_and_scales_the_rate(epochs, batch_size, capsys):
    recipe = replace(AUTOMATIC, epochs=epochs)
    found, lr = settle_batch_size(recipe, 4070, start_accelerator())
    assert found == batch_size
    assert lr == pytest.approx(RECIPE.lr * (found / 16) ** 0.5)
    steps = epochs * -(-4070 // found)
    assert steps >= 75 and str(steps) in capsys.readouterr().out


# ------------------------------------------------------------------------------------------ memory


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")],
)
def test_errors_of_too_little_memory_are_one_sentence_with_numbers(error):
    with (
        pytest.raises(TrainingError, match=r"\b16 images of size=64\b.* CPU.* batch_size"),
        out_of_memory_named(16, 64, CPU),
    ):
        raise error


def test_other_errors_pass_as_they_are():
    with pytest.raises(RuntimeError, match="shape"), out_of_memory_named(16, 64, CPU):
        torch.zeros(2, 3) @ torch.zeros(2, 3)


def memory_around_a_tensor(size: int) -> list[int]:
    """Resident bytes before the block, in it once the tensor is freed, and after the block."""
    resident = psutil.Process().memory_info
    bytes_used = [resident().rss]
    with memory_kept(CPU), memory_kept(CPU):
        tensor = torch.ones(size // 4)
        del tensor
        bytes_used.append(resident().rss)
    return [*bytes_used, resident().rss]


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc"
)
def test_freed_memory_is_kept_inside_the_block_and_returned_after_it():
    """In another process: once memory has run out in a thread, glibc serves it from elsewhere."""
    size = 400_000_000
    before, inside, after = in_another_process(memory_around_a_tensor, size)
    assert inside > before + size / 2
    assert after < before + size / 4


def test_memory_is_left_alone_where_it_is_not_the_cpus():
    with memory_kept(torch.device("meta")):
        pass

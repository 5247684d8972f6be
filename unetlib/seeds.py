"""A seed -> random numbers that depend on nothing else."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(seed: int, *place: int) -> Iterator[None]:
    """Random numbers of PyTorch, NumPy and Python that depend on the arguments alone.

    PyTorch's on the CPU and on a GPU in use. Afterwards all go on where they were. Meanwhile its
    default type is float32. ``place``: further integers, as a row, for others of the same seed.
    """
    if place:
        (seed,) = map(int, np.random.SeedSequence((seed, *place)).generate_state(1, np.uint64))
    numpy_state, python_state = np.random.get_state(), random.getstate()
    dtype = torch.get_default_dtype()
    gpus = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=gpus):
            torch.default_generator.manual_seed(seed)
            torch.cuda.manual_seed(seed) if gpus else None
            np.random.seed(seed % 2**32)
            random.seed(seed)
            torch.set_default_dtype(torch.float32)
            yield
    finally:
        torch.set_default_dtype(dtype)
        np.random.set_state(numpy_state)
        random.setstate(python_state)

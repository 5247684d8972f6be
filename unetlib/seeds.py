"""A seed -> random numbers that depend on nothing else."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(seed: int, *place: int) -> Iterator[None]:
    """Random numbers of PyTorch (on the CPU), NumPy and Python that depend on the arguments alone.

    Afterwards all three go on where they were. Meanwhile PyTorch's default type is float32.
    ``place``: further integers, such as an epoch and a row, for other numbers of the same seed.
    """
    if place:
        (seed,) = map(int, np.random.SeedSequence((seed, *place)).generate_state(1, np.uint64))
    numpy_state, python_state = np.random.get_state(), random.getstate()
    dtype = torch.get_default_dtype()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            np.random.seed(seed % 2**32)
            random.seed(seed)
            torch.set_default_dtype(torch.float32)
            yield
    finally:
        torch.set_default_dtype(dtype)
        np.random.set_state(numpy_state)
        random.setstate(python_state)

"""Memory: kept between steps where that is faster, and named where it does not suffice."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from unetlib.training import KEPT, TrainingError

# What Linux and macOS, Windows, MPS, and oneDNN (which names no cause) say.
OUT_OF_MEMORY = ("can't allocate", "not enough memory", "out of memory", "not create a primitive")


@contextmanager
def out_of_memory_named(images: int, size, device: torch.device) -> Iterator[None]:
    """The many errors of too little memory for a batch, as one ``TrainingError``."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        says_so = any(words in str(error) for words in OUT_OF_MEMORY)
        if not says_so and not isinstance(error, (MemoryError, torch.OutOfMemoryError)):
            raise
        what = f"{images} images of size={size} do not fit in the memory of {device.type.upper()}"
        raise TrainingError(f"{what}: lower batch_size, size or widths; {KEPT}.") from None


@contextmanager
def memory_kept(device: torch.device) -> Iterator[None]:
    """On a CPU with glibc (Linux): keep freed memory for the next layer instead of returning it.

    By default every large tensor is fetched from the system and handed back, and the system clears
    its pages each time: up to 40 % of a training step. At the end the memory is returned.
    """
    libc = ctypes.CDLL(None) if device.type == "cpu" and sys.platform == "linux" else None
    mallopt, trim = (getattr(libc, name, lambda *_: None) for name in ("mallopt", "malloc_trim"))
    trim_threshold, mmap_threshold, mmap_max = -1, -3, -4  # names of settings in glibc's malloc.h
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, -1)
    try:
        yield
    finally:
        for name, value in ((mmap_max, 65536), (mmap_threshold, 2**25), (trim_threshold, 2**26)):
            mallopt(name, value)
        trim(0)

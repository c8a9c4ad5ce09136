"""Random numbers that follow from where training is: nothing has to be remembered for a resumed run to draw the same.

Every draw comes from a generator seeded by the run's seed and by what the draw is for: (epoch, image), (epoch, batch).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch


def derived(seed: int, *purpose: int | str) -> int:
    """Return a seed in [0, 2^63) for one purpose, unrelated to those for others."""
    text = repr((seed, *purpose)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def seed_all(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch, on every device."""
    seed_host(seed)
    torch.manual_seed(seed)


def seed_host(seed: int) -> None:
    """Seed those of the processor alone: for every image, telling the other devices would cost a millisecond."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)


def host_state() -> tuple[object, ...]:
    """Return a value that differs once Python's or NumPy's global generator has drawn a number."""
    name, numbers, *rest = np.random.get_state()
    return random.getstate(), name, np.asarray(numbers).tobytes(), *rest


@contextmanager
def preserved(devices: Sequence[int] | None = None) -> Iterator[None]:
    """Give the caller's global generators back as they were; of devices those with these numbers, or all."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)

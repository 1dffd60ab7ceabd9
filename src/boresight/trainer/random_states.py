"""Keeping and restoring the random generators."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


def random_states() -> tuple[Any, ...]:
    """The states of the random generators that this process uses: on a GPU, the current one's."""
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda


def set_random_states(states: tuple[Any, ...]) -> None:
    """The inverse of `random_states`."""
    python, numpy, cpu, cuda = states
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(cpu)
    if cuda is not None:
        torch.cuda.set_rng_state(cuda)


@contextlib.contextmanager
def random_states_kept(during: tuple[Any, ...] | None = None) -> Iterator[None]:
    """Restore every random generator at the end.

    Args:
        during: the states at the beginning; None: as they are.
    """
    before = random_states()
    if during is not None:
        set_random_states(during)
    try:
        yield
    finally:
        set_random_states(before)

"""Ranks that fail together."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from accelerate import PartialState
from accelerate.utils import gather_object

from boresight.errors import EngineError, UserError

Result = TypeVar("Result")


def on_every_rank(work: Callable[[], Result]) -> Result:
    """What this rank's work returns, once the work of all ranks is done. All of them must call this.

    A rank that fails alone would leave the others waiting for it until a time-out that names nobody.

    Raises:
        UserError, EngineError: the work raised one, here or on another rank; there it is of the same kind and names the rank.
    """
    result, failure = None, None
    try:
        result = work()
    except (UserError, EngineError) as error:
        failure = error
    rank = PartialState().process_index
    everywhere = gather_object([None if failure is None else (rank, type(failure), str(failure))])
    if failure is not None:
        raise failure
    for found in everywhere:
        if found is not None:
            other, kind, message = found
            raise kind(f"On rank {other}: {message}")
    return result  # pyright: ignore[reportReturnType]

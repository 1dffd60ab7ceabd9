"""Work on all ranks that fails on all of them together."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from accelerate import PartialState
from accelerate.utils import gather_object

from boresight.errors import EngineError, UserError

Result = TypeVar("Result")


def on_every_rank(work: Callable[[], Result]) -> Result:
    """Run `work`, wait for all ranks, and return this rank's result. Every rank must call this.

    If one rank failed alone, the others would wait for it until a time-out that does not name the cause.

    Raises:
        UserError, EngineError: the work raised one on some rank. The other ranks raise the same type, and the message names the rank.
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

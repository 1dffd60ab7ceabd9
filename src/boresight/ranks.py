"""Work on all ranks that fails on all of them together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

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


def on_first_rank(work: Callable[[], Result]) -> Result:
    """Run `work` on the first rank and return its result on all. Every rank must call this. The result is pickled.

    Raises:
        UserError, EngineError: what the work raised.
    """
    outcome: list[Any] = [None, None]
    if PartialState().is_main_process:
        try:
            outcome[0] = work()
        except (UserError, EngineError) as error:
            outcome[1] = error
    result, failure = broadcast_object_list(outcome)
    if failure is not None:
        raise failure
    return result

"""Work on all ranks that fails on all of them together."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import TypeVar

from accelerate import PartialState
from accelerate.utils import gather_object

from boresight import rank_link
from boresight.errors import BoresightError, EngineError, NonFiniteError, RankError
from boresight.rank_link import MARK

Result = TypeVar("Result")


def on_every_rank(work: Callable[[], Result]) -> Result:
    """Run `work`, wait for all ranks, and return this rank's result. Every rank must call this, and `work` must not wait for others.

    If one rank failed alone, the others would wait for it until a time-out that does not name the cause.

    Raises:
        BoresightError: the work raised one on some rank. The other ranks raise the same type, and the message names the rank.
        RankError: the work raised anything else on another rank; the message has its trace.
    """
    result, failure = None, None
    try:
        result = work()
    except Exception as error:
        failure = error
    state = PartialState()
    if state.num_processes > 1:
        rank_link.at("waiting for the other ranks")
    everywhere = gather_object([None if failure is None else _described(state.process_index, failure)])
    if failure is not None:
        raise _everywhere(failure)
    for found in everywhere:
        if found is not None:
            other, kind, message = found
            raise _everywhere(kind(f"On rank {other}: {message}"))
    return result  # pyright: ignore[reportReturnType]


def _described(rank: int, failure: Exception) -> tuple[int, type[BoresightError], str]:
    """The rank, and the type and message of the error that the other ranks raise."""
    if isinstance(failure, BoresightError):
        return rank, type(failure), str(failure)
    return rank, RankError, "".join(traceback.format_exception(failure)).rstrip()


def on_first_rank(work: Callable[[], Result]) -> Result:
    """Run `work` on the first rank, and return its result on every rank. Every rank must call this.

    Raises:
        BoresightError: as `on_every_rank`.
    """
    first = PartialState().process_index == 0
    own = on_every_rank(lambda: work() if first else None)
    return gather_object([own])[0]


def is_raised_everywhere(error: BaseException) -> bool:
    """Whether every rank raises this error at the same place, so that they may still work together."""
    # Engines fail on all ranks, and steps that are not finite are summed over them.
    return isinstance(error, EngineError | NonFiniteError) or error.__dict__.get(MARK, False)


def _everywhere(error: Exception) -> Exception:
    setattr(error, MARK, True)
    return error

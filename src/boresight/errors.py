"""The exception hierarchy of boresight.

BoresightError
├── UserError (also ValueError)     an input that cannot be used; the message names it and the fix
│   ├── DataError                   a row, a column, a file
│   │   ├── SplitError            a data set has no split of that name
│   │   └── ImageError            an image is missing, broken, too large, or miscounted
│   ├── ConfigError                 an option that is unknown, contradictory or unsupported
│   ├── ModelError                  a model or processor that lacks a required ability
│   └── RewardError                 a reward function that broke its contract
├── EngineError (also RuntimeError)   a generation engine failed, or disagrees with the trainer
│   ├── EngineGoneError             one of several engines is unavailable: the others go on
│   └── EngineRestartedError        it was restarted, or lost the policy's weights: sync, and sample again
├── DiskError (also OSError)        the run folder cannot be written to, or its disk is full
├── CheckpointError                 a checkpoint is incomplete or damaged; the message names its files
├── NonFiniteError                 losses, gradients or weights stopped being finite numbers
├── RankError (also RuntimeError)   another rank failed; the message has its trace
├── StoppedError                    the user ended a run; the message says how to resume
└── ShapeError (also AssertionError)   a bug in boresight: a tensor of the wrong shape
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BoresightError(Exception):
    """The base class of all of boresight's errors."""


class UserError(BoresightError, ValueError):
    """An input of the user cannot be used."""


class DataError(UserError):
    """A row cannot be turned into a group. The message starts with the row's name."""


class SplitError(DataError):
    """A data set has no split of that name."""


class ImageError(DataError):
    """An image is missing, broken, too large, or does not match its placeholders."""


class ConfigError(UserError):
    """An option is unknown, contradicts another, or is not supported here."""


class ModelError(UserError):
    """A model or processor lacks a required ability."""


class RewardError(UserError):
    """A reward function broke its contract: wrong length, wrong type, infinity."""


class EngineError(BoresightError, RuntimeError):
    """A generation engine failed, disagreed with the trainer, or did not answer in time."""


class SyncError(EngineError):
    """Weights did not arrive at the engine as they were sent. The message names them."""


class EngineRestartedError(EngineError):
    """An engine was restarted, or holds other weights than those sent to it: sync it and repeat the interrupted call."""


class EngineGoneError(EngineError):
    """One of several engines is unavailable, or did not answer in time. The others go on without it."""


class DiskError(BoresightError, OSError):
    """A file of the run cannot be written: the disk is full or read-only. The message names it and the last whole checkpoint."""


class CheckpointError(BoresightError):
    """A checkpoint is incomplete or damaged. The message names the files concerned."""


class NonFiniteError(BoresightError):
    """Losses, gradients or weights are NaN or infinite. The message names the step and its rows."""


class RankError(BoresightError, RuntimeError):
    """Another rank failed, so this one cannot go on. The message names it and has its trace."""


class StoppedError(BoresightError):
    """The user stopped a run early. The message states what was saved and how to resume.

    Args:
        signal: the number of the signal: 2 for Ctrl-C (SIGINT), 15 for SIGTERM.
    """

    def __init__(self, message: str, signal: int = 2) -> None:
        super().__init__(message)
        self.signal = signal


class ShapeError(BoresightError, AssertionError):
    """A tensor does not have the shape that its interface states. This is always a bug in boresight."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for an unknown name, such as ``" Did you mean 'beta'?"``; empty if no known name is similar."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {match[0]!r}?" if match else ""


def cause_of(error: BaseException) -> str:
    """An error of another library in one line: its class and the first line of what it says."""
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0].removesuffix(": ")

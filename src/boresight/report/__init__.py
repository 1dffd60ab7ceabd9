"""A run's records and its page: metrics, completions, time per phase, verdicts.

Nothing heavy is loaded until a name is used: a command line reads this room's options.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from boresight.report.completions import CompletionStore, prompt_text, read_completions
    from boresight.report.jsonl import StepLines, read_lines
    from boresight.report.metrics import MeanMetrics
    from boresight.report.terminal import print_completions
    from boresight.report.timeline import PHASES, Timeline

_HOMES = {
    "PHASES": "timeline",
    "CompletionStore": "completions",
    "MeanMetrics": "metrics",
    "StepLines": "jsonl",
    "Timeline": "timeline",
    "print_completions": "terminal",
    "prompt_text": "completions",
    "read_completions": "completions",
    "read_lines": "jsonl",
}

__all__ = [
    "PHASES",
    "CompletionStore",
    "MeanMetrics",
    "StepLines",
    "Timeline",
    "print_completions",
    "prompt_text",
    "read_completions",
    "read_lines",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)

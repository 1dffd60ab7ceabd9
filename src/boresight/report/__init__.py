"""A run's records and its page: metrics, completions, time per phase, verdicts."""

from boresight.report.completions import CompletionStore, prompt_text, read_completions
from boresight.report.jsonl import StepLines, read_lines
from boresight.report.metrics import MeanMetrics
from boresight.report.terminal import print_completions
from boresight.report.timeline import PHASES, Timeline

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

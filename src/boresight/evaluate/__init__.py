"""Standard benchmarks, through lmms-eval: the same questions, prompts and sampler as in the comparison, each score beside a blind one.

job          the whole evaluation: a process with lmms-eval asks the models, and its files are read
questions    a benchmark's messages as a row
generation   a task's generation options as sampling settings
requests     a saved model answers lmms-eval's requests
samples      the files that lmms-eval writes: a score for each question
scores       the statistics of scores: intervals, and the exact paired test
tables       what is shown: Markdown and terminal
inside       what runs in the process that has lmms-eval
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from boresight.lazy import lazy_names

if TYPE_CHECKING:
    from boresight.evaluate.job import EvalSettings, Evaluation, evaluate

_HOMES = {"EvalSettings": "job", "Evaluation": "job", "evaluate": "job"}

__all__ = ["EvalSettings", "Evaluation", "evaluate"]

__getattr__ = lazy_names(__name__, _HOMES)

"""The same questions to several saved models: who is right how often, and who fixes or breaks what.

job          the whole comparison, from models and rows to a folder of answers
answering    one saved model answers
with_tools   the tools that models may call while they answer
with_vllm    answers by vLLM
marking      a reward marks the answers
answers      the folder that keeps questions and answers
accuracy     statistics of right and wrong answers
comparison   what is shown: by page (HTML), markdown and terminal
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from boresight.lazy import lazy_names

if TYPE_CHECKING:
    from boresight.compare.answering import AnswerSettings
    from boresight.compare.job import Candidate, compare, stored_comparison
    from boresight.compare.with_tools import ToolSettings

_HOMES = {
    "AnswerSettings": "answering",
    "Candidate": "job",
    "ToolSettings": "with_tools",
    "compare": "job",
    "stored_comparison": "job",
}

__all__ = ["AnswerSettings", "Candidate", "ToolSettings", "compare", "stored_comparison"]

__getattr__ = lazy_names(__name__, _HOMES)

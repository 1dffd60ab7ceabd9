"""Several models answer the same questions: who is right how often, and who fixes or breaks what."""

from boresight.compare.answering import AnswerSettings
from boresight.compare.job import Candidate, compare, stored_comparison

__all__ = ["AnswerSettings", "Candidate", "compare", "stored_comparison"]

"""The gold answers of the training rows, marked by the answer rewards before the first step (`rewards.check`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from boresight.data.sources import RowDataset, RowStream
from boresight.errors import DataError, RewardError
from boresight.rewards.check import GoldCheck, check_gold
from boresight.rewards.check_boxes import BoxCheck, check_boxes
from boresight.rewards.score import Scorer
from boresight.trainer.loading import is_stream
from boresight.trainer.reasoning import ThinkState, think_state
from boresight.types import Prompt, Row

GOLD_ROWS = 256
"""Maximum rows whose gold answers are scored before training."""
STREAMED_GOLD_ROWS = 64
"""The same for a stream, whose first rows are read once more for it."""


class GoldAnswers:
    """Rows whose gold answers are tried: `GOLD_ROWS` at random; of a stream the first `STREAMED_GOLD_ROWS`, without those that cannot be
    read.

    Args:
        records: the training set.
        encode: from a row to its prompt.
        tokenizer: decodes a prompt.

    Attributes:
        is_usable: whether one of the rows can be encoded.
        think_state: what the prompts say of reasoning, see `reasoning.think_state`.
    """

    def __init__(
        self, records: Any, *, seed: int, encode: Callable[[Row], Prompt], tokenizer: PreTrainedTokenizerBase
    ) -> None:
        self.is_streamed = is_stream(records)
        self.rows = _first(records) if self.is_streamed else _picked(records, seed)
        prompt = self._first_prompt(encode)
        self.is_usable = prompt is not None
        self.think_state: ThinkState | None = None if prompt is None else think_state(prompt, tokenizer)

    def _first_prompt(self, encode: Callable[[Row], Prompt]) -> Prompt | None:
        for row in self.rows:
            with suppress(DataError):
                return encode(row)
        return None

    def checks(self, scorer: Scorer, template: str) -> list[GoldCheck | BoxCheck]:
        """One result for each answer reward; none if no row can be used.

        Args:
            template: the option `gold_template`.
        """
        if not self.is_usable:
            return []
        is_opened = self.think_state == "opened"
        # The completions that are tried follow a prompt as a model's do.
        template = template.removeprefix("<think>") if is_opened else template
        prompts = [_unprocessed(row) for row in self.rows]
        return [*check_gold(scorer.without_tokens(is_opened), prompts, template), *check_boxes(scorer, prompts)]


def _first(records: Any) -> list[Row]:
    return list(islice(RowStream(records, on_bad_row="drop"), STREAMED_GOLD_ROWS))


def _picked(records: Any, seed: int) -> list[Row]:
    rows = RowDataset(records)
    picked = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:GOLD_ROWS].tolist()
    return [rows[index] for index in sorted(picked)]


def gold_findings(checks: Sequence[GoldCheck | BoxCheck], *, is_error: bool) -> list[str]:
    """One line for each result.

    Raises:
        RewardError: `is_error` is set, and a reward does not give the full score to all gold answers, or also gives it to nonsense, reads
            only a part of a gold, or applies to none.
    """
    unsound = [str(check) for check in checks if not check.is_sound]
    if unsound and is_error:
        raise RewardError(
            f"The rewards do not accept the gold answers. {' '.join(f'{line}.' for line in unsound)} Fix these rows, or set gold_template "
            "to the format of a right answer, or set gold_check='warn'."
        )
    return [f"gold check: {check}." for check in checks]


def _unprocessed(row: Row) -> Prompt:
    """A prompt for reward functions only: its images are not processed, and it has no tokens."""
    nothing = torch.empty(0, dtype=torch.long)
    return Prompt(row=row, ids=nothing, token_types=nothing, vision={}, unexpanded_ids=nothing)

"""Answers marked by a reward function."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from boresight.compare.answers import Answer
from boresight.data.images import decode
from boresight.errors import ConfigError
from boresight.rewards.choice import choice_letter
from boresight.rewards.extract import gold_answer
from boresight.rewards.function import RewardFunc
from boresight.rewards.latex import canonical_number, latex
from boresight.rewards.number import stated_number
from boresight.rewards.score import Scorer
from boresight.types import Completion, Group, Prompt, Row


def chosen_reward(rows: Sequence[Row]) -> str:
    """The reward that suits the solutions: letters, numbers, formulas or words.

    `choice_letter_reward` where every solution is a letter, `numeric_answer_reward` where every one is a number, `accuracy_reward`
    where every one is a formula or a number, and otherwise `exact_answer_reward`.

    Raises:
        ConfigError: rows have no solution, or formulas need math-verify and it is not installed.
    """
    golds = [row.columns.get("solution") for row in rows]
    if missing := [row.index for row, gold in zip(rows, golds, strict=True) if gold is None]:
        raise ConfigError(
            f"{len(missing)} rows have no solution (row {missing[0]} first), so no answer can be marked: name the "
            "column with --solution_column, or a reward that needs none with --reward."
        )
    texts = [gold_answer(gold).strip() for gold in golds]
    if all(choice_letter(text) for text in texts):
        return "choice_letter_reward"
    numbers = [stated_number(text) is not None and " " not in text for text in texts]
    if all(numbers):
        return "numeric_answer_reward"
    if all(is_number or _is_formula(text) for is_number, text in zip(numbers, texts, strict=True)):
        if importlib.util.find_spec("math_verify") is None:
            raise ConfigError(
                "The solutions are formulas, and accuracy_reward needs math-verify: pip install 'boresight[math]'"
            )
        return "accuracy_reward"
    return "exact_answer_reward"


def _is_formula(text: str) -> bool:
    """Whether a solution is one for `accuracy_reward`, and no number with words behind it."""
    if "$" in text or "\\" in text:
        return True
    return latex(text) is not None and canonical_number(text, whole=True) is None


def score(reward: str | RewardFunc, rows: Sequence[Row], answers: Sequence[Answer]) -> tuple[str, list[Answer]]:
    """The reward's name, and the answers with their rewards: None where it does not apply, or failed.

    Raises:
        RewardError: the reward broke its contract, or fails on more than half of the answers.
    """
    known: Mapping[int, Answer] = {row.index: given for row, given in zip(rows, answers, strict=True)}
    scorer = Scorer(
        reward,
        decode_images=lambda images: [decode(image) for image in images],
        model_sizes=lambda prompt: known[prompt.row.index].model_sizes or (),
        think_opened=lambda prompt: known[prompt.row.index].think_opened,
    )
    try:
        values = scorer.score([_group(row, given) for row, given in zip(rows, answers, strict=True)]).total.tolist()
    finally:
        scorer.close()
    (name,) = scorer.names
    return name, [
        replace(given, scores={**given.scores, name: None if math.isnan(value) else value})
        for given, value in zip(answers, values, strict=True)
    ]


def _group(row: Row, given: Answer) -> Group:
    """A question and its answer as a group for the scorer, which reads only the prompt's row."""
    nothing = torch.zeros(0, dtype=torch.long)
    ids = torch.tensor(given.ids, dtype=torch.long)
    messages = None if given.messages is None else tuple(dict(message) for message in given.messages)
    completion = Completion(
        ids, torch.ones(len(ids), dtype=torch.bool), given.text, truncated=given.truncated, messages=messages
    )
    return Group(Prompt(row, nothing, nothing, {}, nothing), (completion,))

"""The comparison from start to end: every model answers what it has not answered yet, and all answers are marked."""

from __future__ import annotations

import gc
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from boresight.compare.answering import AnswerSettings, answer, source_digest
from boresight.compare.marking import chosen_reward, score
from boresight.data.sources import RowDataset, check_rows
from boresight.errors import ConfigError, DataError
from boresight.report.answers import Answer, AnswerStore, checked_name
from boresight.report.comparison import Comparison
from boresight.rewards.reward import RewardFunc, load_reward
from boresight.trainer.precomputed import sample_digest
from boresight.types import Row

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Called with a model's name, how many of its questions are answered, and of how many."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that takes part."""

    name: str
    """What the page calls it."""
    source: str
    """A folder or a hub id, of a model or of an adapter."""

    @classmethod
    def parse(cls, text: str) -> Candidate:
        """Of ``NAME=FOLDER``; without a name, the last part of the path is its name."""
        name, given, source = text.partition("=")
        if not given:
            source = text
            path = Path(text)
            name = path.parent.name if path.name == "model" and path.parent.name else path.name
        if not source:
            raise ConfigError(f"--model {text!r} names no model: write --model NAME=FOLDER.")
        return cls(checked_name(name), source)


def compare(
    candidates: Sequence[Candidate],
    records: Any,
    folder: str | Path,
    *,
    settings: AnswerSettings | None = None,
    reward: str | RewardFunc | None = None,
    right_at: float = 1.0,
    kind: str | None = "kind",
    places: Sequence[int] | None = None,
    title: str = "Comparison",
    progress: Progress | None = None,
) -> Comparison:
    """Ask every model every question, mark the answers, and keep all of it in a folder.

    One model is in memory at a time. What a model has answered before, under the same settings and with the same weights, is not
    asked again; after an interrupt the same call goes on where it stopped.

    Args:
        candidates: the models, in the order in which they are shown; the first is what the others are measured by.
        records: rows with prompts and a `solution`, as `data.sources.load_rows` returns them.
        folder: where questions, images and answers are kept.
        settings: how to ask; greedily by default.
        reward: marks the answers: a name or a function. None chooses by the solutions (`marking.chosen_reward`).
        right_at: the least reward that makes an answer right.
        kind: the column that accuracies are broken down by, where the data set has it.
        places: which records, by their places; None: all.
        title: of the page.
        progress: told how far each model is.

    Raises:
        ConfigError: no model, or two of one name.
        ModelError, DataError, RewardError: a model, a row or the reward cannot be used.
    """
    names = [candidate.name for candidate in candidates]
    if not names:
        raise ConfigError("There is no model to compare: name some with --model NAME=FOLDER.")
    if len(set(names)) < len(names):
        raise ConfigError(
            f"Two models are called {max(names, key=names.count)!r}: give each a name, as in base=FOLDER."
        )
    settings = settings or AnswerSettings()
    rows = _rows(records, places)
    marker = load_reward(
        chosen_reward(rows) if reward is None else reward
    )  # before any model is: its name may be misspelt
    store = AnswerStore(folder)
    keys = question_keys(rows, drawn=settings.temperature > 0)
    questions = store.keep_questions(rows, keys, kind=kind)
    answers: dict[str, list[Answer]] = {}
    name = ""
    for candidate in candidates:
        known, described = _answered(candidate, rows, keys, settings, store, progress)
        name, scored = score(marker, rows, [known[key] for key in keys])
        answers[candidate.name] = scored
        store.keep_answers(candidate.name, described, known | dict(zip(keys, scored, strict=True)))
    about = {
        "title": title,
        "models": {candidate.name: candidate.source for candidate in candidates},
        "reward": name,
        "right_at": right_at,
        "settings": settings.described(),
    }
    store.keep_comparison(about)
    return Comparison(questions=questions, answers=answers, images=store.images_folder, **about)


def stored_comparison(folder: str | Path) -> Comparison:
    """The comparison that a folder keeps, without asking any model.

    Raises:
        DataError: it keeps none.
    """
    store = AnswerStore(folder)
    about, questions = store.comparison(), store.questions()
    answers = {}
    for name in about["models"]:
        _, known = store.answers(name)
        missing = sum(question.key not in known for question in questions)
        if missing:
            raise DataError(f"{folder}: {name} has not answered {missing} of {len(questions)} questions; ask it again.")
        answers[name] = [known[question.key] for question in questions]
    return Comparison(questions=questions, answers=answers, images=store.images_folder, **about)


def question_keys(rows: Sequence[Row], *, drawn: bool) -> list[str]:
    """What tells questions apart: prompt and images; where answers are drawn also the row, whose number seeds the draws.

    A question that comes again is told apart by its row, too: its solution may be another.
    """
    keys: dict[str, int] = {}
    for row in rows:
        asked = sample_digest(replace(row, completions=()))
        own = hashlib.sha256(f"{row.index} {asked}".encode()).hexdigest()
        keys[own if drawn or asked in keys else asked] = row.index
    return list(keys)


def _rows(records: Any, places: Sequence[int] | None) -> list[Row]:
    """The rows that are asked, all of them read before any model is loaded."""
    if not hasattr(records, "__len__"):
        raise DataError("A data set that is streamed has no known end: give a file or a folder.")
    if places is None:
        check_rows(records)  # names all bad rows at once
    data = RowDataset(records)
    rows = [data[place] for place in (range(len(data)) if places is None else places)]
    if not rows:
        raise DataError("The data set has no rows.")
    if bare := next((row for row in rows if not row.prompt), None):
        raise DataError(f"row {bare.index}: there is no prompt to answer; messages are for training alone.")
    return rows


def _answered(
    candidate: Candidate,
    rows: Sequence[Row],
    keys: Sequence[str],
    settings: AnswerSettings,
    store: AnswerStore,
    progress: Progress | None,
) -> tuple[dict[str, Answer], Mapping[str, str]]:
    """A model's answers by the keys of their questions, old ones and new; and what they depend on."""
    described = settings.described() | {"weights": source_digest(candidate.source)}
    before, known = store.answers(candidate.name)
    if before and before != described:
        changed = [name for name in {**before, **described} if before.get(name) != described.get(name)]
        logger.warning("%s is asked anew: another %s than before.", candidate.name, " and another ".join(changed))
        known = {}
    places = [place for place, key in enumerate(keys) if key not in known]
    done = len(keys) - len(places)
    if progress is not None:
        progress(candidate.name, done, len(keys))
    for batch in answer(candidate.source, [rows[place] for place in places], settings) if places else ():
        known |= {keys[places[place]]: said for place, said in batch.items()}
        store.keep_answers(candidate.name, described, known)
        done += len(batch)
        if progress is not None:
            progress(candidate.name, done, len(keys))
    # The generator is done, and with it went the only hold on the model.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return known, described

"""A comparison from start to end: every model answers the questions it has not answered yet, and all answers are marked."""

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
from boresight.compare.answers import Answer, AnswerStore, checked_name
from boresight.compare.comparison import Comparison
from boresight.compare.marking import chosen_reward, score
from boresight.compare.with_tools import ToolSettings
from boresight.data.sources import RowDataset, check_rows
from boresight.errors import ConfigError, DataError, nearest
from boresight.files import model_name
from boresight.rewards.function import RewardFunc, load_reward
from boresight.trainer.precomputed import sample_digest
from boresight.types import Row

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Called with a model's name, the number of its answered questions, and the number of all questions."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model in a comparison."""

    name: str
    """Its name on the page."""
    source: str
    """A folder or a hub id, of a model or of an adapter."""

    @classmethod
    def parse(cls, text: str) -> Candidate:
        """Read ``NAME=FOLDER``; without a name, the last part of the path is the name."""
        name, given, source = text.partition("=")
        if not given:
            source, name = text, model_name(text)
        if not source:
            raise ConfigError(f"--model {text!r} names no model: write --model NAME=FOLDER.")
        return cls(checked_name(name), source)

    @classmethod
    def all_of(cls, text: str) -> list[Candidate]:
        """Read ``NAME=FOLDER``, or ``NAME=RUN/checkpoint-*``: then one for each folder, called ``NAME-50``, in the order of their steps.

        Raises:
            ConfigError: no folder is called so.
        """
        name, _, pattern = text.rpartition("=")
        if "*" not in pattern:
            return [cls.parse(text)]
        home, wanted = Path(pattern).parent, Path(pattern).name
        steps = {number: path for path in home.glob(wanted) if (number := path.name.rpartition("-")[2]).isdigit()}
        if not steps:
            raise ConfigError(f"--model {text!r}: no folder is called so (looked in {home.resolve()}).")
        return [cls(checked_name(f"{name or home.name}-{step}"), str(steps[step])) for step in sorted(steps, key=int)]


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
    without_tools: Sequence[str] = (),
    progress: Progress | None = None,
) -> Comparison:
    """Ask every model every question, mark the answers, and store all of it in a folder.

    One model is in memory at a time. A question that a model has answered before, under the same settings and with the same weights, is
    not asked again; after an interrupt the same call continues where it stopped.

    Args:
        candidates: the models, in the order in which they are shown; the others are compared with the first.
        records: rows with prompts and a `solution`, as `data.sources.load_rows` returns them.
        folder: for questions, images and answers.
        settings: how to ask; greedily by default.
        reward: marks the answers: a name or a function. None chooses by the solutions (`marking.chosen_reward`).
        right_at: the least reward that makes an answer right.
        kind: the column with the kind of question, where the data set has it; accuracies are also given by kind.
        places: the places of the records that are asked; None: all.
        title: of the page.
        without_tools: names of the models that answer without the tools of `settings`.
        progress: called after every batch.

    Raises:
        ConfigError: no model, or two with the same name.
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
    asking = _asking(names, settings, without_tools)
    rows = _rows(records, places)
    marker = load_reward(
        chosen_reward(rows) if reward is None else reward
    )  # before any model is loaded: its name may be misspelt
    store = AnswerStore(folder)
    keys = question_keys(rows, sampled=settings.temperature > 0)
    questions = store.keep_questions(rows, keys, kind=kind)
    answers: dict[str, list[Answer]] = {}
    samples: dict[str, list[list[Answer]]] = {}
    name = ""
    for candidate in candidates:
        known, described = _answered(candidate, rows, keys, asking[candidate.name], store, progress)
        for number in range(settings.num_samples):
            own = [sample_key(key, number) for key in keys]
            name, scored = score(marker, rows, [known[key] for key in own])
            known |= dict(zip(own, scored, strict=True))
        answers[candidate.name] = [known[key] for key in keys]
        samples[candidate.name] = _samples(known, keys, settings.num_samples)
        store.keep_answers(candidate.name, described, known)
    about = {
        "title": title,
        "models": {candidate.name: candidate.source for candidate in candidates},
        "reward": name,
        "right_at": right_at,
        "settings": settings.described(),
        "without_tools": list(without_tools),
    }
    store.keep_comparison(about)
    return Comparison(questions=questions, answers=answers, samples=samples, images=store.images_folder, **about)


def stored_comparison(folder: str | Path) -> Comparison:
    """The comparison that a folder holds; no model is asked.

    Raises:
        DataError: it holds none.
    """
    store = AnswerStore(folder)
    about, questions = store.comparison(), store.questions()
    answers, samples = {}, {}
    num_samples = int(about["settings"].get("num_samples", 1))
    for name in about["models"]:
        _, known = store.answers(name)
        keys = [question.key for question in questions]
        missing = sum(sample_key(key, num_samples - 1) not in known for key in keys)
        if missing:
            raise DataError(f"{folder}: {name} has not answered {missing} of {len(questions)} questions; ask it again.")
        answers[name] = [known[key] for key in keys]
        samples[name] = _samples(known, keys, num_samples)
    return Comparison(questions=questions, answers=answers, samples=samples, images=store.images_folder, **about)


def sample_key(question: str, number: int) -> str:
    """The key of a question's answer of this number: the question's own for the first."""
    return f"{question}#{number}" if number else question


def _samples(known: Mapping[str, Answer], keys: Sequence[str], num_samples: int) -> list[list[Answer]]:
    """Question → its answers."""
    return [[known[sample_key(key, number)] for number in range(num_samples)] for key in keys]


def question_keys(rows: Sequence[Row], *, sampled: bool) -> list[str]:
    """Keys that identify questions: digests of prompt and images; where answers are sampled also of the row's number, which seeds them.

    A repeated question gets a key with its row, too, since its solution may be another.
    """
    keys: dict[str, int] = {}
    for row in rows:
        asked = sample_digest(replace(row, completions=()))
        own = hashlib.sha256(f"{row.index} {asked}".encode()).hexdigest()
        keys[own if sampled or asked in keys else asked] = row.index
    return list(keys)


def _rows(records: Any, places: Sequence[int] | None) -> list[Row]:
    """The rows that are asked, all read before any model is loaded."""
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


def _asking(names: Sequence[str], settings: AnswerSettings, without_tools: Sequence[str]) -> dict[str, AnswerSettings]:
    """Model → how it is asked."""
    for name in without_tools:
        if name not in names:
            raise ConfigError(f"--without_tools {name}: no model is called so.{nearest(name, names)}")
    if without_tools and not settings.tools:
        raise ConfigError(
            "--without_tools has no effect: no model has tools. Name some with --tools or --environment_factory."
        )
    settings.tools.environments()  # before any model is loaded: a tool's name may be misspelt
    bare = replace(settings, tools=ToolSettings())
    return {name: bare if name in without_tools else settings for name in names}


def _answered(
    candidate: Candidate,
    rows: Sequence[Row],
    keys: Sequence[str],
    settings: AnswerSettings,
    store: AnswerStore,
    progress: Progress | None,
) -> tuple[dict[str, Answer], Mapping[str, str]]:
    """A model's answers by the keys of their questions, stored and new ones; and the settings that they depend on."""
    described = settings.described() | {"weights": source_digest(candidate.source)}
    before, known = store.answers(candidate.name)
    if before and before != described:
        changed = [name for name in {**before, **described} if before.get(name) != described.get(name)]
        logger.warning("%s is asked again: %s changed since the last time.", candidate.name, " and ".join(changed))
        known = {}
    places = [place for place, key in enumerate(keys) if key not in known]
    done = len(keys) - len(places)
    if progress is not None:
        progress(candidate.name, done, len(keys))
    asked = [rows[place] for place in places]
    for batch in answer(candidate.source, asked, settings, keep_image=store.keep_image) if places else ():
        for place, given in batch.items():
            known |= {sample_key(keys[places[place]], number): one for number, one in enumerate(given)}
        store.keep_answers(candidate.name, described, known)
        done += len(batch)
        if progress is not None:
            progress(candidate.name, done, len(keys))
    # The generator is exhausted, and with it the only reference to the model is gone.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return known, described

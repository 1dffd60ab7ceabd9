"""The files that lmms-eval writes: a task's own scores, and what each question got."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boresight.errors import DataError

SCORE = "score"
"""Where a question's value is a mapping, the key of its number; a task may name another (`score_key`)."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One metric of a task, for one model."""

    value: float | None
    """As the task adds its questions up; None where that is no number."""
    scores: Mapping[int, float]
    """Number of the question → its score. Empty where the task keeps no number for a question."""
    higher_is_better: bool = True


@dataclass(frozen=True, slots=True)
class TaskResult:
    """One task, asked of one model."""

    metrics: Mapping[str, Measured]
    """By name; a filter of the task that is not `none` follows in brackets."""
    questions: Mapping[int, tuple[Any, Any]]
    """Number of the question → its text and its right answer, as logged. The `doc_hash` of a sample is of no use: it is the digest of
    `null` for every question of a task with generated answers, whose requests hold no document."""


def read_results(folder: str | Path) -> dict[str, TaskResult]:
    """The tasks of an `--output_path` of lmms-eval, which was run with `--log_samples`.

    Raises:
        DataError: the folder has no results, or a task's samples are missing.
    """
    found = sorted(Path(folder).rglob("*_results.json"))
    if not found:
        raise DataError(f"{folder}: lmms-eval left no results.")
    whole: dict[str, Any] = json.loads(found[-1].read_text(encoding="utf-8"))
    start = found[-1].name.removesuffix("results.json")
    tasks: dict[str, TaskResult] = {}
    for task, config in whole["configs"].items():
        path = found[-1].with_name(f"{start}samples_{task}.jsonl")
        if not path.exists():
            raise DataError(f"{path}: the samples of {task} are missing.")
        with path.open(encoding="utf-8") as file:
            samples = [json.loads(line) for line in file]
        tasks[task] = _task(whole["results"].get(task, {}), whole["higher_is_better"].get(task, {}), config, samples)
    return tasks


def _task(
    results: Mapping[str, Any],
    higher: Mapping[str, Any],
    config: Mapping[str, Any],
    samples: Iterable[Mapping[str, Any]],
) -> TaskResult:
    # A task with several filters logs every question once for each of them, one filter after the other.
    by_filter: list[dict[int, Mapping[str, Any]]] = []
    seen: dict[int, int] = defaultdict(int)
    for sample in samples:
        number = sample["doc_id"]
        if seen[number] == len(by_filter):
            by_filter.append({})
        by_filter[seen[number]][number] = sample
        seen[number] += 1
    names = [key.rpartition(",") for key in results if "," in key and "_stderr" not in key]
    filters = list(dict.fromkeys(used for _, _, used in names))
    key = config.get("score_key") or SCORE
    metrics: dict[str, Measured] = {}
    for metric, _, used in names:
        place = filters.index(used)
        own = by_filter[place] if place < len(by_filter) else {}
        scores = {
            number: score for number, each in own.items() if (score := _number(each.get(metric), key)) is not None
        }
        name = metric if used == "none" else f"{metric} ({used})"
        metrics[name] = Measured(_number(results[f"{metric},{used}"], key), scores, higher.get(metric) is not False)
    first = by_filter[0] if by_filter else {}
    return TaskResult(metrics, {number: (each["input"], each["target"]) for number, each in first.items()})


def _number(value: Any, key: str) -> float | None:
    if isinstance(value, Mapping):
        value = value.get(key)
    return float(value) if isinstance(value, bool | int | float) else None

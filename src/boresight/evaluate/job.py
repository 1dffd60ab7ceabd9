"""An evaluation from start to end: a process with lmms-eval asks every model, and the files that it leaves become tables."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

from boresight.compare.answering import AnswerSettings
from boresight.compare.job import Candidate
from boresight.errors import ConfigError, DataError, EngineError
from boresight.evaluate.samples import Measured, TaskResult, read_results
from boresight.evaluate.scores import Mean, Paired, mean_score, paired
from boresight.files import check_writable, remove_folder
from boresight.rollout.vllm.saved import RANK_VARIABLES

Progress = Callable[[str, int, int], None]
"""Called with a model's name (and whether it is blind), the number of its answered questions, and the number of all."""

VERSION = version("boresight")

INSTALL = (
    "lmms-eval pins packages, so give it an environment of its own. In boresight's clone: python -m venv lmms && lmms/bin/pip install . "
    "lmms-eval==0.7.3 'filelock<4.3'; then pass --python lmms/bin/python."
)
"""lmms-eval 0.7.3 imports `filelock._api`, which filelock 4.3 does not have."""
LOG = "log.txt"
"""What lmms-eval and its libraries printed."""


@dataclass(frozen=True, slots=True)
class EvalSettings:
    """What is asked, and how."""

    tasks: tuple[str, ...]
    """Names of lmms-eval's tasks, groups and tags, or of those in `include_path`."""
    limit: int | None = None
    """Only the first questions of each task. None: all."""
    blind: bool = True
    """Whether every model is also asked with plain gray images."""
    include_path: str | None = None
    """A folder with further tasks."""
    system_prompt: str | None = None
    max_completion_length: int | None = None
    """Most tokens of an answer. None: the task's own limit."""
    batch_size: int = 16
    dtype: str = "auto"
    use_vllm: bool = False
    min_pixels: int | None = None
    max_pixels: int | None = None

    def __post_init__(self) -> None:
        if not self.tasks or not all(self.tasks):
            raise ConfigError("There is no task: name some with --tasks, as in --tasks mme,realworldqa.")
        for name in ("limit", "max_completion_length"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"{name}={value}: it must be at least 1.")
        if self.include_path is not None and not Path(self.include_path).is_dir():
            raise ConfigError(f"include_path={self.include_path!r}: there is no such folder.")
        AnswerSettings(**self.answering())

    def answering(self) -> dict[str, Any]:
        """Fields of `AnswerSettings`."""
        return {name: getattr(self, name) for name in ("batch_size", "dtype", "use_vllm", "min_pixels", "max_pixels")}


@dataclass(frozen=True, slots=True)
class ModelScore:
    """One metric of one task, of one model."""

    value: float | None
    """As the task adds its questions up."""
    mean: Mean | None
    """Of the questions' scores; None where the task keeps none for a question."""
    blind: ModelScore | None = None
    """The same without images."""
    from_blind: Paired | None = None
    """What the images change, question by question."""
    from_first: Paired | None = None
    """What changes from the first model to this one; None for the first."""


@dataclass(frozen=True)
class Evaluation:
    """Scores of several models."""

    models: Mapping[str, str]
    """Name → where the model was loaded from. The others are compared with the first."""
    settings: EvalSettings
    tasks: Mapping[str, Mapping[str, Mapping[str, ModelScore]]]
    """Task → metric → model → score."""
    truncated: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Model → task → answers, with images, that reached the limit of their length."""

    def as_json(self) -> dict[str, Any]:
        """All of it, with the p-values."""

        def shown(score: ModelScore | None) -> dict[str, Any] | None:
            if score is None:
                return None
            pairs = {
                name: None if (pair := getattr(score, name)) is None else asdict(pair) | {"p": pair.p}
                for name in ("from_blind", "from_first")
            }
            mean = None if score.mean is None else asdict(score.mean)
            return {"value": score.value, "mean": mean, "blind": shown(score.blind)} | pairs

        tasks = {
            task: {metric: {name: shown(own) for name, own in found.items()} for metric, found in metrics.items()}
            for task, metrics in self.tasks.items()
        }
        return {
            "boresight": VERSION,
            "models": dict(self.models),
            "settings": asdict(self.settings),
            "tasks": tasks,
            "truncated": {name: dict(own) for name, own in self.truncated.items()},
        }


def evaluate(
    candidates: Sequence[Candidate],
    settings: EvalSettings,
    folder: str | Path,
    *,
    python: str | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Ask every model the questions of standard benchmarks, with images and blind, and test the differences.

    Args:
        candidates: the models, in the order in which they are shown.
        settings: what is asked, and how.
        folder: for lmms-eval's own files; those of the same model before are removed.
        python: of an environment that has lmms-eval and this boresight; None: this one.
        progress: called while models answer.

    Raises:
        ConfigError: no model, two with the same name, or no lmms-eval.
        EngineError: lmms-eval, a model or a task fails; the message has its reason and names the log.
    """
    names = [candidate.name for candidate in candidates]
    if not names:
        raise ConfigError("There is no model to ask: name some, as in base=FOLDER.")
    if len(set(names)) < len(names):
        raise ConfigError(
            f"Two models are called {max(names, key=names.count)!r}: give each a name, as in base=FOLDER."
        )
    if python is None and importlib.util.find_spec("lmms_eval") is None:
        raise ConfigError(f"There is no lmms-eval beside {sys.executable}. {INSTALL}")
    home = Path(folder)
    check_writable(home)
    passes = [(each, blind) for each in candidates for blind in ((False, True) if settings.blind else (False,))]
    folders = [home / each.name / ("blind" if blind else "with-images") for each, blind in passes]
    for own in folders:
        remove_folder(own)
    common = settings.answering() | {
        "system_prompt": settings.system_prompt,
        "max_completion_length": settings.max_completion_length,
    }
    job = {
        "version": VERSION,
        "tasks": settings.tasks,
        "limit": settings.limit,
        "include_path": settings.include_path,
        "passes": [
            {"folder": str(own), "settings": common | {"pretrained": each.source, "blind": blind}}
            for (each, blind), own in zip(passes, folders, strict=True)
        ],
    }
    shown = [f"{each.name}, blind" if blind else each.name for each, blind in passes]
    truncated = _run(job, shown, home, python or sys.executable, progress)
    results = {(each.name, blind): read_results(own) for (each, blind), own in zip(passes, folders, strict=True)}
    return Evaluation(
        {each.name: each.source for each in candidates},
        settings,
        tables_of(names, results),
        {each.name: own for (each, blind), own in zip(passes, truncated, strict=True) if not blind},
    )


def tables_of(
    names: Sequence[str], results: Mapping[tuple[str, bool], Mapping[str, TaskResult]]
) -> dict[str, dict[str, dict[str, ModelScore]]]:
    """Task → metric → model → score.

    Args:
        names: the models; the others are compared with the first.
        results: (model, whether blind) → task → what it got; the blind may be missing.

    Raises:
        DataError: the models were asked different questions.
    """
    first = results[names[0], False]
    tables: dict[str, dict[str, dict[str, ModelScore]]] = {}
    for task, base in first.items():
        for own in results.values():
            _check_same(task, base.questions, own[task].questions)
        tables[task] = {
            metric: {
                name: _model_score(
                    results[name, False][task].metrics[metric],
                    results[name, True][task].metrics[metric] if (name, True) in results else None,
                    None if name == names[0] else measured,
                )
                for name in names
            }
            for metric, measured in base.metrics.items()
        }
    return tables


def _check_same(task: str, first: Mapping[int, Any], other: Mapping[int, Any]) -> None:
    changed = sorted(number for number in first.keys() | other.keys() if first.get(number) != other.get(number))
    if changed:
        raise DataError(
            f"task {task}, question {changed[0]} is not the same each time that it is asked: its data set changed meanwhile (then run the "
            "command again), or the task draws its questions at random (then they cannot be compared)."
        )


def _model_score(own: Measured, blind: Measured | None, first: Measured | None) -> ModelScore:
    def pair(before: Measured | None) -> Paired | None:
        if before is None:
            return None
        return paired(before.scores, own.scores, higher_is_better=own.higher_is_better)

    without = None if blind is None else ModelScore(blind.value, mean_score(blind.scores.values()))
    return ModelScore(own.value, mean_score(own.scores.values()), without, pair(blind), pair(first))


def _run(
    job: Mapping[str, Any], names: Sequence[str], folder: Path, python: str, progress: Progress | None
) -> list[dict[str, int]]:
    """Run the process that has lmms-eval, and return the truncated answers of each pass, by task."""
    truncated: list[dict[str, int]] = [{} for _ in names]
    with tempfile.TemporaryDirectory() as scratch, (folder / LOG).open("w", encoding="utf-8") as log:
        path = Path(scratch, "job.json")
        path.write_text(json.dumps(job), encoding="utf-8")
        command = [python, "-m", "boresight.evaluate.inside.child", str(path)]
        environment = {name: value for name, value in os.environ.items() if name not in RANK_VARIABLES}
        try:
            child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environment, text=True)
        except OSError as error:
            raise ConfigError(f"--python {python} cannot be run: {error.strerror}.") from error
        with child:
            try:
                why = _followed(child.stdout, names, truncated, progress)
            except BaseException:
                child.terminate()
                raise
    if why is not None and child.returncode == 2:
        raise ConfigError(why)
    if why is not None or child.returncode:
        last = _last_line(folder / LOG)
        if why is None and re.search(r"No module named .?boresight", last):
            raise ConfigError(f"{python} has no boresight. {INSTALL}")
        why = why or last or f"exit code {child.returncode}"
        raise EngineError(f"{why} ({python}; all that it printed: {folder / LOG})")
    return truncated


def _followed(
    lines: IO[str] | None, names: Sequence[str], truncated: list[dict[str, int]], progress: Progress | None
) -> str | None:
    """Read what the process says until it ends, and return its error."""
    why = None
    for line in lines or ():
        said: dict[str, Any] = json.loads(line)
        why = said.get("error", why)
        if "truncated" in said:
            truncated[said["pass"]] = said["truncated"]
        elif "done" in said and progress is not None:
            progress(str(names[said["pass"]]), said["done"], said["total"])
    return why


def _last_line(log: Path) -> str:
    return (log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""])[-1]

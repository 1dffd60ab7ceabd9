"""The real lmms-eval asks a task in its format, without a network.

It has an environment of its own (docs/how-to/benchmarks.md), whose Python LMMS_EVAL_PYTHON names: without it, nothing here runs.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from boresight.compare import AnswerSettings, Candidate
from boresight.compare.answering import answer
from boresight.data.images import load_image
from boresight.demo.tiny import build_tiny
from boresight.errors import BoresightError
from boresight.evaluate import EvalSettings, evaluate
from boresight.types import Row

from .own_task import COLORS, write_tasks

PYTHON = os.environ.get("LMMS_EVAL_PYTHON") or (sys.executable if importlib.util.find_spec("lmms_eval") else None)
NUM = 8

pytestmark = pytest.mark.skipif(PYTHON is None, reason="LMMS_EVAL_PYTHON names no environment with lmms-eval")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("own"), NUM)


@pytest.fixture(scope="module")
def other(model: str) -> str:
    # vLLM's kernels on a CPU take heads of 32 and more.
    return str(build_tiny("qwen2_5_vl", Path(model).with_name("other"), seed=1, vocab_size=512, hidden_size=128))


def heard(source: str, *, blind: bool) -> list[str]:
    """The answers of `boresight compare`'s own code."""
    rows = []
    for number in range(NUM):
        image = Image.new("RGB", (32 + 4 * (number % 3), 32), (128, 128, 128) if blind else COLORS[number])
        parts = [{"type": "image"}, {"type": "text", "text": f"what color is it? ({number})"}]
        prompt = [{"role": "user", "content": parts}]
        rows.append(Row(number, prompt, completions=(), images=(load_image(image, where="test"),), columns={}))
    found: dict[int, str] = {}
    for batch in answer(source, rows, AnswerSettings(max_completion_length=6)):
        found |= {place: one.text for place, (one,) in batch.items()}
    return [found[place] for place in range(NUM)]


def first_character(text: str) -> str:
    """By lmms-eval's filter, which strips it."""
    found = re.findall("(.)", text)
    return found[0].strip() if found else "[invalid]"


def even(text: str) -> float:
    return float(sum(map(ord, text)) % 2 == 0)


def test_scores_are_those_of_the_answers(model: str, other: str, tasks: Path, tmp_path: Path) -> None:
    settings = EvalSettings(("own_colors", "own_filtered"), include_path=str(tasks))
    models = [Candidate("a", model), Candidate("b", other)]
    told: list[Any] = []
    found = evaluate(models, settings, tmp_path / "out", python=PYTHON, progress=lambda *words: told.append(words))
    assert {name for name, _, _ in told} == {"a", "a, blind", "b", "b, blind"} and told[-1] == ("b, blind", 16, 16)
    metrics = found.tasks["own_colors"]
    for name, source in (("a", model), ("b", other)):
        # lmms-eval strips an answer before it is marked.
        seeing, blind = ([text.strip() for text in heard(source, blind=blind)] for blind in (False, True))
        assert seeing != blind
        share, blind_share = (sum(map(even, texts)) / NUM for texts in (seeing, blind))
        score = metrics["even"][name]
        assert score.mean is not None and score.blind is not None and score.blind.mean is not None
        assert (score.value, score.mean.value, score.blind.mean.value) == (share, share, blind_share)
        length = metrics["length"][name]
        assert length.value == sum(map(len, seeing)) / NUM
        shorter = sum(len(one) < len(two) for one, two in zip(seeing, blind, strict=True))
        assert length.from_blind is not None and length.from_blind.better == shorter
        rating = metrics["rating"][name]
        assert rating.mean is not None
        # A task may add up otherwise than by the mean.
        assert rating.value == NUM * rating.mean.value == sum(len(set(text)) for text in seeing) / 2
    filtered = found.tasks["own_filtered"]
    assert filtered["even (as_it_is)"] == metrics["even"]
    firsts = [first_character(text) for text in heard(model, blind=False)]
    assert filtered["even (first)"]["a"].value == sum(map(even, firsts)) / NUM
    assert filtered["length (first)"]["a"].value == sum(map(len, firsts)) / NUM


def test_vllm(other: str, tasks: Path, tmp_path: Path) -> None:
    settings = EvalSettings(("own_colors",), limit=3, blind=False, use_vllm=True, include_path=str(tasks))
    found = evaluate([Candidate("b", other)], settings, tmp_path / "out", python=PYTHON)
    (score,) = found.tasks["own_colors"]["length"].values()
    assert score.mean is not None and score.mean.asked == 3
    (file,) = (tmp_path / "out/b/with-images").rglob("*_samples_own_colors.jsonl")
    answers = [json.loads(line)["filtered_resps"] for line in file.read_text().splitlines()]
    assert answers == [text.strip() for text in heard(other, blind=False)[:3]]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("own_choice", "output_type: multiple_choice\ndoc_to_choice: ['red', 'teal']", "is not about generated answers|likelihood"),
        ("own_beams", "generation_kwargs:\n  num_beams: 3", "task own_beams asks for beam search"),
        ("own_rounds", "output_type: generate_until_multi_round", "in several rounds"),
        ("own_nothing", None, "own_nothing"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked(model: str, tmp_path: Path, name: str, change: str | None, message: str) -> None:
    tasks = write_tasks(tmp_path, 1)
    if change is not None:
        (tasks / "own.yaml").write_text(f"include: colors.yaml\ntask: {name}\n{change}\n")
    settings = EvalSettings((name,), include_path=str(tasks), blind=False)
    with pytest.raises(BoresightError, match=message):
        evaluate([Candidate("a", model)], settings, tmp_path / "out", python=PYTHON)

"""vLLM answers as transformers does, in a process of its own."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from datasets import Dataset

from boresight.compare import answering
from boresight.compare.answering import AnswerSettings, answer
from boresight.demo.tiny import build_tiny
from boresight.errors import ConfigError, EngineError

from .test_answering import all_answers, rows_of

needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")


@needs_vllm
def test_greedy_answers_are_those_of_transformers(questions: Dataset, tmp_path: Path) -> None:
    """Every prompt and every answer goes through; an answer may part from the other engine's where two tokens are equally likely."""
    # vLLM's kernels on a CPU take heads of 32 and more.
    folder = str(build_tiny("qwen2_5_vl", tmp_path / "model", seed=0, vocab_size=512, hidden_size=128))
    rows = rows_of(questions)[:3]
    plain = all_answers(folder, rows, dtype="float32")
    (batch,) = answer(folder, rows, AnswerSettings(max_completion_length=12, dtype="float32", use_vllm=True))
    by_vllm = [one for place in range(3) for one in batch[place]]
    assert [each.ids for each in by_vllm] == [each.ids for each in plain]
    assert by_vllm == plain


@pytest.mark.parametrize(("dtype", "expected"), [("auto", "float32"), ("bfloat16", "bfloat16")])
def test_vllm_takes_the_checkpoints_type(base: str, dtype: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own `auto` takes 16 bits for a checkpoint in 32."""
    told: list[str] = []
    monkeypatch.setattr(answering, "check_can_ask", lambda source, is_adapter: None)
    monkeypatch.setattr(answering, "sampled_by_vllm", lambda *words, dtype: told.append(dtype) or [])
    assert list(answer(base, [], AnswerSettings(dtype=dtype, use_vllm=True))) == [{}]
    assert told == [expected]


def test_adapters_and_sizes_are_refused_by_name(adapter: str, questions: Dataset) -> None:
    what = "is an adapter. Merge it first: boresight export" if importlib.util.find_spec("vllm") else "needs vLLM"
    with pytest.raises(ConfigError, match=what):
        next(answer(adapter, rows_of(questions), AnswerSettings(use_vllm=True)))
    with pytest.raises(ConfigError, match="leave out min_pixels and max_pixels"):
        AnswerSettings(use_vllm=True, max_pixels=100)


@needs_vllm
@pytest.mark.soak  # the same error is asked of an engine in tests/rollout/vllm/test_child.py
def test_a_folder_that_vllm_cannot_load_is_named(questions: Dataset, tmp_path: Path, base: str) -> None:
    from boresight.compare import with_vllm
    from boresight.data.encode import Encoder
    from boresight.model.load import load_model, load_processor, model_facts

    model = load_model(base)
    processor = load_processor(None, model, base)
    facts = model_facts(model, processor)
    encoder = Encoder(processor, facts=facts)
    prompts = [encoder.prompt(row) for row in rows_of(questions)[:1]]
    (tmp_path / "empty").mkdir()
    with pytest.raises(EngineError, match=r"vLLM does not answer for .*empty"):
        with_vllm.sampled_by_vllm(
            str(tmp_path / "empty"), prompts, AnswerSettings().sampling(), facts, encoder.tokenizer, dtype="auto"
        )

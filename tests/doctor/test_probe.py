from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor

from boresight.doctor.probe import Report, probe
from boresight.errors import ModelError
from boresight.model import vision
from tests.tiny import build_tiny

IDS = {"stop ids", "ids that only the processor may place"}
HEAD, ROWS = "head: |Δ log-prob| from the model's own logits", "rows: |Δ log-prob| from plain forwards"
SHARED = "shared: |Δ log-prob| from rows"
MOVES, CONFUSED = "another image changes log-probs", "images of the same size are not confused: |Δ log-prob|"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    known: dict[str, Path] = {}

    def build(family: str) -> Path:
        if family not in known:
            known[family] = build_tiny(family, tmp_path_factory.mktemp(family), vocab_size=512)
        return known[family]

    return build


def load(folder: Path, **options: Any) -> Any:
    return AutoModelForImageTextToText.from_pretrained(folder, **options).eval()


def failures(report: Report) -> set[str]:
    return {check.name for check in report.checks if not check.passed}


def printed(report: Report) -> str:
    console = Console(width=200, file=io.StringIO())
    console.print(report)
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("family", ["qwen2_5_vl", "gemma3"])
def test_a_good_family_shares(folder: Callable[[str], Path], family: str) -> None:
    report = probe(folder(family))
    assert report.passed
    assert not failures(report)
    assert (report.layout, report.reason) == ("shared", "because boresight's tests cover its family in that layout")
    names = [check.name for check in report.checks]
    assert {*IDS, HEAD, ROWS, SHARED, MOVES, CONFUSED} < set(names)
    assert "gradients from rows" in names[-1]
    text = printed(report)
    assert "layout 'shared'" in text
    assert text.count("passed") == len(names)
    assert "≤ 1e-04" in text


def test_a_fallback_family_says_why(folder: Callable[[str], Path]) -> None:
    model = AutoModelForImageTextToText.from_pretrained(folder("qwen3_5"), attn_implementation="eager")
    report = probe(model, AutoProcessor.from_pretrained(folder("qwen3_5")))
    assert report.passed
    assert report.layout == "rows"
    assert "eager attention" in report.reason
    assert not any(check.name.startswith("shared") for check in report.checks)


def forgets_positions(model: Any) -> None:
    """A text model that counts positions by itself: right in every ordinary row, wrong in a shared one."""
    inner = model.model.language_model.forward
    model.model.language_model.forward = lambda *a, position_ids=None, **k: inner(*a, **k)


def is_blind(model: Any) -> None:
    for parameter in model.model.visual.merger.parameters():
        parameter.data.zero_()


def bends_its_logits(model: Any) -> None:
    def bend(module: nn.Module, arguments: Any, output: Any) -> Any:
        output.logits = output.logits * 1.5
        return output

    model.register_forward_hook(bend)


@pytest.mark.parametrize(
    ("break_it", "failing"),
    [(forgets_positions, {SHARED}), (is_blind, {MOVES}), (bends_its_logits, {HEAD, ROWS})],
)
def test_a_broken_model_fails(
    folder: Callable[[str], Path], break_it: Callable[[Any], None], failing: set[str]
) -> None:
    model = load(folder("qwen2_5_vl"))
    break_it(model)
    report = probe(model)
    assert not report.passed
    assert {name for name in failures(report) if "gradients" not in name} == failing
    assert "FAILED" in printed(report)


def test_confused_images_are_found(folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Features looked up by token ids, which are equal for images of one size."""
    monkeypatch.setattr(vision, "image_key", lambda prompt: tuple(prompt.ids.tolist()))
    assert failures(probe(folder("qwen2_5_vl"))) == {ROWS, CONFUSED}


def test_a_family_without_tests(folder: Callable[[str], Path]) -> None:
    """It runs rows. The report says whether it could share, and passes either way."""
    model = load(folder("llava"))
    model.config.model_type = "llava_by_someone_else"
    report = probe(model)
    assert report.passed and not failures(report)
    assert report.layout == "rows"
    assert "set layout='shared'" in report.reason
    forgets_positions(model)
    worse = probe(model)
    assert worse.passed and SHARED in failures(worse)
    assert "failed" in worse.reason
    assert "failed, not needed" in printed(worse)


def test_a_loaded_model_in_bf16_is_left_as_it_was(folder: Callable[[str], Path]) -> None:
    model = load(folder("qwen2_5_vl"), dtype=torch.bfloat16).train()
    model.model.visual.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    trained = [parameter.requires_grad for parameter in model.parameters()]
    report = probe(model, AutoProcessor.from_pretrained(folder("qwen2_5_vl")))
    assert report.passed
    assert report.model == "Qwen2_5_VLForConditionalGeneration"
    assert "≤ 2e-01" in printed(report)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == trained
    assert all(parameter.grad is None for parameter in model.parameters())


def test_without_a_chat_template(folder: Callable[[str], Path]) -> None:
    """A base model: the placeholder stands in plain text."""
    processor = AutoProcessor.from_pretrained(folder("llava"))
    processor.chat_template = processor.tokenizer.chat_template = None
    assert probe(load(folder("llava")), processor).passed


def test_no_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model at"):
        probe(tmp_path / "nowhere")

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
CAUSAL = "own forward: |Δ log-prob| of a token when others follow it"
SHARED = "shared: |Δ log-prob| from the model's own forward"
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
    assert (report.layout, report.reason) == ("shared", "whose numbers are those of its own forward")
    names = [check.name for check in report.checks]
    assert {*IDS, CAUSAL, SHARED, MOVES, CONFUSED, "sampling"} < set(names)
    assert any("gradients" in name for name in names)
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


def adds_to_its_logits(model: Any) -> None:
    def add(module: nn.Module, arguments: Any, output: Any) -> Any:
        output.logits = output.logits + torch.arange(output.logits.shape[-1]) / 100
        return output

    model.register_forward_hook(add)


def test_what_a_model_does_to_its_logits_is_taken_from_its_own_forward(folder: Callable[[str], Path]) -> None:
    model = load(folder("qwen2_5_vl"))
    bends_its_logits(model)
    report = probe(model)
    assert report.passed and report.layout == "shared"


@pytest.mark.parametrize(("break_it", "layout"), [(forgets_positions, "rows"), (adds_to_its_logits, "plain")])
def test_a_layout_that_is_not_the_models_own_forward_is_not_used(
    folder: Callable[[str], Path], break_it: Callable[[Any], None], layout: str
) -> None:
    model = load(folder("qwen2_5_vl"))
    break_it(model)
    report = probe(model)
    assert report.layout == layout
    assert report.passed and any(check.name.startswith("shared") for check in report.checks if not check.passed)
    assert "shared" in report.reason and "failed, not needed" in printed(report)


def test_a_model_that_does_not_see_its_images(folder: Callable[[str], Path]) -> None:
    """No comparison could tell that an image was lost on the way."""
    model = load(folder("qwen2_5_vl"))
    is_blind(model)
    report = probe(model)
    assert not report.passed and failures(report) == {MOVES}
    assert report.layout == "plain" and "do not depend on images" in report.reason


def test_tokens_that_see_later_ones_cannot_be_trained(folder: Callable[[str], Path]) -> None:
    model = load(folder("gemma3"))
    for layer in model.model.language_model.layers:
        layer.self_attn.is_causal = False
    own = model.model.language_model.forward
    model.model.language_model.forward = lambda *a, attention_mask=None, **k: own(*a, attention_mask=SEES_ALL, **k)
    report = probe(model)
    assert not report.passed and "attend to later ones" in report.reason


SEES_ALL = dict.fromkeys(("full_attention", "sliding_attention"))


def test_confused_images_are_found(folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Features looked up by sizes."""
    monkeypatch.setattr(vision, "image_key", lambda images: tuple(image.size for image in images.images))
    report = probe(folder("qwen2_5_vl"))
    assert SHARED in failures(report) and "one group at a time" in printed(report)


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

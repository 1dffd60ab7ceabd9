"""Each wrong set-up that needs no pass of the model is found, and right ones of every family are not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model

from boresight.errors import ConfigError, DiskError
from boresight.model.part_options import PartOptions, part_plan
from boresight.preflight import Finding, SetUp, preflight, report
from boresight.preflight import disk as disk_check
from boresight.preflight.disk import check_folder, saved_bytes, trained_bytes
from boresight.preflight.finding import worst

Make = Callable[..., SetUp]
QUESTIONS_ALIKE = "{% for m in messages %}[{% for p in m['content'] %}{{ p['text'] }}{% endfor %}]{% endfor %}"
WITHOUT_ENDS = (
    "{% for m in messages %}{{ m['role'] }}: {% for p in m['content'] %}{{ p['text'] }}{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
LAST_ALONE = "{{ messages[-1]['role'] }}: {{ messages[-1]['content'][0]['text'] }}<|im_end|>"


def found(set_up: SetUp, check: str) -> list[Finding]:
    return [finding for finding in preflight(set_up) if finding.check == check and finding.level != "note"]


@pytest.mark.parametrize(
    "family", ["qwen2_5_vl", "qwen3_vl", "gemma3", "llava", "llava_next", "internvl", "smolvlm", "idefics3"]
)
def test_a_right_set_up_is_left_in_peace(set_up: Make, family: str) -> None:
    assert [str(finding) for finding in preflight(set_up(family, max_tokens=100)) if finding.level != "note"] == []


# ---- Vocabulary ----------------------------------------------------------------------------------------------------------------------


def test_tokens_without_an_embedding(set_up: Make) -> None:
    one = set_up(change=lambda model, processor: model.resize_token_embeddings(500) and None)
    (finding,) = found(one, "vocabulary")
    assert finding.level == "error"
    assert "12 tokens of the tokenizer have no embedding: the model has 500" in finding.text
    assert "resize_token_embeddings" in finding.way_out


def test_another_placeholder(set_up: Make) -> None:
    def change(model: Any, processor: Any) -> None:
        model.config.image_token_id -= 1

    (finding,) = found(set_up(change=change), "vocabulary")
    assert finding.level == "error"
    assert "no image would be read" in finding.text


# ---- Template ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "level", "text"),
    [
        (WITHOUT_ENDS, "warning", "no end token ('<|endoftext|>', '<|im_end|>') follows an answer"),
        (QUESTIONS_ALIKE, "warning", "questions and answers alike"),
        (LAST_ALONE, "error", "leaves out 2 of three messages"),
        ("{{ raise_exception('one turn only') }}", "warning", "one turn only"),
    ],
)
def test_a_template_that_loses_something(set_up: Make, template: str, level: str, text: str) -> None:
    def change(model: Any, processor: Any) -> None:
        processor.chat_template = template

    findings = found(set_up(change=change), "template")
    assert any(finding.level == level and text in finding.text for finding in findings), findings
    assert all(finding.way_out for finding in findings)


# ---- Parts ---------------------------------------------------------------------------------------------------------------------------


def test_everything_frozen(set_up: Make) -> None:
    (finding,) = found(set_up(change=lambda model, processor: model.requires_grad_(False)), "trained parts")
    assert finding.level == "error"
    assert "every weight is frozen" in finding.text


@pytest.mark.parametrize(
    ("targets", "plan", "warns"),
    [
        ("all-linear", None, True),
        (["q_proj", "qkv"], None, True),
        (r".*language_model.*(q|v)_proj", None, False),
        (r".*visual.*qkv", None, False),
        ("all-linear", "vision=lora,language=lora", False),
    ],
)
def test_an_adapter_in_the_vision_tower(set_up: Make, targets: Any, plan: str | None, warns: bool) -> None:
    config = LoraConfig(r=2, target_modules=targets)
    one = set_up(
        change=lambda model, processor: get_peft_model(model, config),
        peft_config=config,
        parts=part_plan(PartOptions(plan)),
    )
    findings = found(one, "trained parts")
    assert bool(findings) == warns
    if warns:
        assert findings[0].level == "warning"
        assert "modules of the vision too" in findings[0].text


# ---- Lengths -------------------------------------------------------------------------------------------------------------------------


def test_a_row_beyond_the_positions_of_the_model(set_up: Make) -> None:
    one = set_up(max_tokens=100)
    limit = one.model.config.get_text_config().max_position_embeddings  # pyright: ignore[reportAttributeAccessIssue]
    assert found(replace(one, max_tokens=limit), "context") == []
    assert "100 tokens" not in str(found(replace(one, max_tokens=limit + 1), "context")[0])
    one.args.max_completion_length = limit - 99
    (finding,) = found(one, "context")
    assert finding.where == "max_completion_length"
    assert "the longest row has 100 tokens" in finding.text


# ---- Disk ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("models", "level"), [(0.5, "error"), (2.9, "error"), (3.1, "warning"), (6.9, "warning"), (7.1, None)]
)
def test_room_for_checkpoints(set_up: Make, monkeypatch: pytest.MonkeyPatch, models: float, level: str | None) -> None:
    """A checkpoint of full training is three models large: two stay at once while the oldest goes, and the model is saved at the end."""
    one = set_up()
    size = saved_bytes(one.model)
    assert trained_bytes(one.model) == size
    monkeypatch.setattr(disk_check, "free_bytes", lambda folder: int(models * size))
    assert worst(found(one, "disk")) == level


def test_room_is_checked_before_the_model_is_loaded(
    tiny_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_folder("qwen2_5_vl")
    check_folder(tmp_path / "run", str(folder))
    check_folder(tmp_path / "run", "some/hub-id")
    monkeypatch.setattr("boresight.files.free_bytes", lambda folder: 1000)
    with pytest.raises(DiskError, match=r"The trained model takes .* MiB, and the disk of .*run has 0.0 MiB free"):
        check_folder(tmp_path / "run", str(folder))


# ---- All together --------------------------------------------------------------------------------------------------------------------


def test_errors_are_raised_and_warnings_printed() -> None:
    lines: list[str] = []
    note = Finding("disk", "note", "", "ten free.")
    warning = Finding("template", "warning", "chat_template", "no end.", "Add one.")
    report([note, warning], lines.append)
    assert lines == ["chat_template: no end. Add one."]
    with pytest.raises(ConfigError, match="train: all frozen"):
        report([warning, Finding("trained parts", "error", "train", "all frozen.")], lines.append)
    with pytest.raises(DiskError):
        report([Finding("disk", "error", "output_dir", "full.")], lines.append)

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from boresight import GRPOConfig, SFTConfig, SFTTrainer
from boresight.errors import ConfigError
from boresight.report import read_lines
from boresight.trainer.verdict_probes import is_due, swapped_images

from .conftest import QUIET, Run, demonstrations, records, weights
from .test_resume import same


def test_when_verdicts_fall() -> None:
    assert [step for step in range(9) if is_due(3, step)] == [2, 5, 8]
    assert [step for step in range(0, 12, 4) if is_due(5, step, 4)] == [4, 8]
    assert not any(is_due(0, step) for step in range(9))
    with pytest.raises(ConfigError, match="verdict_steps=-1"):
        GRPOConfig(verdict_steps=-1)


def said(run: Path) -> list[tuple[int, str]]:
    return [(line["step"], line["verdict"]) for line in read_lines(run / "verdicts.jsonl")]


def flat(completions: list[Any], **columns: Any) -> list[float]:
    return [0.25] * len(completions)


def test_verdicts_are_said_written_and_resumed(grpo: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Steps 2, 4 and the rest; a run that goes on from step 3 says the same."""
    options: dict[str, Any] = {
        "reward_funcs": flat, "max_steps": 5, "per_device_train_batch_size": 8, "verdict_steps": 2,
        "max_completion_length": 4, "save_strategy": "steps", "save_steps": 3, "output_dir": str(tmp_path / "run"),
    }  # fmt: skip
    grpo(**options).train()
    text = capsys.readouterr().out
    assert "boresight: step 2: The reward is constant: every completion of a rollout earns the same (flat 0.25)" in text
    whole = read_lines(tmp_path / "run" / "verdicts.jsonl")
    assert [step for step, name in said(tmp_path / "run") if name == "reward_constant"] == [2, 4, 5]
    assert {"no_gradient", "truncated"} <= {name for _, name in said(tmp_path / "run")}
    grpo(**options).train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    assert read_lines(tmp_path / "run" / "verdicts.jsonl") == whole


def test_no_verdict_unless_asked(grpo: Run, tmp_path: Path) -> None:
    trainer = grpo(max_steps=2, per_device_train_batch_size=8, verdict_steps=0, max_completion_length=4)
    trainer.train()
    assert not (Path(trainer.args.output_dir) / "verdicts.jsonl").exists()
    assert not any("image/swap_gap" in log or "update/frac_unmoved" in log for log in trainer.state.log_history)


def test_verdicts_change_nothing(grpo: Run) -> None:
    options = {"max_steps": 2, "per_device_train_batch_size": 24, "max_completion_length": 4}
    silent, loud = grpo(**options, verdict_steps=0), grpo(**options, verdict_steps=1)
    silent.train()
    loud.train()
    assert same(weights(silent), weights(loud))


def test_an_image_that_is_not_looked_at_is_noticed(grpo: Run) -> None:
    """The same run with and without the tower's features; the random weights of the tiny model look a little."""
    rows = [row for row in records() if row["image"]]
    options = {"max_steps": 1, "per_device_train_batch_size": 24, "verdict_steps": 1, "train_dataset": rows}
    looking, blind = grpo(**options), grpo(**options)
    blind.model.model.visual.merger.register_forward_hook(lambda module, inputs, output: output * 0)
    looking.train()
    blind.train()
    assert looking.state.log_history[0]["image/swap_gap"] > 1e-4
    assert blind.state.log_history[0]["image/swap_gap"] == 0
    assert (1, "image_ignored") in said(Path(blind.args.output_dir))


def test_only_images_of_the_same_shape_change_places(grpo: Run) -> None:
    trainer = grpo(max_steps=1, per_device_train_batch_size=24)
    trainer.train()
    groups = [item.group for item in trainer.experience]
    pairs = swapped_images(groups)
    assert 0 < len(pairs) <= 4
    for group, other in pairs:
        assert group.prompt.images and other.prompt.images != group.prompt.images
        assert torch.equal(group.prompt.ids, other.prompt.ids)
        assert all(one.shape == other.prompt.vision[name].shape for name, one in group.prompt.vision.items())
        assert not torch.equal(group.prompt.vision["pixel_values"], other.prompt.vision["pixel_values"])
    grid = pairs[0][0].prompt.vision["image_grid_thw"]
    # As many patches, laid out another way.
    turned = dataclasses.replace(
        pairs[0][1].prompt, vision={**pairs[0][1].prompt.vision, "image_grid_thw": grid * torch.tensor([1, 2, 1])}
    )
    assert swapped_images([groups[0], dataclasses.replace(groups[0], prompt=turned)]) == []


def test_updates_below_the_resolution_of_bf16_are_noticed(model_folder: Path, tmp_path: Path) -> None:
    """Next to nothing of bf16 weights moves, and all of float32 weights do.

    By an optimizer whose steps nobody knows before; with Adam, boresight refuses to train them at all.
    """
    found = {}
    for dtype in ("bfloat16", "float32"):
        config = SFTConfig(
            **QUIET | {"learning_rate": 1e-3}, output_dir=str(tmp_path / dtype), max_steps=1, verdict_steps=1,
            per_device_train_batch_size=4, lr_scheduler_type="constant", model_init_kwargs={"dtype": dtype}, optim="sgd",
        )  # fmt: skip
        trainer = SFTTrainer(str(model_folder), config, demonstrations(8))
        trainer.train()
        found[dtype] = trainer.state.log_history[0]["update/frac_unmoved"]
    assert found["bfloat16"] > 0.9
    assert found["float32"] < 0.1
    assert (1, "below_resolution") in said(tmp_path / "bfloat16")
    assert (1, "below_resolution") not in said(tmp_path / "float32")


def test_a_step_of_learning_rate_zero_is_no_finding(sft: Run) -> None:
    trainer = sft(max_steps=2, warmup_steps=2, verdict_steps=1, per_device_train_batch_size=4)
    trainer.train()
    first, second = trainer.state.log_history[:2]
    assert "update/frac_unmoved" not in first
    assert second["update/frac_unmoved"] < 0.1

"""GRPO on models whose layers have a state: three steps, with the prompt shared in sampling and in every pass."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from boresight import GRPOConfig, GRPOTrainer
from tests.tiny import build_tiny

from .conftest import QUIET, Gradients, furthest, new_folder, records, vowel_share

FAMILIES = ("qwen3_5", "qwen3_5_moe", "lfm2_vl")
STEPS = 3


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def build(family: str) -> Path:
        return build_tiny(family, tmp_path_factory.mktemp(family), vocab_size=512, num_layers=3)

    return build


def trained(folder: Path, output_dir: Path, **options: Any) -> tuple[GRPOTrainer, Gradients]:
    """A run of three steps, two prompts each, one of them without an image."""
    lengths = {"num_generations": 4, "max_completion_length": 8, "per_device_train_batch_size": 8, "max_steps": STEPS}
    gradients = Gradients()
    config = GRPOConfig(**{"output_dir": new_folder(output_dir / "run"), **QUIET, **lengths, **options})
    trainer = GRPOTrainer(str(folder), vowel_share, config, records(), callbacks=[gradients])
    trainer.train()
    return trainer, gradients


@pytest.mark.parametrize("family", FAMILIES)
def test_three_steps(folders: Any, tmp_path: Path, family: str) -> None:
    trainer, gradients = trained(folders(family), tmp_path)
    assert trainer.policy.layout == "shared"
    assert len(gradients.steps) == STEPS
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == STEPS
    for entry in logged:
        # One prompt for each group, in the trainer's passes and in sampling.
        assert entry["work/prompt_tokens"] < entry["work/unshared_prompt_tokens"] / 3.9
        # What was sampled is what the trainer's pass says.
        assert entry["sampling/sampling_logp_difference/max"] < 1e-4
    for gradient in gradients.steps:
        assert all(value.isfinite().all() for value in gradient.values())
        state = [value.norm() for name, value in gradient.items() if "linear_attn" in name or ".conv." in name]
        assert len(state) > 5 and all(norm > 0 for norm in state)

    trainer.save_model(str(tmp_path / "final"))
    reloaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "final")
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, reloaded.state_dict()[name]), name


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_and_checkpointing_learn_the_same(folders: Any, tmp_path: Path, family: str) -> None:
    _, shared = trained(folders(family), tmp_path, max_steps=1)
    rows, unshared = trained(folders(family), tmp_path, max_steps=1, layout="rows")
    _, recomputed = trained(folders(family), tmp_path, max_steps=1, gradient_checkpointing=True)
    assert rows.policy.layout == "rows"
    # SigLIP's key biases shift all scores of a query alike: their gradient is nothing but rounding.
    first, second, third = (
        {name: value for name, value in run.steps[0].items() if not name.endswith("k_proj.bias")}
        for run in (shared, unshared, recomputed)
    )
    assert furthest(first, second) < 5e-5
    assert furthest(first, third) < 1e-5

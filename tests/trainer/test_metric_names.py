"""Every name that is logged is in the dictionary, and every entry of the dictionary is logged by some run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from boresight import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer
from boresight.loss.preference_options import MPO
from boresight.report import read_lines
from boresight.report.metric_dictionary import ENTRIES, entry_for
from boresight.rewards import exact_answer_reward
from boresight.tools import calculator
from tests.tiny import build_tiny

from .conftest import QUIET, Run, demonstrations, records, vowel_share
from .scripted import call
from .test_dpo import preferences
from .test_nonfinite import poison_loss

COUNTED = {"include_num_input_tokens_seen": "all", "max_steps": 1, "verdict_steps": 1, "per_device_train_batch_size": 4}


def names(trainer: Any) -> set[str]:
    trainer.train()
    lines = read_lines(Path(trainer.args.output_dir) / "metrics.jsonl")
    return {name for line in lines for name in line} - {"step"}


@pytest.fixture
def logged(sft: Run, grpo: Run, with_tools: Run, model_folder: Path, tmp_path: Path) -> set[str]:
    """The names in the logs of short runs of all methods, each with options that log something of their own."""
    bad = sft(**COUNTED, output_dir=str(tmp_path / "bad"))
    poison_loss(bad, {0})
    found = names(bad)
    found |= names(sft(**COUNTED, eval_dataset=demonstrations(2), eval_strategy="steps", eval_steps=1))
    config = DPOConfig(**{**QUIET, **COUNTED, **MPO}, output_dir=str(tmp_path / "mpo"))
    found |= names(DPOTrainer(str(model_folder), args=config, train_dataset=preferences()))
    shapes = [row for row in records() if row["image"]]
    methods: dict[str, dict[str, Any]] = {
        "dapo": {"dynamic_sampling": True, "beta": 0.1, "train_dataset": shapes, "max_completion_length": 16},
        "cispo": {
            "loss_type": "cispo", "epsilon_high": 5.0, "reward_funcs": [exact_answer_reward, vowel_share], "top_k": 50,
            "entropy_coef": 0.01,
        },
        "vespo": {
            "loss_type": "vespo", "reward_funcs": "exact_answer_reward", "reward_workers": 1,
            "eval_dataset": {"one_set": records(4)}, "eval_strategy": "epoch",
        },
    }  # fmt: skip
    experts = build_tiny("qwen3_vl_moe", tmp_path / "experts", vocab_size=512)
    found |= names(
        SFTTrainer(str(experts), SFTConfig(**{**QUIET, **COUNTED}, output_dir=str(tmp_path / "moe")), demonstrations(4))
    )
    for method, options in methods.items():
        trainer = grpo(**COUNTED | {"per_device_train_batch_size": 24} | options, output_dir=str(tmp_path / method))
        found |= names(trainer)
        trainer.scorer.close()
    return found | names(with_tools(lambda place, k, turn: None if turn else call("calculator", expression="1"), vowel_share,
                                    tools=[calculator], **COUNTED))  # fmt: skip


def test_names_and_dictionary_are_the_same(logged: set[str]) -> None:
    assert {name for name in logged if entry_for(name) is None} == set()
    reached = {entry.name for name in logged if (entry := entry_for(name)) is not None}
    assert {entry.name for entry in ENTRIES if not entry.engine} - reached == set()
    assert {"eval_loss", "eval_one_set_reward", "loss/sigmoid", "rewards/exact_answer_reward/unparsed"} <= logged

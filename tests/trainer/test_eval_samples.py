"""SFT and DPO keep their own answers to held-out prompts, and nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from boresight import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer
from boresight.data.sources import RowDataset
from boresight.report import read_completions
from boresight.report.page import report_data
from boresight.sampling import SamplingSettings

from .conftest import QUIET, demonstrations


def sft(folder: Path, output_dir: Path, **options: Any) -> Any:
    rows = demonstrations(8)
    given = {**QUIET, "output_dir": str(output_dir), "use_cpu": True, "max_steps": 2, "eval_strategy": "steps"}
    config = SFTConfig(**{**given, "eval_steps": 1, "per_device_train_batch_size": 4, "seed": 3, **options})
    held_out = [row | {"solution": None if place else "teal"} for place, row in enumerate(rows[:5])]
    return SFTTrainer(str(folder), config, rows, held_out)


def test_sft_answers_held_out_prompts_greedily(model_folder: Path, tmp_path: Path) -> None:
    trainer = sft(model_folder, tmp_path / "run", num_eval_samples=3)
    trainer.train()
    rows = read_completions(tmp_path / "run").to_pylist()
    assert [(row["step"], row["phase"], row["row"]) for row in rows] == [
        (step, "eval", place) for step in (1, 2) for place in range(3)
    ]
    assert all(row["reward"] is None for row in rows)
    wanted = [row["completion"][0]["content"] for row in demonstrations(8)[:3]]
    assert [row["right_answer"] for row in rows] == 2 * ["teal", *wanted[1:]]
    # The last answers are those of the model as it is now.
    held_out = RowDataset(trainer.eval_dataset)
    prompts = [trainer.encoder.prompt(held_out[place]) for place in range(3)]
    settings = SamplingSettings(
        num_completions=1, max_completion_length=max(row["length"] for row in rows), temperature=0.0
    )
    with trainer.without_gradient():
        again = trainer.own_sampler().sample(prompts, settings)
    assert [row["completion_ids"] for row in rows[3:]] == [
        group.completions[0].ids.tolist()[: row["length"]] for group, row in zip(again, rows[3:], strict=True)
    ]
    assert report_data(tmp_path / "run")["completions"]["num"] == 6
    trainer.discard_after(1)  # as a run does that resumes at step 1
    assert set(read_completions(tmp_path / "run")["step"].to_pylist()) == {1}


def test_they_change_nothing_and_may_be_left_out(model_folder: Path, tmp_path: Path) -> None:
    """Dropout draws the same masks with them and without."""
    ended = {}
    for num in (0, 2):
        trainer = sft(model_folder, tmp_path / str(num), num_eval_samples=num)
        trainer.train()
        ended[num] = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    assert all(torch.equal(value, ended[2][name]) for name, value in ended[0].items())
    assert not (tmp_path / "0" / "completions").exists() and (tmp_path / "2" / "completions").exists()


def test_dpo_answers_beside_the_chosen_one(model_folder: Path, tmp_path: Path) -> None:
    pairs = [
        {
            "prompt": row["prompt"],
            "image": row["image"],
            "chosen": row["completion"],
            "rejected": [{"role": "assistant", "content": "no"}],
        }
        for row in demonstrations(4)
        if row["image"] is not None
    ]
    given = {**QUIET, "output_dir": str(tmp_path / "run"), "use_cpu": True, "max_steps": 1}
    config = DPOConfig(**given, eval_strategy="steps", eval_steps=1, per_device_train_batch_size=2)
    DPOTrainer(str(model_folder), None, config, pairs, pairs[:1]).train()
    (row,) = read_completions(tmp_path / "run").to_pylist()
    assert row["right_answer"] == pairs[0]["chosen"][0]["content"] and row["length"] > 0


def test_rows_of_plain_text_have_no_prompt_to_answer(model_folder: Path, tmp_path: Path) -> None:
    given = {**QUIET, "output_dir": str(tmp_path / "run"), "use_cpu": True, "max_steps": 1}
    config = SFTConfig(**given, eval_strategy="steps", eval_steps=1)
    rows = [{"text": "a blue circle"}] * 8
    SFTTrainer(str(model_folder), config, rows, rows[:2]).train()
    assert not (tmp_path / "run" / "completions").exists()


@pytest.mark.parametrize("num", [-1, 1.5])
def test_a_number_of_prompts(tmp_path: Path, num: Any) -> None:
    with pytest.raises(ValueError, match="num_eval_samples"):
        SFTConfig(output_dir=str(tmp_path), num_eval_samples=num)

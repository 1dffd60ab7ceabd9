"""Interrupted and resumed, a run ends with the bits of one that was not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import TrainerCallback

from boresight.report import read_completions, read_lines
from boresight.trainer.manifest import read_manifest, write_manifest

from .conftest import Run, demonstrations, records, weights
from .scripted import call


class Stop(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step >= self.step


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(left[name], right[name]) for name in left)


SFT = {"max_steps": 5, "per_device_train_batch_size": 5, "gradient_accumulation_steps": 2, "weight_decay": 0.1}
# 24 rows, 4 a draw, 6 draws an epoch, 4 optimizer steps a draw: step 6 is in the middle of the second draw.
GRPO = {
    "max_steps": 9,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "steps_per_generation": 2,
    "num_iterations": 2,
    "beta": 0.05,
}


@pytest.mark.parametrize("workers", [0, 2])
def test_sft(sft: Run, tmp_path: Path, workers: int) -> None:
    """Stopped at step 3 of 3 an epoch, and at step 4."""
    options = {**SFT, "save_strategy": "steps", "save_steps": 1, "dataloader_num_workers": workers}
    whole = sft(output_dir=str(tmp_path / "whole"), **options)
    whole.train()
    for step in (3, 4):
        folder = tmp_path / f"cut{step}"
        sft(output_dir=str(folder), callbacks=[Stop(step)], **options).train()
        resumed = sft(output_dir=str(folder), **options)
        resumed.train(resume_from_checkpoint=True)
        assert resumed.state.global_step == 5
        assert same(weights(whole), weights(resumed))


@pytest.mark.parametrize("method", ["sft", "grpo"])
def test_a_run_that_was_done_takes_no_further_step(
    request: pytest.FixtureRequest, tmp_path: Path, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed between its last checkpoint and the saving of its model, in the middle of an epoch."""
    run: Run = request.getfixturevalue(method)
    options = {**(SFT if method == "sft" else GRPO), "save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    whole = run(output_dir=str(tmp_path / "whole"), **options)
    whole.train()
    resumed = run(output_dir=str(tmp_path / "whole"), **options)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 2
    assert same(weights(whole), weights(resumed))
    assert not (tmp_path / "whole" / "checkpoint-3").exists()
    assert "all 2 steps are done already" in capsys.readouterr().out


@pytest.mark.parametrize("step", [4, 6, 7])
def test_grpo(grpo: Run, tmp_path: Path, step: int) -> None:
    """Between two draws, and within one: the completions that were under way are learned from, not sampled again."""
    options = {**GRPO, "save_strategy": "steps", "save_steps": 1}
    whole = grpo(output_dir=str(tmp_path / "whole"), **options)
    whole.train()
    grpo(output_dir=str(tmp_path / "cut"), callbacks=[Stop(step)], **options).train()
    resumed = grpo(output_dir=str(tmp_path / "cut"), **options)
    resumed.train(resume_from_checkpoint=True)
    assert same(weights(whole), weights(resumed))
    kept = [read_completions(tmp_path / run).drop_columns(["images"]) for run in ("whole", "cut")]
    assert kept[0].equals(kept[1])
    whole_lines, cut_lines = ([_reproducible(line) for line in _steps(tmp_path / run)] for run in ("whole", "cut"))
    assert whole_lines == cut_lines
    assert [line["step"] for line in whole_lines] == list(range(1, 10))
    assert [line["step"] for line in read_lines(tmp_path / "cut" / "timeline.jsonl")] == list(range(1, 10))
    assert read_lines(tmp_path / "cut" / "steps.jsonl") == read_lines(tmp_path / "whole" / "steps.jsonl")


def _steps(run: Path) -> list[dict[str, Any]]:
    """The log lines of optimizer steps: those of evaluations and the summary have no loss."""
    return [line for line in read_lines(run / "metrics.jsonl") if "loss" in line]


def _reproducible(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if not name.startswith("time/")}


def test_grpo_resumes_on_other_completions_without_its_state(grpo: Run, tmp_path: Path) -> None:
    """Negative control: another draw in the place of the one under way ends elsewhere."""
    options = {**GRPO, "save_strategy": "steps", "save_steps": 1}
    whole = grpo(output_dir=str(tmp_path / "whole"), **options)
    whole.train()
    grpo(output_dir=str(tmp_path / "cut"), callbacks=[Stop(6)], **options).train()
    file = next((tmp_path / "cut" / "checkpoint-6").glob("*boresight_state.pt"))
    state = torch.load(file, weights_only=True)
    for item in state["experience"]:
        item["advantage"] = item["advantage"].flip(0)
    torch.save(state, file)
    write_manifest(file.parent, step=6, num_ranks=1, run=read_manifest(file.parent).run)
    resumed = grpo(output_dir=str(tmp_path / "cut"), **options)
    resumed.train(resume_from_checkpoint=True)
    assert not same(weights(whole), weights(resumed))


def test_sft_evaluation_leaves_training_as_it_is(sft: Run) -> None:
    plain = sft(**SFT)
    plain.train()
    watched = sft(**SFT, eval_dataset=demonstrations(6), eval_strategy="steps", eval_steps=1)
    watched.train()
    assert same(weights(plain), weights(watched))
    logs = [line for line in watched.state.log_history if "eval_loss" in line]
    assert len(logs) == 5
    assert logs[-1]["eval_loss"] < logs[0]["eval_loss"]


def test_grpo_evaluation_leaves_training_as_it_is(grpo: Run) -> None:
    plain = grpo(**GRPO)
    plain.train()
    watched = grpo(**GRPO, eval_dataset=records(6), eval_strategy="steps", eval_steps=3, num_generations_eval=2)
    watched.train()
    assert same(weights(plain), weights(watched))
    log = next(line for line in watched.state.log_history if "eval_reward" in line)
    assert {
        "eval_reward",
        "eval_reward_std",
        "eval_rewards/vowel_share/mean",
        "eval_completions/mean_length",
    } <= log.keys()


class Word:
    """An environment that says something at its start."""

    def reset(self, solution: str = "", **columns: Any) -> str:
        return f" It has {len(solution)} letters."

    def show(self, size: int) -> list[dict[str, Any]]:
        """Show a square.

        Args:
            size: Its side.
        """
        return [{"type": "image", "image": Image.new("RGB", (28 * size, 56), "red")}]


def test_completions_of_several_turns(with_tools: Run, tmp_path: Path) -> None:
    """In the middle of a rollout whose completions hold images, and whose prompts an environment has added to."""
    options = {
        "max_steps": 3,
        "num_iterations": 2,
        "save_strategy": "steps",
        "save_steps": 1,
        "max_completion_length": 150,
    }

    def build(folder: Path, *callbacks: TrainerCallback) -> Any:
        return with_tools(
            lambda place, k, turn: None if turn or k == 0 else call("show", size=1 + k), turns_taken, output_dir=str(folder),
            environment_factory=Word, callbacks=list(callbacks), **options,
        )  # fmt: skip

    whole = build(tmp_path / "whole")
    whole.train()
    build(tmp_path / "cut", Stop(1)).train()
    resumed = build(tmp_path / "cut")
    resumed.train(resume_from_checkpoint=True)
    assert same(weights(whole), weights(resumed))


def turns_taken(completions: list[Any], **columns: Any) -> list[float]:
    return [float(len(turns)) + 0.01 * len(turns[-1]["content"]) for turns in completions]

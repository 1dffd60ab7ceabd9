"""Trains a step or a few of each method and saves the last gradients: run alone, or as torchrun does on two ranks."""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
from accelerate import PartialState
from PIL import Image
from transformers import TrainerCallback

from boresight import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
from boresight.errors import RewardError
from boresight.loss.preference_options import MPO
from boresight.rewards import exact_answer_reward

from .conftest import QUIET, Gradients, demonstrations, records, tool_trainer, vowel_share
from .rows import CUTS, gradients_of_rows
from .scripted import call
from .test_dpo import preferences

PAIRS: dict[str, dict[str, Any]] = {
    "mpo": dict(MPO),
    "aot": {"loss_type": ["aot"]},
    "precomputed": {"precompute_ref_log_probs": True},
}


class SaveGradients(Gradients):
    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.process_index == 0:
            found = {name.removeprefix("module."): value for name, value in self.steps[-1].items()}
            torch.save({"gradients": found, "log": state.log_history}, f"{args.output_dir}/gradients.pt")


def train(method: str, model: str, output_dir: str, ranks: int) -> None:
    callbacks: list[TrainerCallback] = [SaveGradients()]
    common = {**QUIET, "output_dir": output_dir, "max_steps": 1, "use_cpu": True}
    if method == "sft":
        # 11 rows: the ranks' shares differ in rows, tokens and images.
        rows = demonstrations(11)
        config = SFTConfig(**common, per_device_train_batch_size=4, gradient_accumulation_steps=4 // ranks)
        SFTTrainer(model, config, rows, callbacks=callbacks).train()
    elif method in PAIRS:
        # Three steps, so that the shift and the table matter in the last; the ranks' shares differ in tokens and images.
        batch = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2 // ranks}
        config = DPOConfig(**common | {"max_steps": 3}, **batch, **PAIRS[method])
        DPOTrainer(model, args=config, train_dataset=preferences(), callbacks=callbacks).train()
    elif method == "tools":
        # Some completions call once, for an image; groups without spread are sampled again, and groups change ranks with their images.
        options = {
            "max_steps": 2,
            "num_prompts_per_step": 2,
            "dynamic_sampling": True,
            "max_completion_length": 250,
            "use_cpu": True,
        }
        tool_trainer(
            model,
            output_dir,
            called_by_some,
            turns_taken,
            records(8),
            tools=[square],
            callbacks=callbacks,
            by_row=True,
            **options,
        ).train()
    else:
        # 9 rows, 6 a step: in the second, two ranks hold one group and two.
        options = {"scale_rewards": "batch", "beta": 0.1, "num_generations": 4, "max_completion_length": 6}
        config = GRPOConfig(**common | {"max_steps": 2}, **options, num_prompts_per_step=6)
        GRPOTrainer(model, vowel_share, config, records(9), callbacks=callbacks).train()


def square(size: int) -> list[dict[str, Any]]:
    """Show a square.

    Args:
        size: Its side.
    """
    return [{"type": "image", "image": Image.new("RGB", (28 * size, 28 * size), "red")}]


def called_by_some(row: int, k: int, turn: int) -> str | None:
    return call("square", size=2 + k % 2) if turn == 0 and row % 3 and k < 1 + row % 3 else None


def turns_taken(completions: list[Any], **columns: Any) -> list[float]:
    return [float(len(turns)) for turns in completions]


def broken_on_the_second_rank(completions: list[Any], **columns: Any) -> list[float]:
    return [0.5] * (len(completions) - PartialState().process_index)


def fail_apart(model: str, output_dir: str) -> None:
    """What each rank is told when a reward breaks its contract on one of them, and when the gold check refuses on the first."""
    options = {"num_generations": 4, "max_completion_length": 4, "per_device_train_batch_size": 4, "use_cpu": True}
    told = {}
    for name, reward, more in (
        ("reward", broken_on_the_second_rank, {}),
        ("gold", exact_answer_reward, {"gold_check": "error", "gold_template": "it is {solution}"}),
    ):
        config = GRPOConfig(**QUIET, **options, **more, output_dir=f"{output_dir}/{name}")
        try:
            GRPOTrainer(model, reward, config, records(8)).train()
        except RewardError as error:
            told[name] = str(error)
    torch.save(told, f"{output_dir}/told{PartialState().process_index}.pt")


def poison_one(model: str, output_dir: str) -> None:
    """Two steps of which the first has a NaN on the second rank alone; the weights and counts of each rank, and the files that are kept."""
    config = SFTConfig(
        **QUIET | {"max_steps": 2}, use_cpu=True, per_device_train_batch_size=2, output_dir=f"{output_dir}/poisoned"
    )
    trainer = SFTTrainer(model, config, demonstrations(8))
    loss, rank, start = trainer.loss, PartialState().process_index, {}

    def poisoned(*args: Any) -> torch.Tensor:
        start.update(
            {name: value.detach().clone() for name, value in trainer.model.named_parameters()} if not start else {}
        )
        if trainer.state.global_step == 1:
            start["unmoved"] = all(torch.equal(value, start[name]) for name, value in trainer.model.named_parameters())
        return loss(*args) * (torch.nan if rank == 1 and trainer.state.global_step == 0 else 1)

    trainer.loss = poisoned
    trainer.train()
    skipped = [line.get("update/num_skipped_steps", 0) for line in trainer.state.log_history if "loss" in line]
    weights = {name: value.detach() for name, value in trainer.model.named_parameters()}
    torch.save({"skipped": skipped, "unmoved": start["unmoved"], "weights": weights}, f"{output_dir}/poisoned{rank}.pt")


def rows(model: str, output_dir: str, ranks: int) -> None:
    for steps in (1, 2):
        folder = f"{output_dir}/rows{steps}"
        found = gradients_of_rows(model, folder, CUTS["accumulated"], steps, ranks)
        if PartialState().is_main_process:
            torch.save(found, f"{folder}/gradients.pt")


if __name__ == "__main__":
    model, output_dir, ranks = sys.argv[1], sys.argv[2], int(sys.argv[3])
    for method in ("sft", "grpo", "tools", *PAIRS):
        train(method, model, f"{output_dir}/{method}", ranks)
    if ranks > 1:
        rows(model, output_dir, ranks)
        fail_apart(model, output_dir)
        poison_one(model, output_dir)
    PartialState().destroy_process_group()
    # All is saved. At an interpreter's end, threads of libraries abort a process now and then on a machine that is busy.
    sys.stdout.flush()
    os._exit(0)

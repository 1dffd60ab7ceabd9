"""Trains a step or a few of each method and saves the last gradients: run alone, or by torchrun on two ranks."""

from __future__ import annotations

import sys
from typing import Any

import torch
from transformers import TrainerCallback

from boresight import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
from boresight.loss.preference import MPO

from .conftest import QUIET, Gradients, demonstrations, records, vowel_share
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
        # 11 rows: the ranks' shares differ in rows, tokens and pictures.
        rows = demonstrations(11)
        config = SFTConfig(**common, per_device_train_batch_size=4, gradient_accumulation_steps=4 // ranks)
        SFTTrainer(model, config, rows, callbacks=callbacks).train()
    elif method in PAIRS:
        # Three steps, so that the shift and the table matter in the last; the ranks' shares differ in tokens and pictures.
        batch = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2 // ranks}
        config = DPOConfig(**common | {"max_steps": 3}, **batch, **PAIRS[method])
        DPOTrainer(model, args=config, train_dataset=preferences(), callbacks=callbacks).train()
    else:
        options = (
            {"scale_rewards": "batch", "beta": 0.1} if method == "grpo" else {"importance_sampling_level": "sequence"}
        )
        config = GRPOConfig(**common, **options, num_generations=4, max_completion_length=6, num_prompts_per_step=6)
        GRPOTrainer(model, vowel_share, config, records(12), callbacks=callbacks).train()


if __name__ == "__main__":
    for method in ("sft", "grpo", "gspo", *PAIRS):
        train(method, sys.argv[1], f"{sys.argv[2]}/{method}", int(sys.argv[3]))

"""Every row of the objective table in one run: each is given the same step, and its gradients are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from boresight import GRPOConfig, GRPOTrainer
from boresight.loss.objectives import OBJECTIVES
from boresight.types import Completion, Group

from .conftest import QUIET, records, vowel_share

LEVELS = {
    f"{name}, {level}": {"loss_type": name, "importance_sampling_level": level}
    for name, row in OBJECTIVES.items()
    for level in row.levels
}

LOSSES: dict[str, dict[str, Any]] = LEVELS | {
    "cispo, token": LEVELS["cispo, token"] | {"epsilon_high": 5.0},
    "delta": {"delta": 1.5},
    "narrow clip": {"epsilon": 1e-3, "epsilon_high": 3e-3},
    "beta": {"beta": 0.1},
    "beta, k1": {"beta": 0.1, "kl_estimator": "k1", "use_bias_correction_kl": False},
    "beta, k2, sequence": {"beta": 0.1, "kl_estimator": "k2", "importance_sampling_level": "sequence"},
    "entropy_coef": {"entropy_coef": 0.01, "importance_sampling_level": "sequence"},
    "top_entropy_quantile": {"top_entropy_quantile": 0.4},
    "top_entropy_quantile, entropy_coef": {"top_entropy_quantile": 0.4, "entropy_coef": 0.01},
    "mask_truncated_completions": {"mask_truncated_completions": True, "beta": 0.1},
    "off_policy_mask_threshold": {"off_policy_mask_threshold": 1e-4},
}
"""Options that decide what is made of advantages: tried on completions that are there."""

ADVANTAGES: dict[str, dict[str, Any]] = {
    "scale_rewards batch": {"scale_rewards": "batch"},
    "scale_rewards none": {"scale_rewards": "none"},
    "leave_one_out": {
        "scale_rewards": "none",
        "advantage_baseline": "leave_one_out",
        "loss_type": "rloo",
        "importance_sampling_level": "sequence_sum",
    },
    "leave_one_out, batch": {"scale_rewards": "batch", "advantage_baseline": "leave_one_out"},
    "GDPO": {"multi_objective_aggregation": "normalize_then_sum", "reward_weights": [1.0, 0.25]},
    "dynamic_sampling": {"dynamic_sampling": True},
}
"""Options that decide what the advantages are: tried on a draw of their own."""


def some_lengths(completions: list[Any], **columns: Any) -> list[float | None]:
    """Applies to some completions alone, and is the same for all of a group now and then."""
    texts = [completion[0]["content"] for completion in completions]
    return [None if "a" in text else float(len(text) > 20) for text in texts]


def vowels_where_a_word_is_asked_for(completions: list[Any], solution: list[str], **columns: Any) -> list[float]:
    """Equal in the groups whose answer is yes or no."""
    shades = vowel_share(completions)
    return [0.25 if gold in ("yes", "no") else shade for gold, shade in zip(solution, shades, strict=True)]


class EveryRow(GRPOTrainer):
    """Also takes the gradients of each row at the last step of a draw, where ratios are not 1, before the step that is its own."""

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        if inputs:
            self.prompts = inputs
        if self.state.global_step == self.args.max_steps - 1:
            self.gradients = {name: self._gradients(model, inputs, options) for name, options in LOSSES.items()}
            self.gradients |= {
                name: self._gradients(model, self.prompts, options) for name, options in ADVANTAGES.items()
            }
        return super().training_step(model, inputs)

    def _gradients(self, model: Any, inputs: Any, options: dict[str, Any]) -> dict[str, torch.Tensor]:
        kept = self.experience
        # The run has a reference; a row has one only where it says so.
        with _set(self.args, {"beta": 0.0} | options):
            super().training_step(model, inputs)
        self.experience = kept
        found = {
            name.removeprefix("module."): value.grad.clone()
            for name, value in model.named_parameters()
            if value.grad is not None
        }
        model.zero_grad()
        return found


@contextmanager
def _set(args: Any, options: dict[str, Any]) -> Iterator[None]:
    before = {name: getattr(args, name) for name in options}
    for name, value in options.items():
        setattr(args, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(args, name, value)


CUTS: dict[str, dict[str, Any]] = {
    "whole": {"per_device_train_batch_size": 16},
    "accumulated": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4},
    "tokens": {"per_device_train_batch_size": 16, "max_tokens_per_pass": 60},
}
"""Ways to cut a step of four groups of four; in the last even groups are cut."""


def gradients_of_rows(
    model: str, output_dir: str, cut: dict[str, Any], steps_per_rollout: int, ranks: int = 1
) -> dict[str, dict[str, torch.Tensor]]:
    """The gradients of every row, at the last optimizer step of a generation that serves so many."""
    accumulation = cut.get("gradient_accumulation_steps", 1)
    # Which completions are in which step must be the same for all: four groups over all ranks.
    share = cut if ranks == 1 else {**cut, "per_device_train_batch_size": cut["per_device_train_batch_size"] // ranks}
    config = GRPOConfig(
        **QUIET | share,
        output_dir=output_dir,
        use_cpu=True,
        beta=0.1,
        num_generations=4,
        max_completion_length=5,
        gold_check="off",
        max_steps=steps_per_rollout,
        steps_per_generation=steps_per_rollout * accumulation,
    )
    # Objectives do not reach into the tower; frozen, it costs nothing but the first time.
    loaded = AutoModelForImageTextToText.from_pretrained(model)
    loaded.model.visual.requires_grad_(False)
    trainer = EveryRow(
        loaded,
        [vowels_where_a_word_is_asked_for, some_lengths],
        config,
        records(20),
        processing_class=AutoProcessor.from_pretrained(model),
    )
    trainer.sampler.sample = uneven(trainer.sampler.sample)
    trainer.train()
    return trainer.gradients


def uneven(sample: Callable[..., list[Group]]) -> Callable[..., list[Group]]:
    """A sampler whose first completion of each group ends early: at equal lengths some objectives are the same."""

    def cut(completion: Completion) -> Completion:
        ids, mask, logp = completion.ids[:2], completion.mask[:2], completion.sampler_logp
        return replace(completion, ids=ids, mask=mask, sampler_logp=None if logp is None else logp[:2])

    def sampled(*args: Any, **kwargs: Any) -> list[Group]:
        groups = sample(*args, **kwargs)
        return [replace(group, completions=(cut(group.completions[0]), *group.completions[1:])) for group in groups]

    return sampled

"""What the rewards make of gold answers, and of completions that the policy samples for the first batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from boresight.preflight import Finding
from boresight.report.completions import read_completions
from boresight.rewards.check import GoldCheck
from boresight.trainer.grpo import GRPOTrainer
from boresight.trainer.rollouts.scored import Scored
from boresight.types import Prompt

AGREES = 0.05
"""The largest mean difference of log-probabilities between sampler and trainer, in nats per token, that precision explains."""


def check_gold_answers(trainer: GRPOTrainer, is_error: bool) -> Iterator[Finding]:
    """Every answer reward on the gold answers, as they are, written otherwise, and in parts.

    Args:
        is_error: whether the run ends for it (`gold_check='error'`).
    """
    checks = trainer.gold_checks()
    if not checks:
        yield Finding("gold answers", "note", "", "no reward reads a solution, so no gold answer is checked.")
    for check in checks:
        if check.is_sound:
            yield Finding("gold answers", "note", "", f"{check}.")
            continue
        unread = isinstance(check, GoldCheck) and (check.blind or check.left_out)
        yield Finding(
            "gold answers", "error" if is_error else "warning", "reward_funcs", f"{check}.",
            "Write these answers so that the reward reads them, or use a reward for answers of this kind (docs/how-to/own-data.md)."
            if unread
            else "Correct these rows, or set gold_template to the format of a right answer.",
        )  # fmt: skip


def check_first_batch(trainer: GRPOTrainer) -> Iterator[Finding]:
    """Sample completions of the first batch as training will, score them, and compare the sampler's log-probabilities with the trainer's.

    Raises:
        RewardError: a reward breaks its contract, or fails too often.
        EngineError: the engine fails, or disagrees with the trainer.
    """
    prompts: list[Prompt] = next(iter(trainer.get_train_dataloader()))
    trainer.prepare(prompts)
    items = trainer.experience
    yield from _rewards(trainer, items)
    yield _parity(trainer, items)


def _rewards(trainer: GRPOTrainer, items: Sequence[Scored]) -> Iterator[Finding]:
    table = read_completions(trainer.args.output_dir)
    for name in trainer.scorer.names:
        values = [value for value in table[f"rewards/{name}"].to_pylist() if value is not None]
        unscored = table.num_rows - len(values)
        spread = f"from {min(values):.3g} to {max(values):.3g}" if values else "none"
        yield Finding(
            "first batch", "note", "", f"{name}: {spread} over {table.num_rows} completions; {unscored} without a mark."
        )
        if not values:
            yield Finding(
                "first batch", "warning", "reward_funcs", f"{name} marks none of {table.num_rows} completions.",
                "Look at what it asks for: boresight doctor --show-batch prints the rows.",
            )  # fmt: skip
        elif len(set(values)) == 1 and len(values) > 1:
            yield Finding(
                "first batch", "warning", "reward_funcs",
                f"{name} gives {values[0]:g} to all {len(values)} completions: it teaches nothing.",
                "Start from a model that gets some of them right (boresight sft), take easier rows, or add a reward with shades.",
            )  # fmt: skip
    flat = sum(item.is_flat for item in items)
    if flat == len(items):
        yield Finding(
            "first batch", "warning", "reward_funcs", f"the rewards are equal within each of the {flat} groups: no learning signal.",
            "Raise num_generations or temperature, or see the rewards above.",
        )  # fmt: skip


def _parity(trainer: GRPOTrainer, items: Sequence[Scored]) -> Finding:
    groups = [item.group for item in items]
    own = trainer.logp(groups, trainer.policy)
    apart = [
        (logp[place, : len(completion.ids)] - completion.sampler_logp)[completion.mask]
        for group, logp in zip(groups, own, strict=True)
        for place, completion in enumerate(group.completions)
        if completion.sampler_logp is not None
    ]
    if not apart:
        return Finding("sampler", "note", "", "the sampler reports no log-probabilities to compare.")
    gap = torch.cat(apart).abs()
    text = (
        f"its log-probabilities differ from the trainer's by {gap.mean():.2g} nats in the mean and {gap.max():.2g} at most "
        f"({len(gap)} tokens)."
    )
    if gap.mean() <= AGREES:
        return Finding("sampler", "note", "", text)
    option = "vllm_importance_sampling_correction" if trainer.args.use_vllm else "dtype"
    return Finding(
        "sampler",
        "warning",
        option,
        text,
        "Run boresight doctor --model MODEL --probe, and let the engine compute in the trainer's dtype.",
    )

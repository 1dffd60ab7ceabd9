"""The longest rows first: whether a micro-batch of them fits in memory, and which parts get a gradient."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from boresight.data.sources import RowDataset
from boresight.doctor.memory import available_bytes, fitting_groups, peak_bytes
from boresight.doctor.rows import longest_rows
from boresight.families import family_of
from boresight.files import in_units
from boresight.model.part_options import PARTS
from boresight.modules import checkpoint_activations, unwrap
from boresight.preflight import Finding
from boresight.trainer.base import GroupTrainer
from boresight.trainer.grpo import GRPOTrainer
from boresight.trainer.memory_table import state_bytes


def check_worst_batch(trainer: GroupTrainer[Any], limit: int | None = None) -> Iterator[Finding]:
    """A forward and backward pass of a micro-batch of the longest rows, completions as long as they may become.

    Two passes, of one group and of two, say how many groups fit; only as many are tried.

    Args:
        limit: bytes of memory; None: what this machine has.
    """
    most = trainer.plan.groups_per_pass
    numbers = longest_rows(trainer, most)
    if not numbers:
        return
    rows = RowDataset(trainer.train_dataset)
    args, device = trainer.args, trainer.args.device
    if args.gradient_checkpointing:
        options: Any = args.gradient_checkpointing_kwargs
        checkpoint_activations(trainer.policy.outer, options)
    items = trainer.longest_items([rows[number] for number in numbers])
    limit = available_bytes(device) if limit is None else limit
    trained = [weight for weight in trainer.policy.outer.parameters() if weight.requires_grad]
    state = int(sum(weight.numel() * (state_bytes(args.optim, weight.element_size()) or 0) for weight in trained))

    def peak(count: int) -> int:
        trainer.policy.outer.zero_grad(set_to_none=True)
        return peak_bytes(device, lambda: trainer.trial_step(items[:count])) + state

    peaks = [peak(count) for count in range(1, min(2, len(items)) + 1)]
    yield from _gradients(trainer.policy.outer)
    fitting = most if limit is None else fitting_groups(peaks[0], peaks[-1], limit, most)
    if fitting == len(items) > 2:
        peaks.append(peak(fitting))
    tokens = max(item.num_tokens for item in items)
    found = f"{in_units(peaks[-1])} at the peak with {min(len(items), len(peaks) if len(peaks) < 3 else fitting)} of the longest rows"
    found += f" ({tokens} tokens each at most), of which {in_units(state)} are the optimizer's"
    if limit is not None and (fitting < most or peaks[-1] > limit):
        yield _too_large(trainer, fitting, tokens, f"{found}; there are {in_units(limit)}.")
    elif trainer.fitting_tokens != args.max_tokens_per_pass:
        yield _too_large(
            trainer, 1, trainer.fitting_tokens or tokens, f"{found}; a micro-batch did not fit and was halved."
        )
    else:
        yield Finding("worst batch", "note", "", f"{found}{'' if limit is None else f'; there are {in_units(limit)}'}.")
    trainer.policy.outer.zero_grad(set_to_none=True)


def _too_large(trainer: GroupTrainer[Any], fitting: int, tokens: int, text: str) -> Finding:
    args = trainer.args
    if fitting == 0:
        sampled = " max_completion_length or num_generations," if isinstance(trainer, GRPOTrainer) else ""
        ways = "" if args.gradient_checkpointing else " set gradient_checkpointing=True,"
        return Finding(
            "worst batch", "error", "max_pixels", f"not even one group fits: {text}",
            f"Lower max_pixels,{sampled}{ways} or train an adapter (use_peft).",
        )  # fmt: skip
    wanted = trainer.plan.groups_per_pass
    size = fitting * (args.num_generations if isinstance(trainer, GRPOTrainer) else 1)
    return Finding(
        "worst batch", "error", "per_device_train_batch_size", f"{wanted} groups do not fit, {fitting} do: {text}",
        f"Set max_tokens_per_pass={fitting * tokens}, or per_device_train_batch_size={size} and raise gradient_accumulation_steps.",
    )  # fmt: skip


def _gradients(model: nn.Module) -> Iterator[Finding]:
    """Which parts are trained, and whether the pass gave them a gradient."""
    family = family_of(unwrap(model).config.model_type)
    for part in PARTS:
        trained = [
            weight for name, weight in model.named_parameters() if weight.requires_grad and family.part(name) == part
        ]
        moved = sum(weight.grad is not None and bool(weight.grad.count_nonzero()) for weight in trained)
        if trained and not moved:
            yield Finding(
                "gradients", "warning", "train", f"{part}: none of {len(trained)} trained tensors has a gradient in the longest rows.",
                "Nothing in the loss depends on them: freeze the part, or give rows with images.",
            )  # fmt: skip
        elif trained:
            yield Finding(
                "gradients", "note", "", f"{part}: {moved} of {len(trained)} trained tensors have a gradient."
            )

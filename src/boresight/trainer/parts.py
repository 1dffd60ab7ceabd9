"""Training by part: learning rates of the optimizer's groups, the table before training, and the check of the first step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import gather_object
from peft import PeftConfig
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from boresight.errors import ConfigError, ModelError
from boresight.families import Part, family_of
from boresight.model.part_options import PARTS, PartPlan
from boresight.model.parts import PartSummary, left_out, summaries
from boresight.modules import local, unwrap
from boresight.trainer.memory_table import state_bytes

CHUNK = 2**20
"""Number of weights whose bits are summed at once."""
PRIME = 65521
"""The weights of a checksum's positions repeat after so many."""


# ---- Learning rates ------------------------------------------------------------------------------------------------------------------


def set_learning_rates(optimizer: Any, model: nn.Module, rates: Mapping[Part, float]) -> None:
    """Split the optimizer's groups by part, and give each part its learning rate. For an optimizer that has not stepped yet.

    Each group gets an entry `part`. Schedules multiply every group's own rate. Parts without a rate of their own come first, so that the
    logged `learning_rate` is theirs.

    Raises:
        ConfigError: the optimizer does not hold the model's trained weights in its groups.
    """
    family = family_of(unwrap(model).config.model_type)
    part_of = {id(weight): family.part(name) for name, weight in model.named_parameters() if weight.requires_grad}
    held = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
    if held != set(part_of):
        raise ConfigError(
            f"lr: {type(optimizer).__name__} does not keep the trained weights in its groups, so parts cannot have learning rates of their "
            "own: drop lr, or choose another optim."
        )
    groups: list[dict[str, Any]] = []
    for part in sorted(PARTS, key=lambda part: part in rates):
        for group in optimizer.param_groups:
            weights = [weight for weight in group["params"] if part_of[id(weight)] == part]
            groups += (
                [{**group, "params": weights, "part": part, "lr": _rate(group["lr"], rates.get(part))}]
                if weights
                else []
            )
    optimizer.param_groups[:] = groups


def _rate(rate: Any, own: float | None) -> Any:
    """A group's learning rate, or a part's own; a tensor where the optimizer keeps it in one (torchao's), and then not shared by groups."""
    if isinstance(rate, Tensor):
        return rate.clone() if own is None else torch.full_like(rate, own)
    return rate if own is None else own


def check_rates(model: nn.Module, plan: PartPlan, own_optimizer: bool) -> None:
    """Check that every learning rate has something to train.

    Raises:
        ConfigError: a part with a rate trains nothing, or the user passed an optimizer.
    """
    if not plan.lr:
        return
    if own_optimizer:
        raise ConfigError(
            "lr has no effect on an optimizer of your own: drop lr, or give its groups their learning rates."
        )
    for summary in summaries(model):
        if summary.part in plan.lr and not summary.num_trainable:
            raise ConfigError(
                f"lr: {summary.part}={plan.lr[summary.part]:g} has no effect, because {summary.part} is frozen: leave one of them out."
            )


# ---- The table -----------------------------------------------------------------------------------------------------------------------


def parts_table(model: nn.Module, plan: PartPlan, learning_rate: float, optim: str) -> str:
    """A table with a line for each part: how it is trained, parameters, learning rate, memory, and modules with an adapter.

    Memory is that of one process: weights, gradients (as large as the trained weights) and the optimizer's state.
    """
    rows = [("part", "trained", "parameters", "trainable", "lr", "weights", "gradients", "optimizer", "adapters on")]
    found = summaries(model)
    for each in found:
        rate = f"{plan.lr.get(each.part, learning_rate):g}" if each.num_trainable else "-"
        adapters = ", ".join(f"{name} {count}" for name, count in each.adapters.items())
        rows.append(
            (
                each.part,
                each.how,
                f"{each.num_weights:,}",
                f"{each.num_trainable:,}",
                rate,
                *_memory([each], optim),
                adapters,
            )
        )
    weights, trainable = sum(each.num_weights for each in found), sum(each.num_trainable for each in found)
    rows.append(("all", "", f"{weights:,}", f"{trainable:,}", "", *_memory(found, optim), ""))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    right = range(2, 8)
    return "\n".join(
        "  ".join(
            cell.rjust(width) if place in right else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _memory(parts: Sequence[PartSummary], optim: str) -> tuple[str, str, str]:
    gradients = sum(part.gradient_bytes for part in parts)
    states = [state_bytes(optim, part.gradient_bytes / max(part.num_trainable, 1)) for part in parts]
    total = [None if each is None else each * part.num_trainable for each, part in zip(states, parts, strict=True)]
    state = "?" if None in total else _size(sum(each or 0 for each in total))
    return _size(sum(part.weight_bytes for part in parts)), _size(gradients), state


def _size(num_bytes: float) -> str:
    """A number of bytes with three digits and a unit."""
    if num_bytes < 1024:
        return f"{num_bytes:.0f} B"
    power = min(4, int(math.log(num_bytes, 1024)))
    value = num_bytes / 1024**power
    return f"{format(value, '.0f' if value >= 100 else '.3g')} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def left_out_note(peft_config: PeftConfig | None, plan: PartPlan, model: nn.Module) -> str | None:
    """What to say about layers outside the language model that have a target's name and get no adapter; None if there are none."""
    if peft_config is None or plan.how is not None:
        return None
    names = left_out(peft_config, model)
    if not names:
        return None
    listed = ", ".join(f"{name} {count}" for name, count in names.items())
    return (
        f"Vision tower and projector have layers of these names too ({listed}). They get no adapter; train=vision=lora,language=lora "
        "adapts them as well."
    )


# ---- The check of the first step -----------------------------------------------------------------------------------------------------


class FirstStepCheck(TrainerCallback):
    """Verifies that the first step moves every trained tensor that has a gradient, and no frozen tensor.

    A tensor counts as moved if a checksum of all its bits differs. Steps without any gradient and steps at a learning rate of 0 are passed
    over. Tensors without a gradient in the first step (factors A of LoRA, because B starts at zero; a tower in a step without images) are
    compared once more at the end of training.

    Args:
        say: prints a message to the user.
        warn: as `say`, and keeps the message in the run folder.
        rounds: weights are rounded stochastically, so that a small tensor may rightly not move in the first step.
    """

    def __init__(self, say: Callable[[str], None], warn: Callable[[int, str], None], *, rounds: bool = False) -> None:
        self._rounds = rounds
        self._say = say
        self._warn = warn
        self._before: dict[str, int] | None = None
        self._with_gradient: set[str] = set()
        self._pending: dict[str, int] = {}
        self._done = False

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **_: Any
    ) -> None:
        if self._done or not any(group["lr"] > 0 for group in optimizer.param_groups):
            return
        self._with_gradient = {
            name
            for name, weight in _trained(model)
            if weight.grad is not None and bool(local(weight.grad).count_nonzero())
        }
        if self._with_gradient:
            self._before = checksums(model.named_parameters())

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if self._before is None:
            return
        before, self._before = self._before, None
        moved = {name for name, found in checksums(model.named_parameters()).items() if found != before[name]}
        if not moved and args.fp16:  # its loss scale overflowed, and the step was skipped
            return
        self._done = True
        trained = {name for name, _ in _trained(model)}
        if astray := sorted(moved - trained):
            raise ModelError(
                f"step {state.global_step} changed {len(astray)} frozen tensors (the first is {astray[0]}): something other "
                "than the optimizer's groups writes to them."
            )
        self._pending = {name: before[name] for name in trained - moved}
        if not self._rounds and (stuck := sorted(self._with_gradient - moved)):
            self._warn(
                state.global_step,
                f"step {state.global_step}: {len(stuck)} of {len(trained)} trained tensors have a gradient and did not move (the first is "
                f"{stuck[0]}): the learning rate is below their resolution, or the optimizer does not hold them.",
            )
            return
        later = trained - moved
        rest = f"; {len(later)} have no gradient yet{' (factors A of the adapter)' if all('lora_A' in name for name in later) else ''}"
        self._say(
            f"step {state.global_step} verified: {len(moved)} of {len(trained)} trained tensors moved{rest if later else ''}; none of "
            f"{len(before) - len(trained)} frozen tensors did."
        )

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        weights = ((name, weight) for name, weight in model.named_parameters() if name in self._pending)
        if still := sorted(name for name, found in checksums(weights).items() if found == self._pending[name]):
            self._warn(
                state.global_step,
                f"{len(still)} trained tensors did not move in {state.global_step} steps (the first is {still[0]}): nothing in the loss "
                "depended on them. A vision tower needs rows with images, and LLaVA's is read below its last layer.",
            )


def _trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, weight) for name, weight in model.named_parameters() if weight.requires_grad)


def checksums(named: Any) -> dict[str, int]:
    """Name → a checksum of all bits of a tensor, weighted by position. Two tensors that differ in one weight have different ones.

    All ranks call this together: the checksum of a tensor with shards is over all of them.
    """
    weights = dict(named)
    found = {name: _checksum(local(weight.detach())) for name, weight in weights.items()}
    sharded = [name for name, weight in weights.items() if isinstance(weight, DTensor)]
    if sharded:
        everywhere = gather_object([[found[name] for name in sharded]])
        found |= {name: hash(tuple(sums)) for name, *sums in zip(sharded, *everywhere, strict=True)}
    return found


def _checksum(weight: Tensor) -> int:
    bits = weight.contiguous().view(-1).view(_INTEGER[weight.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=bits.device)
    for start in range(0, len(bits), CHUNK):
        part = bits[start : start + CHUNK].long()
        places = torch.arange(start, start + len(part), device=bits.device) % PRIME + 1
        total += (part * places).sum()  # overflow wraps, alike on both sides
    return int(total)


_INTEGER = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

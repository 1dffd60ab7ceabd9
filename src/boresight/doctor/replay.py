"""Runs the groups of a step that was not finite again, and finds where the first number goes bad."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from boresight.errors import ConfigError
from boresight.model.forward import GroupForward
from boresight.model.load import load_model, load_processor, model_facts
from boresight.terminal import printable
from boresight.trainer.kept_step import KeptStep, read_step
from boresight.trainer.manifest import faults
from boresight.trainer.run_folder import RunFolder, step_of
from boresight.types import Group


@dataclass(frozen=True, slots=True)
class Finding:
    """What became of one group, in float32."""

    row: int
    num_prompt_tokens: int
    num_completion_tokens: int
    lowest: float
    """The lowest log-probability of a counted token, in nats; NaN where one is not finite."""
    module: str | None
    """The first module whose output is not finite, in the order of the forward pass."""
    parameter: str | None
    """The first parameter whose gradient is not finite."""
    largest_gradient: float

    @property
    def is_finite(self) -> bool:
        return self.module is None and self.parameter is None and self.lowest == self.lowest


@dataclass(frozen=True, slots=True)
class Replay:
    """A replayed step."""

    kept: KeptStep
    model: str
    findings: tuple[Finding, ...]

    def __rich__(self) -> Table:
        title = f"step {self.kept.step}, where {self.kept.what} was not finite, in float32 with {self.model}"
        table = Table(title=Text(printable(title)))
        for name in ("row", "prompt tokens", "completion tokens", "lowest log-probability", "largest gradient"):
            table.add_column(name, justify="right")
        table.add_column("first not finite")
        for each in self.findings:
            where = each.module or (f"the gradient of {each.parameter}" if each.parameter else "–")
            counts = map(str, (each.row, each.num_prompt_tokens, each.num_completion_tokens))
            numbers = (f"{each.lowest:.3g}", f"{each.largest_gradient:.3g}")
            table.add_row(*counts, *numbers, where, style=None if each.is_finite else "red")
        return table

    @property
    def advice(self) -> str:
        """What the findings mean, in a sentence."""
        bad = [str(each.row) for each in self.findings if not each.is_finite]
        if bad:
            rows = ", ".join(bad)
            return f"Rows {rows} are not finite in float32 either: look at their images and texts, or at these weights."
        return (
            "Every row is finite in float32 with these weights. So it is the precision of training (bf16, fp16), the objective (its "
            "options, rewards or reference), or the weights of that step, which no checkpoint holds: lower learning_rate, or set "
            "nan_policy='stop', which saves them."
        )


def replay(path: str | Path, model: str | None = None) -> Replay:
    """Run the groups of a kept step forward and backward, one by one, in float32.

    Args:
        path: a file in RUN/nonfinite, which the log names.
        model: a folder or a hub id; None: the run's newest whole checkpoint before that step.

    Raises:
        DataError: the file is not a kept step.
        ConfigError: there is no such checkpoint, and `model` is None.
    """
    kept = read_step(path)
    name = model or str(_checkpoint_before(Path(path).resolve().parent.parent, kept.step))
    loaded = load_model(name, dtype=torch.float32)
    facts = model_facts(loaded, load_processor(None, loaded, name))
    forward = GroupForward(loaded, facts, layout=kept.options.get("layout", "auto"))
    return Replay(kept, name, tuple(_finding(forward, loaded, group) for group in kept.groups))


def _checkpoint_before(run: Path, step: int) -> Path:
    for folder in reversed(RunFolder(run).checkpoints()):
        if step_of(folder) < step and not faults(folder):
            return folder
    raise ConfigError(
        f"{run} has no whole checkpoint before step {step}: name the model that was trained with --model."
    )


def _finding(forward: GroupForward, model: nn.Module, group: Group) -> Finding:
    model.zero_grad(set_to_none=True)
    with first_not_finite(model) as found:
        stats = forward([group])
    counted = stats.logp[stats.mask]
    if counted.requires_grad:
        counted.sum().backward()
    logp = counted.detach()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return Finding(
        row=group.prompt.row.index,
        num_prompt_tokens=group.num_prompt_tokens,
        num_completion_tokens=group.num_completion_tokens,
        lowest=float(logp.min()) if bool(logp.isfinite().all()) else float("nan"),
        module=found[0] if found else None,
        parameter=next((name for name, value in gradients.items() if not value.isfinite().all()), None),
        largest_gradient=max((float(value.abs().max()) for value in gradients.values()), default=0.0),
    )


@contextlib.contextmanager
def first_not_finite(model: nn.Module) -> Iterator[list[str]]:
    """The names of the modules whose outputs are not finite, in the order in which they are computed."""
    found: list[str] = []

    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            parts = output if isinstance(output, tuple | list) else [output]
            if any(
                isinstance(part, Tensor) and part.is_floating_point() and not part.isfinite().all() for part in parts
            ):
                found.append(name)

        return hook

    # Innermost modules alone, of which the first to go bad is the cause.
    leaves = [(name, module) for name, module in model.named_modules() if not [*module.children()]]
    handles = [module.register_forward_hook(watch(name)) for name, module in leaves]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()

"""What a draw of completions leaves behind for the optimizer steps that learn from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from boresight.types import Completion, Group, PerSequence, PerToken, Prompt


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """A group with what the objective needs beside it."""

    group: Group
    advantage: PerSequence
    """[K]"""
    old: PerToken | None = None
    """[K, C] log-probabilities under the trainer's weights at rollout; None where no update comes between."""
    reference: PerToken | None = None
    """[K, C] log-probabilities under the reference; None where no divergence is asked for."""

    def __len__(self) -> int:
        return len(self.group)

    @property
    def num_tokens(self) -> int:
        return self.group.num_tokens

    @property
    def num_prompt_tokens(self) -> int:
        return self.group.num_prompt_tokens

    @property
    def is_flat(self) -> bool:
        """Whether nothing is to be learned from it: every advantage is exactly 0."""
        return not self.advantage.any()

    def branches(self, start: int, stop: int) -> Scored:
        """The same prompt with some of its completions."""
        return Scored(self.group.branches(start, stop), *(None if it is None else it[start:stop] for it in self._per_branch()))  # pyright: ignore[reportArgumentType]

    def _per_branch(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        return self.advantage, self.old, self.reference


def padded(rows: Sequence[Tensor], width: int) -> Tensor:
    """[B, width] several [K, ·] blocks or [·] rows below one another, zeros on the right."""
    lines = [line for block in rows for line in (block if block.ndim == 2 else block[None])]
    return torch.stack([torch.nn.functional.pad(line[:width], (0, width - len(line[:width]))) for line in lines])


def per_group(values: Tensor, groups: Sequence[Group]) -> list[Tensor]:
    """[B, T] cut into one [K, C] block a group, each as wide as its longest completion."""
    blocks = values.split([len(group) for group in groups])
    widths = [max(len(completion.ids) for completion in group.completions) for group in groups]
    return [block[:, :width].clone() for block, width in zip(blocks, widths, strict=True)]


def sampler_logp(groups: Sequence[Group]) -> PerToken:
    """[B, T] what the sampler reported, NaN where it reported nothing."""
    rows = [
        torch.full((len(completion.ids),), torch.nan) if completion.sampler_logp is None else completion.sampler_logp
        for group in groups
        for completion in group.completions
    ]
    return pad_sequence(rows, True)


def state_of(items: Sequence[Scored]) -> list[dict[str, Any]]:
    """Tensors and plain values that a checkpoint can hold; prompts are left out, since their rows can be encoded again."""
    return [
        {
            "row": item.group.prompt.row.index,
            "advantage": item.advantage,
            "old": item.old,
            "reference": item.reference,
            "completions": [
                {
                    "ids": completion.ids,
                    "mask": completion.mask,
                    "text": completion.text,
                    "sampler_logp": completion.sampler_logp,
                    "truncated": completion.truncated,
                }
                for completion in item.group.completions
            ],
        }
        for item in items
    ]


def from_state(states: Sequence[dict[str, Any]], prompt: Callable[[int], Prompt]) -> list[Scored]:
    """The inverse of `state_of`; `prompt` encodes a row by its number."""
    return [
        Scored(
            Group(prompt(state["row"]), tuple(Completion(**completion) for completion in state["completions"])),
            state["advantage"],
            state["old"],
            state["reference"],
        )
        for state in states
    ]



"""A group with its advantage and the other inputs of the objective."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from boresight.types import Completion, EncodedImage, Group, ImageSet, Observation, PerSequence, PerToken, Prompt


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """A group with the other inputs of the objective."""

    group: Group
    advantage: PerSequence
    """[K]"""
    old: PerToken | None = None
    """[K, C] log-probabilities under the trainer's weights at rollout; None if there is only one update per rollout."""
    reference: PerToken | None = None
    """[K, C] log-probabilities under the reference; None without a divergence."""
    entropy: PerToken | None = None
    """[K, C] entropies before the optimizer step; None unless the objective selects tokens by entropy."""

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
        """Whether every advantage is exactly 0, so that the group gives no learning signal."""
        return not self.advantage.any()

    def branches(self, start: int, stop: int) -> Scored:
        """The same prompt with some of its completions."""
        return Scored(
            self.group.branches(start, stop),
            self.advantage[start:stop],
            None if self.old is None else self.old[start:stop],
            None if self.reference is None else self.reference[start:stop],
            None if self.entropy is None else self.entropy[start:stop],
        )


def padded(rows: Iterable[Tensor], width: int) -> Tensor:
    """[B, width] the rows stacked, each cut or padded with zeros on the right."""
    return torch.stack([torch.nn.functional.pad(row[:width], (0, max(0, width - len(row)))) for row in rows])


def sampler_logp(groups: Sequence[Group], width: int) -> PerToken | None:
    """[B, width] the sampler's log-probabilities, NaN for completions without any; None if no completion has them."""
    completions = [completion for group in groups for completion in group.completions]
    if all(completion.sampler_logp is None for completion in completions):
        return None
    unknown = torch.full((width,), torch.nan)
    return padded((unknown if each.sampler_logp is None else each.sampler_logp for each in completions), width)


def per_group(rows: Sequence[Tensor], groups: Sequence[Group]) -> list[Tensor]:
    """One [K, C] block per group, as wide as its longest completion.

    Args:
        rows: one row per completion, each at least as long as the longest completion of its group.
    """
    blocks, place = [], 0
    for group in groups:
        width = max(len(completion.ids) for completion in group.completions)
        blocks.append(padded(rows[place : place + len(group)], width))
        place += len(group)
    return blocks


def group_state(group: Group) -> dict[str, Any]:
    """A group as tensors and plain values, for checkpoints and transfer. Prompts are left out, because rows can be encoded again."""
    return {
        "row": group.prompt.row.index,
        "observation": [part if isinstance(part, str) else _image_state(part) for part in group.prompt.observation],
        "completions": [completion_state(completion) for completion in group.completions],
    }


Observed = Callable[[Prompt, Observation], Prompt]
"""`Encoder.with_observation`."""


def group_from_state(state: dict[str, Any], prompt: Callable[[int], Prompt], observed: Observed | None = None) -> Group:
    """The inverse of `group_state`; `prompt` encodes a row by its number, `observed` adds what an environment said at its reset."""
    own = prompt(state["row"])
    if state["observation"] and observed is not None:
        own = observed(own, tuple(part if isinstance(part, str) else _image(part) for part in state["observation"]))
    return Group(own, tuple(map(completion_from_state, state["completions"])))


def completion_state(completion: Completion) -> dict[str, Any]:
    """A completion as tensors and plain values, the images of its environment's turns included."""
    values = {each.name: getattr(completion, each.name) for each in fields(completion)}
    return values | {
        "token_inputs": dict(completion.token_inputs),
        "messages": None if completion.messages is None else [dict(message) for message in completion.messages],
        "image_sets": [
            {
                "images": [_image_state(image) for image in image_set.images],
                "vision": dict(image_set.vision),
            }
            for image_set in completion.image_sets
        ],
    }


def completion_from_state(state: Mapping[str, Any]) -> Completion:
    """The inverse of `completion_state`."""
    sets = tuple(ImageSet(tuple(map(_image, each["images"])), each["vision"]) for each in state["image_sets"])
    messages = None if state["messages"] is None else tuple(state["messages"])
    return Completion(**{**state, "image_sets": sets, "messages": messages})


def _image_state(image: EncodedImage) -> dict[str, Any]:
    return {each.name: _plain(getattr(image, each.name)) for each in fields(image)}


def _plain(value: Any) -> Any:
    """Bytes as a tensor: files of weights and plain values hold no bytes."""
    return torch.frombuffer(bytearray(value), dtype=torch.uint8) if isinstance(value, bytes) else value


def _image(state: Mapping[str, Any]) -> EncodedImage:
    source = state["source"]
    return EncodedImage(**{**state, "source": source.numpy().tobytes() if isinstance(source, Tensor) else source})


def state_of(items: Sequence[Scored]) -> list[dict[str, Any]]:
    """As `group_state`, with the other inputs of the objective."""
    return [
        group_state(item.group) | {"advantage": item.advantage, "old": item.old, "reference": item.reference}
        for item in items
    ]


def from_state(
    states: Sequence[dict[str, Any]], prompt: Callable[[int], Prompt], observed: Observed | None = None
) -> list[Scored]:
    """The inverse of `state_of`."""
    return [
        Scored(group_from_state(state, prompt, observed), state["advantage"], state["old"], state["reference"])
        for state in states
    ]

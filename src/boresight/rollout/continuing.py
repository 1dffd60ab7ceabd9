"""What is known of prompts and of their branches between the turns of one rollout, so that a turn runs only its own tokens.

    prompt   [1, heads, P, D]    each layer's keys and values, kept once for all completions
    branch   [1, heads, T, D]    those of a completion's turns, kept for each that goes on

A turn's first tokens are what the policy sampled: their keys and values come again from one parallel pass with the environment's tokens
behind them. Each image of a turn is encoded when it is appended, and never again while sampling.

Not every model class continues right from a cache with more than one token: Gemma 3 attends within an image both ways only where the cache
is empty. So the first turn of text and the first with images are also run from their beginning, and a model whose log-probabilities differ
runs every such turn from its beginning.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from boresight.own_forward import is_exact
from boresight.rollout.decode import Prefill
from boresight.types import HasImages, Prompt

Layers = tuple[tuple[Tensor, Tensor], ...]
"""Keys and values [1, heads, length, D] of every layer."""

Content = tuple[tuple[int, ...], tuple[str, ...]]
"""The ids of turns, and the digests of their images: equal ids may stand for different images."""


@dataclass(slots=True)
class KnownPrompt:
    """One prompt, and the branches of it that went on."""

    prompt: Prompt
    layers: Layers
    branches: dict[Content, Layers] = field(default_factory=dict[Content, Layers])
    """Of the latest turn."""
    next_branches: dict[Content, Layers] = field(default_factory=dict[Content, Layers])
    """Of the turn that is being run."""


class KnownTurns:
    """Keys and values kept from turn to turn. It belongs to one sampler.

    Args:
        log: logs that a model's turns run from their beginning, and why.
    """

    def __init__(self, log: Callable[[str], None]) -> None:
        self.log = log
        self._spared: Counter[str] = Counter()
        self._prompts: dict[int, KnownPrompt] = {}
        self._verified: dict[bool, bool] = {}
        """Whether the model continues right, for turns without and with images; absent: not tried."""

    def clear(self) -> None:
        """Forget everything: the weights change, or another rollout begins."""
        self._prompts.clear()

    def spared(self) -> Counter[str]:
        """The work spared since this was last asked: prompt_tokens, vision_encodes."""
        spared, self._spared = self._spared, Counter()
        return spared

    def turn_ended(self) -> None:
        """Forget the branches that did not take part in the latest turn."""
        for known in self._prompts.values():
            known.branches, known.next_branches = known.next_branches, {}

    def __call__(self, prefill: Prefill, prompt: Prompt, cache: DynamicCache) -> tuple[Tensor, int, DynamicCache]:
        """As `prefill`; `cache` is empty, and returned or replaced."""
        if prompt.begun is None:
            result = prefill(prompt, cache)
            if all(isinstance(layer, DynamicLayer) for layer in result[2].layers):
                self._prompts[id(prompt)] = KnownPrompt(prompt, _layers(result[2], 0))
            else:
                self.log("reads earlier turns again before each new one: it has layers with a state")
            return result
        known = self._prompts.get(id(prompt.begun[0]))
        result = None if known is None else self._continued(prefill, known, prompt)
        if result is None:
            result = prefill(prompt, cache)
        if known is not None:
            known.next_branches[_content(prompt)] = _layers(result[2], len(known.prompt.ids))
        return result

    def unread_sets(self, prompt: Prompt) -> Sequence[HasImages]:
        """The sets of images that will be read when this prompt is run."""
        known = None if prompt.begun is None else self._prompts.get(id(prompt.begun[0]))
        sets = prompt.image_sets
        if known is None:
            return sets
        _, _, num_sets = _known_part(known, prompt)
        return sets if self._verified.get(num_sets < len(sets)) is False else sets[num_sets:]

    def _continued(
        self, prefill: Prefill, known: KnownPrompt, prompt: Prompt
    ) -> tuple[Tensor, int, DynamicCache] | None:
        """A prompt run from what is known of it; None where the model must run it from its beginning."""
        own, num_known, num_sets = _known_part(known, prompt)
        sets = prompt.image_sets
        has_images = num_sets < len(sets)
        if self._verified.get(has_images) is False:
            return None
        cache = _filled(known.layers, own)
        result = prefill(prompt, cache, num_known=num_known, num_known_sets=num_sets)
        if has_images not in self._verified:
            whole = prefill(prompt, DynamicCache())
            far = (result[0].float().log_softmax(-1) - whole[0].float().log_softmax(-1)).abs().max().item()
            self._verified[has_images] = far <= (1e-4 if is_exact(prefill.model) else 0.25)
            if not self._verified[has_images]:
                what = "turns with images" if has_images else "turns"
                self.log(
                    f"reads {what} again from the beginning: continued from a cache, log-probabilities are {far:.1e} off"
                )
                return whole
        self._spared["prompt_tokens"] += num_known
        if prefill.features is None:
            self._spared["vision_encodes"] += sum(len(each.images) for each in sets[:num_sets])
        return result


def _content(prompt: Prompt) -> Content:
    assert prompt.begun is not None
    turns = prompt.begun[1]
    return tuple(turns.ids.tolist()), tuple(image.digest for each in turns.image_sets for image in each.images)


def _known_part(known: KnownPrompt, prompt: Prompt) -> tuple[Layers | None, int, int]:
    """What is known of a prompt's turns; and how many tokens and sets of images are known, those of the row's prompt included."""
    (ids, digests), own = _longest(known, prompt)
    num_sets = len(known.prompt.image_sets) + _num_sets(prompt, len(digests))
    return own, len(known.prompt.ids) + len(ids), num_sets


def _longest(known: KnownPrompt, prompt: Prompt) -> tuple[Content, Layers | None]:
    """The longest known beginning of a prompt's turns."""
    ids, digests = _content(prompt)
    fitting = [
        content
        for content in known.branches
        if len(content[0]) < len(ids)
        and ids[: len(content[0])] == content[0]
        and digests[: len(content[1])] == content[1]
    ]
    if not fitting:
        return ((), ()), None
    longest = max(fitting, key=lambda content: len(content[0]))
    return longest, known.branches[longest]


def _num_sets(prompt: Prompt, num_images: int) -> int:
    """How many of the turns' sets of images the first `num_images` images make."""
    assert prompt.begun is not None
    count = 0
    for each in prompt.begun[1].image_sets:
        if num_images < len(each.images):
            break
        num_images -= len(each.images)
        count += 1
    return count


def _layers(cache: DynamicCache, start: int) -> Layers:
    """Keys and values from token `start` on; a copy where that is a part, so that the rest can be freed."""
    pairs = [(layer.keys, layer.values) for layer in cache.layers if isinstance(layer, DynamicLayer)]
    return tuple(
        (keys[:, :, start:].clone(), values[:, :, start:].clone()) if start else (keys, values)  # pyright: ignore
        for keys, values in pairs
    )


def _filled(prompt: Layers, own: Layers | None) -> DynamicCache:
    cache = DynamicCache()
    for index, (keys, values) in enumerate(prompt):
        if own is not None:
            keys, values = (torch.cat(pair, 2) for pair in zip((keys, values), own[index], strict=True))
        cache.update(keys, values, index)
    return cache

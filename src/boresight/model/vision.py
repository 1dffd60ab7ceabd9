"""Pictures through the tower, once each."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Hashable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from boresight.errors import ModelError
from boresight.model.positions import accepted
from boresight.types import Prompt

Parts = Tensor | tuple[Tensor, ...]
"""Features of several pictures, as the family has them: one tensor [tiles, tokens, hidden], or a [tokens, hidden] for each picture."""


@dataclass(frozen=True, slots=True)
class Features:
    """What the tower and the projector made of one prompt's pictures."""

    pooled: Parts
    deepstack: tuple[Parts, ...] = ()
    """Qwen3-VL: what each of the first layers adds at the placeholders, one entry per layer."""

    @property
    def num_bytes(self) -> int:
        levels = (self.pooled, *self.deepstack)
        return sum(part.nbytes for level in levels for part in ((level,) if isinstance(level, Tensor) else level))


def _joined(parts: Sequence[Parts]) -> Parts:
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)  # pyright: ignore[reportArgumentType]
    return tuple(tensor for part in parts for tensor in part)


def _split(whole: Any, parts: int) -> list[Parts]:
    if isinstance(whole, Tensor):
        return list(whole.chunk(parts))
    share = len(whole) // parts
    return [tuple(whole[part * share : (part + 1) * share]) for part in range(parts)]


def join_features(features: Sequence[Features]) -> BaseModelOutputWithPooling:
    """Several prompts' features as the tower's output for all of them (transformers' `mm_encoder_outputs["image"]`)."""
    output: Any = BaseModelOutputWithPooling()
    output.pooler_output = _joined([item.pooled for item in features])
    output.deepstack_features = [_joined(level) for level in zip(*(item.deepstack for item in features), strict=True)]
    return output


def split_features(output: Any, parts: int) -> list[Features]:
    """The tower's output for `parts` prompts of equal shape, prompt by prompt."""
    levels = [_split(level, parts) for level in getattr(output, "deepstack_features", None) or ()]
    return [
        Features(pooled, tuple(level[part] for level in levels))
        for part, pooled in enumerate(_split(output.pooler_output, parts))
    ]


def picture_key(prompt: Prompt) -> Hashable:
    """Prompts with equal keys have equal features. Token ids say nothing here: two pictures of one size have equal ids."""
    return tuple(picture.digest for picture in prompt.pictures)


def text_parameters(model: PreTrainedModel) -> set[nn.Parameter]:
    """The parameters of the language model and its head: all that a picture does not pass through before it is merged."""
    head = model.get_output_embeddings()
    return {*model.get_decoder().parameters(), *(head.parameters() if head is not None else ())}


def vision_is_frozen(model: PreTrainedModel) -> bool:
    """Whether nothing that a picture passes through (tower, projector) is trained."""
    text = text_parameters(model)
    return not any(parameter.requires_grad for parameter in model.parameters() if parameter not in text)


class VisionEncoder:
    """Encodes the pictures of prompts: once per distinct set of pictures in a call, once in all while the tower is frozen.

    Prompts whose tensors have equal shapes go through the tower together, others one by one, so no tensor of the processor's is
    ever sliced or padded.

    Args:
        model: the model with its head.
        max_cache_gib: how much may be kept of a frozen tower's features. The oldest go first.
        batch_size: how many prompts of equal shape go through the tower together.
        counts: where `vision_encodes`, pictures that went through the tower, are counted.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        max_cache_gib: float = 2.0,
        batch_size: int = 16,
        counts: Counter[str] | None = None,
    ) -> None:
        self.model = model
        self.max_cache_bytes = int(max_cache_gib * 2**30)
        self.batch_size = batch_size
        self.counts = Counter[str]() if counts is None else counts
        self._cache: OrderedDict[Hashable, Features] = OrderedDict()
        self._cache_bytes = 0

    def clear(self) -> None:
        """Forget what a tower made of pictures: its weights are about to change."""
        self._cache.clear()
        self._cache_bytes = 0

    def __call__(self, prompts: Sequence[Prompt]) -> list[Features]:
        """The features of every prompt, prompts in order; all of them have pictures."""
        frozen = vision_is_frozen(self.model)
        if not frozen:
            self.clear()
        wanted = {picture_key(prompt): prompt for prompt in prompts}
        known = {key: self._cache[key] for key in wanted if key in self._cache}
        with torch.no_grad() if frozen else nullcontext():
            known |= self._encode([(key, prompt) for key, prompt in wanted.items() if key not in known])
        if frozen:
            self._remember(known)
        return [known[picture_key(prompt)] for prompt in prompts]

    def _encode(self, prompts: Sequence[tuple[Hashable, Prompt]]) -> dict[Hashable, Features]:
        shapes: dict[Hashable, list[tuple[Hashable, Prompt]]] = {}
        for key, prompt in prompts:
            shape = tuple((name, tuple(tensor.shape)) for name, tensor in sorted(prompt.vision.items()))
            shapes.setdefault(shape, []).append((key, prompt))
        features: dict[Hashable, Features] = {}
        for same in shapes.values():
            for start in range(0, len(same), self.batch_size):
                batch = same[start : start + self.batch_size]
                outputs = self._tower([prompt for _, prompt in batch])
                features |= {key: item for (key, _), item in zip(batch, outputs, strict=True)}
        return features

    def _tower(self, prompts: Sequence[Prompt]) -> list[Features]:
        base: Any = self.model.base_model
        device = next(base.parameters()).device
        tensors = {
            name: torch.cat([prompt.vision[name] for prompt in prompts]).to(device) for name in prompts[0].vision
        }
        inputs = accepted(base.get_image_features, tensors)
        if unknown := tensors.keys() - inputs.keys():
            raise ModelError(
                f"{type(self.model).__name__} takes no {', '.join(sorted(unknown))} for pictures, but its processor returned them: "
                "processor and model do not belong together."
            )
        output = base.get_image_features(**inputs, return_dict=True)
        self.counts["vision_encodes"] += sum(len(prompt.pictures) for prompt in prompts)
        return split_features(output, len(prompts))

    def _remember(self, features: dict[Hashable, Features]) -> None:
        for key, item in features.items():
            if key not in self._cache:
                self._cache[key] = item
                self._cache_bytes += item.num_bytes
        while self._cache_bytes > self.max_cache_bytes:
            _, oldest = self._cache.popitem(last=False)
            self._cache_bytes -= oldest.num_bytes

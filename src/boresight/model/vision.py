"""Images through the vision tower, once each."""

from __future__ import annotations

import copy
from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from boresight.errors import ModelError
from boresight.families import Family, family_of
from boresight.modules import matching_arguments, text_parameters
from boresight.own_forward import on_model
from boresight.types import HasImages, ImageSet

Parts = Float[Tensor, "... H"] | tuple[Float[Tensor, "... H"], ...]
"""Features of several images, in the family's form: one tensor [tiles, tokens, H], or one [tokens, H] per image."""


@dataclass(frozen=True, slots=True)
class Features:
    """The output of vision tower and projector for all images of one prompt, or for one image."""

    pooled: Parts
    deepstack: tuple[Parts, ...] = ()
    """Qwen3-VL: the features that each of the first layers adds at the placeholders, one entry per layer."""

    @property
    def num_bytes(self) -> int:
        levels = (self.pooled, *self.deepstack)
        return sum(part.nbytes for level in levels for part in ((level,) if isinstance(level, Tensor) else level))


@dataclass(frozen=True, slots=True)
class WholeFeatures:
    """The vision tower's output for all images of one prompt, in whatever form the model's forward reads it. It cannot be joined."""

    output: Any

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in _tensors(self.output))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _joined(parts: Sequence[Parts]) -> Parts:
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)  # pyright: ignore[reportArgumentType]
    return tuple(tensor for part in parts for tensor in part)


def _together(features: Sequence[Features]) -> Features:
    """Join the features of several images into those of one prompt."""
    if len(features) == 1:
        return features[0]
    levels = zip(*(item.deepstack for item in features), strict=True)
    return Features(_joined([item.pooled for item in features]), tuple(map(_joined, levels)))


def _split(whole: Any, parts: int) -> list[Parts]:
    if isinstance(whole, Tensor):
        return list(whole.chunk(parts))
    share = len(whole) // parts
    return [tuple(whole[part * share : (part + 1) * share]) for part in range(parts)]


def join_features(features: Sequence[Features | WholeFeatures]) -> Any:
    """Join several prompts' features into the vision tower's output for all of them (transformers' `mm_encoder_outputs["image"]`).

    Raises:
        ModelError: whole outputs of several prompts, or of a prompt and an environment's turn.
    """
    if isinstance(features[0], WholeFeatures):
        if len(features) > 1:
            raise ModelError(
                "This model's image features cannot be joined, so completions of a prompt with images cannot contain further images: use "
                "tools that return text, or another model."
            )
        # A model may write into what it reads.
        return copy.copy(features[0].output)
    features = cast("Sequence[Features]", features)
    output: Any = BaseModelOutputWithPooling()
    output.pooler_output = _joined([item.pooled for item in features])
    output.deepstack_features = [_joined(level) for level in zip(*(item.deepstack for item in features), strict=True)]
    return output


def split_features(output: Any, parts: int) -> list[Features]:
    """Split the vision tower's output for `parts` prompts. They have one image each of any size, or images of equal shapes."""
    pooled: Any = output.pooler_output
    levels = list(getattr(output, "deepstack_features", None) or ())
    if isinstance(pooled, Tensor) or len(pooled) != parts:
        split = [_split(level, parts) for level in (pooled, *levels)]
    else:
        tokens = [len(image) for image in pooled]
        split = [
            list(level.split(tokens)) if isinstance(level, Tensor) else [(image,) for image in level]
            for level in (pooled, *levels)
        ]
    return [Features(own, tuple(rest)) for own, *rest in zip(*split, strict=True)]


def image_key(prompt: HasImages) -> Hashable:
    """Sets of images with equal keys have equal features. Token ids are no key: different images of the same size have equal ids."""
    return tuple(image.digest for image in prompt.images)


def lies_in_patches(prompt: HasImages, family: Family) -> bool:
    """Whether the processor processed each image by itself and concatenated the patches of all images. `Family.image_grids` gives each
    image's number of patches."""
    patches, grids = prompt.vision.get("pixel_values"), prompt.vision.get(family.image_grids)
    return (
        patches is not None
        and grids is not None
        and len(prompt.vision) == 2
        and patches.ndim == 2
        and len(grids) == len(prompt.images)
        and int(grids.prod(-1).sum()) == len(patches)
    )


def single_images(prompt: HasImages, family: Family) -> list[HasImages]:
    """One set per image if the images can be separated; otherwise the set unchanged."""
    if not lies_in_patches(prompt, family):
        return [prompt]
    grids = prompt.vision[family.image_grids]
    patches = prompt.vision["pixel_values"].split(grids.prod(-1).tolist())
    return [
        ImageSet((image,), {"pixel_values": own, family.image_grids: grids[place : place + 1]})
        for place, (image, own) in enumerate(zip(prompt.images, patches, strict=True))
    ]


def _shape(prompt: HasImages, family: Family) -> Hashable:
    """The shape by which prompts are batched through the vision tower. Single images in patches may have any size."""
    if len(prompt.images) == 1 and lies_in_patches(prompt, family):
        return "patches"
    return tuple((name, tuple(tensor.shape)) for name, tensor in sorted(prompt.vision.items()))


def vision_is_frozen(model: PreTrainedModel) -> bool:
    """Whether vision tower and projector are frozen."""
    text = text_parameters(model)
    return not any(parameter.requires_grad for parameter in model.parameters() if parameter not in text)


class VisionEncoder:
    """Encodes the images of prompts and of environments' turns. Each distinct image is encoded once per call, or once overall if vision
    tower and projector are frozen.

    If a processor's tensors cannot be separated by image (`lies_in_patches`), the same holds for each distinct set of images. Single
    images in patches are batched whatever their sizes, all others only with equal shapes, so nothing is padded.

    Args:
        model: the model with its head.
        max_cache_gib: most memory for cached features of a frozen vision tower. The oldest are evicted first.
        batch_size: how many prompts go through the vision tower together.
        counts: its entry `vision_encodes` counts the images that went through the vision tower.

    Attributes:
        joins: whether prompts go through the vision tower together, and their features can be joined. False where the tower's output has
            another form than `Features`, or depends on its neighbours: each prompt's images then run alone (`WholeFeatures`).
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
        self.family = family_of(model.config.model_type)
        self.max_cache_bytes = int(max_cache_gib * 2**30)
        self.batch_size = batch_size
        self.joins = True
        self.counts = Counter[str]() if counts is None else counts
        self._cache: OrderedDict[Hashable, Features | WholeFeatures] = OrderedDict()
        self._cache_bytes = 0

    def clear(self) -> None:
        """Drop all cached features, because the weights that computed them change."""
        self._cache.clear()
        self._cache_bytes = 0

    def __call__(self, prompts: Sequence[HasImages]) -> list[Features | WholeFeatures]:
        """The features of every set of images, in order. None may be empty."""
        frozen = vision_is_frozen(self.model)
        if not frozen:
            self.clear()
        images = [single_images(prompt, self.family) if self.joins else [prompt] for prompt in prompts]
        wanted = {image_key(single): single for singles in images for single in singles}
        known = {key: self._cache[key] for key in wanted if key in self._cache}
        with torch.no_grad() if frozen else nullcontext():
            known |= self._encode([(key, prompt) for key, prompt in wanted.items() if key not in known])
        if frozen:
            self._remember(known)
        found = [[known[image_key(single)] for single in singles] for singles in images]
        return [_together(cast("list[Features]", parts)) if self.joins else parts[0] for parts in found]

    def outputs(self, prompts: Sequence[Sequence[HasImages]]) -> list[Any]:
        """The output for each prompt, from its sets of images, in the form of `join_features`. All are encoded together."""
        features = iter(self([each for sets in prompts for each in sets]))
        return [join_features([next(features) for _ in sets]) for sets in prompts]

    def _encode(self, prompts: Sequence[tuple[Hashable, HasImages]]) -> dict[Hashable, Features | WholeFeatures]:
        if not self.joins:
            return {key: WholeFeatures(self._output([prompt])) for key, prompt in prompts}
        shapes: dict[Hashable, list[tuple[Hashable, HasImages]]] = {}
        for key, prompt in prompts:
            shapes.setdefault(_shape(prompt, self.family), []).append((key, prompt))
        features: dict[Hashable, Features | WholeFeatures] = {}
        for same in shapes.values():
            for start in range(0, len(same), self.batch_size):
                batch = same[start : start + self.batch_size]
                outputs = split_features(self._output([prompt for _, prompt in batch]), len(batch))
                features |= {key: item for (key, _), item in zip(batch, outputs, strict=True)}
        return features

    def _output(self, prompts: Sequence[HasImages]) -> Any:
        """The vision tower's output for these prompts together."""
        base: Any = self.model.base_model
        joined = {name: torch.cat([prompt.vision[name] for prompt in prompts]) for name in prompts[0].vision}
        inputs = matching_arguments(base.get_image_features, on_model(self.model, joined))
        if self.joins and (unknown := joined.keys() - inputs.keys()):
            raise ModelError(
                f"{type(self.model).__name__} takes no {', '.join(sorted(unknown))} for images, but the processor returned them: "
                "processor and model do not match."
            )
        self.counts["vision_encodes"] += sum(len(prompt.images) for prompt in prompts)
        return base.get_image_features(**inputs, return_dict=True)

    def _remember(self, features: Mapping[Hashable, Features | WholeFeatures]) -> None:
        for key, item in features.items():
            if key not in self._cache:
                self._cache[key] = item
                self._cache_bytes += item.num_bytes
        while self._cache_bytes > self.max_cache_bytes:
            _, oldest = self._cache.popitem(last=False)
            self._cache_bytes -= oldest.num_bytes

"""A text and its images through the processor, once, and where each token stands in the text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from torch import Tensor

from boresight.data.images import decode
from boresight.data.outputs import separated
from boresight.data.sizes import expanded_tokens, image_token_counts, refusal, unplaced
from boresight.data.spans import Span, unexpanded_offsets
from boresight.data.texts import Texts
from boresight.errors import DataError, ModelError
from boresight.types import ModelFacts, Row


@dataclass(frozen=True, slots=True)
class Processed:
    """The processor's output for one text and its images."""

    ids: list[int]
    token_types: list[int]
    token_inputs: Mapping[str, Tensor]
    """[P, …] by name, see `Prompt.token_inputs`."""
    vision: Mapping[str, Tensor]
    offsets: list[Span] | None
    """Each token's span in the text before expansion; None if the processor does not return it."""


@dataclass(frozen=True, slots=True)
class Processing:
    """Runs a processor.

    Args:
        processor: or a bare tokenizer for text alone.
        texts: its chat template and tokenizer.
        facts: the model's ids, and what is special about its family.
        by_size: whether images are left undecoded where the processor counts their tokens from their sizes.
    """

    processor: Any
    texts: Texts
    facts: ModelFacts
    by_size: bool = False

    def __call__(self, text: str, row: Row, *, special: bool | None = None) -> Processed:
        """Run the processor on this text and the row's images.

        Args:
            special: whether to add special tokens; None: unless the text begins with them.
        """
        where = f"row {row.index}"
        if special is None:  # the text follows no other
            self._check_number(row)
        special = self.adds_special(text, row) if special is None else special
        if self.texts.is_bare:
            if row.images:
                raise ModelError(f"{where} has images, but only a tokenizer was given. Pass the model's processor.")
            ids, offsets = self.tokens(text, special=special)
            return Processed(ids, [0] * len(ids), {}, {}, offsets)
        if self.by_size and (counts := image_token_counts(self.processor, row)) is not None:
            margin, image_id = self.facts.family.uncounted_image_tokens, self.texts.image_token_id
            tokens = zip(*self.tokens(text, special=special), strict=True)
            ids, types, offsets = expanded_tokens(tokens, image_id, [count + margin for count in counts])
            return Processed(ids, types, {}, {}, offsets)
        images = [decode(image, where=f"{where}, image {place}") for place, image in enumerate(row.images)]
        try:
            outputs = self._outputs(text, images, special=special)
        except Exception as error:  # of any kind: a StopIteration that escaped would end the loader without an error
            marked = self.facts.family.places_image or (self.texts.image_token or "") in text
            if images and not marked:
                raise unplaced(row) from error
            raise refusal(error, row) from error
        ids = list(outputs["input_ids"][0])
        token_inputs, vision = separated(outputs, len(ids))
        types = next((token_inputs[name] for name in self.facts.family.token_types if name in token_inputs), None)
        token_inputs.pop("mm_token_type_ids", None)  # the types of tokens have a field of their own
        token_types = [int(id == self.facts.image_token_id) for id in ids] if types is None else types.tolist()
        if images and self.facts.modality_ids and set(ids).isdisjoint(self.facts.modality_ids):
            raise unplaced(row)
        return Processed(
            ids=ids,
            token_types=token_types,
            token_inputs=token_inputs,
            vision=vision,
            offsets=_original_offsets(outputs, has_images=bool(images)),
        )

    def _check_number(self, row: Row) -> None:
        """Raise if a row has not the one image whose tokens the processor puts before its text."""
        if self.facts.family.places_image and len(row.images) != 1 and not self.texts.is_bare:
            raise DataError(
                f"row {row.index}: the processor refuses it: {type(self.processor).__name__} puts the tokens of one image before every "
                f"text, and the row has {len(row.images)} images. Drop the row."
            )

    def _outputs(self, text: str, images: Sequence[Any], *, special: bool) -> Mapping[str, Any]:
        """The processor's outputs for a text and its images. Images are nested: those of one text; some families tile a flat list
        differently. GOT-OCR takes no nested ones."""
        options: dict[str, Any] = {
            "text": [text],
            "text_kwargs": {
                "add_special_tokens": special,
                "return_tensors": None,  # several processors cannot return replacement offsets as tensors
                "return_offsets_mapping": True,
            },
            "images_kwargs": {"return_tensors": "pt"},
            "return_mm_token_type_ids": True,
            "return_text_replacement_offsets": True,
        }
        try:
            return self.processor(images=[images] if images else None, **options)
        except ValueError as error:
            if not images or "nested" not in str(error).lower():
                raise
            return self.processor(images=list(images), **options)

    def prefix_offsets(
        self, text: str, spans: Sequence[Span] | None, processed: Processed, row: Row, *, special: bool | None = None
    ) -> list[Span]:
        """Offsets for processors that do not return replacement offsets. The processor runs on prefixes, so offsets are
        exact only at span boundaries."""
        bounds = sorted({0, len(text), *(bound for span in spans or () for bound in span)})
        offsets: list[Span] = []
        for start, end in pairwise(bounds):
            shown = (
                len(row.images) if self.facts.family.places_image else text[:end].count(self.texts.image_token or "")
            )
            images = row.images[:shown] if row.images else ()
            ids = self(text[:end], replace(row, images=images), special=special).ids
            if ids != processed.ids[: len(ids)]:
                raise DataError(
                    f"row {row.index}: a token runs across the end of a turn at {text[end - 20 : end]!r}, so the "
                    "turn cannot be separated from the rest. Split the row into prompt and completion."
                )
            offsets += [(start, end)] * (len(ids) - len(offsets))
        return offsets

    def placed(self, text: str, offsets: Sequence[Span], processed: Processed, row: Row) -> list[bool]:
        """True for tokens that only the processor may place: marker tokens, and all tokens that a placeholder expands to,
        tile labels included."""
        image = self.texts.image_token
        spans = [match.span() for match in re.finditer(re.escape(image), text)] if image and row.images else []
        inside = (any(start <= left and right <= end for start, end in spans) for left, right in offsets)
        tokens = zip(processed.ids, processed.token_types, inside, strict=True)
        return [id in self.facts.modality_ids or kind != 0 or expanded for id, kind, expanded in tokens]

    def tokens(self, text: str, *, special: bool) -> tuple[list[int], list[Span]]:
        """Ids and offsets of a text, images left unexpanded."""
        encoded = self.texts.tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
        return encoded["input_ids"], encoded["offset_mapping"]

    def adds_special(self, text: str, row: Row) -> bool:
        """Whether special tokens are added to a text: unless it begins with the first of them."""
        if self.texts.is_bare and not isinstance(row.prompt or row.completions[0], str):
            return False  # a tokenizer's template writes all special tokens; a processor's may leave out the first
        first = self.texts.tokenizer.bos_token
        return first is None or not text.startswith(first)


def _original_offsets(outputs: Mapping[str, Any], *, has_images: bool) -> list[Span] | None:
    offsets = [(int(start), int(end)) for start, end in outputs["offset_mapping"][0]]
    if not has_images:
        return offsets
    if "text_replacement_offsets" not in outputs:
        return None
    replaced = [(tuple(item["span"]), tuple(item["new_span"])) for item in outputs["text_replacement_offsets"][0]]
    return unexpanded_offsets(offsets, replaced)

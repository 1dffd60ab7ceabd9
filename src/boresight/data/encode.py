"""`Row` → `Prompt` and `Group`: the processor runs once, on one prompt and its images."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from boresight.data.budget import set_pixel_budget
from boresight.data.processing import Processing
from boresight.data.rewritten import branched_group
from boresight.data.schema import part_images
from boresight.data.sizes import counts_by_size, image_token_counts
from boresight.data.spans import RewrittenError, Span, counted_tokens, without
from boresight.data.texts import Texts, is_text, joined
from boresight.errors import DataError, ModelError
from boresight.types import Completion, Conversation, Group, Ids, ModelFacts, Observation, Prompt, Row


class Encoder:
    """Runs the processor: rows in, token ids and image tensors out.

    Conversations go through the processor's chat template; strings are used as they are (see `Texts`). Special tokens
    are added unless the text already begins with the first of them, exactly as
    `processor.apply_chat_template(tokenize=True)` does.

    Args:
        processor: a processor with a tokenizer, or a bare tokenizer for text alone.
        facts: the model's ids, and what is special about its family.
        min_pixels: fewest pixels of an image, see `set_pixel_budget`.
        max_pixels: most pixels of an image.
        max_prompt_length: longest prompt in tokens, images expanded. None means no limit. A longer prompt is an error,
            because truncation would separate a question from its image.
        chat_template_kwargs: further variables for the chat template (TRL's option of this name). A row's column of
            this name takes precedence.
        tools: descriptions of the tools in every prompt, by the row's column `environment`; None: those of all others.
    """

    def __init__(
        self,
        processor: Any,
        *,
        facts: ModelFacts,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        max_prompt_length: int | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        tools: Mapping[str | None, Sequence[Mapping[str, Any]]] | None = None,
    ) -> None:
        self.processor = processor
        self.texts = Texts(processor, facts, chat_template_kwargs, tools)
        self.tokenizer = self.texts.tokenizer
        self.facts = facts
        self.max_prompt_length = max_prompt_length
        self._processing = Processing(processor, self.texts, facts)
        set_pixel_budget(processor, min_pixels=min_pixels, max_pixels=max_pixels)

    def prompt(self, row: Row) -> Prompt:
        """The prompt to be completed (GRPO), with the generation prompt.

        Raises:
            DataError: the row has no prompt, its prompt is longer than `max_prompt_length`, or template or processor
                reject it.
        """
        if _only_messages(row):
            kind = "text" if is_text(row) else "messages"
            raise DataError(f"row {row.index}: a prompt column is needed, and the row only has {kind}.")
        text = self.texts.prompt(row)
        processed = self._processing(text, row)
        length = len(processed.ids)
        if self.max_prompt_length is not None and length > self.max_prompt_length:
            seen = sum(kind != 0 for kind in processed.token_types)
            raise DataError(
                f"row {row.index}: the prompt has {length} tokens ({seen} of them for {len(row.images)} "
                f"image(s)), but max_prompt_length is {self.max_prompt_length}. Raise it, set it to None, lower "
                "max_pixels, or drop the row."
            )
        return Prompt(
            row=row,
            ids=_ids(processed.ids),
            token_types=_ids(processed.token_types),
            vision=processed.vision,
            unexpanded_ids=_ids(self._processing.tokens(text, special=self._processing.adds_special(text, row))[0]),
            token_inputs=processed.token_inputs,
        )

    def with_observation(self, prompt: Prompt, observation: Observation) -> Prompt:
        """The prompt of a conversation with an environment's texts and images at the end of its last message.

        Raises:
            DataError: the row's prompt is a string.
        """
        row = prompt.row
        if isinstance(row.prompt, str):
            raise DataError(
                f"row {row.index}: environments need prompts that are conversations, and this one is a string."
            )
        last = row.prompt[-1]
        parts = [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in observation]
        images = [part for part in observation if not isinstance(part, str)]
        messages = (*row.prompt[:-1], {**last, "content": [*last["content"], *parts]})
        changed = self.prompt(replace(row, prompt=messages, images=(*row.images, *images)))
        return replace(changed, observation=observation)

    def demonstration(
        self,
        row: Row,
        *,
        assistant_only: bool = False,
        completion_only: bool | None = None,
        max_length: int | None = None,
    ) -> Group:
        """The row as a group of one completion, to be imitated (SFT).

        The same tokens count as in TRL: the completion of a row with prompt and completion (unless `completion_only` is
        False), the whole text of a row of messages, and with `assistant_only` only the assistant's turns of either.
        Two differences: tokens that only the processor may place never count, and neither does text that a template
        writes after the end token of a turn. And where the template rewrites earlier turns of the assistant's, `assistant_only` gives a
        group of several completions (`data.rewritten`).

        Args:
            row: the row.
            assistant_only: count only the assistant's turns. They are found from rendered prefixes, so any chat template
                works.
            completion_only: None means True if the row has a prompt.
            max_length: longest sequence in tokens. Text is cut from the completion's end; images are never cut.

        Raises:
            DataError: nothing would count, or `max_length` would cut an image.
        """
        where = f"row {row.index}"
        if len(row.completions) != 1:
            raise DataError(
                f"{where}: a demonstration is messages, or prompt and completion; the row has "
                f"{len(row.completions)} completions."
            )
        completion = row.completions[0]
        is_string = isinstance(completion, str)
        if completion_only and _only_messages(row):
            kind, instead = ("text", "Drop it") if is_string else ("messages", "Set assistant_only_loss=True instead")
            raise DataError(
                f"{where}: completion_only_loss=True needs prompt and completion columns, and the row has {kind}. {instead}."
            )
        if assistant_only and is_string:
            raise DataError(f"{where}: assistant_only_loss=True needs conversations, and the row has plain strings.")
        counts_prompt = completion_only is False or _only_messages(row)
        if counts_prompt or assistant_only or (not is_string and part_images(completion)):
            group = self._told(row, assistant_only=assistant_only, counts_prompt=counts_prompt)
        else:
            group = self._answered(row, assistant_only=False)
        return self._shortened(group, max_length)

    def preference(self, row: Row, *, max_length: int | None = None) -> Group:
        """Chosen and rejected as a group of two (DPO, MPO); only the assistant's turns count.

        Raises:
            DataError: the row has no pair, or `max_length` leaves no token of a completion.
        """
        if len(row.completions) != 2:
            raise DataError(
                f"row {row.index}: a preference needs the columns chosen and rejected, and the row has neither."
            )
        return self._shortened(self._answered(row, assistant_only=True), max_length)

    def continuation(self, text: str, row: Row) -> tuple[Ids, Ids, Ids, Mapping[str, Tensor], Mapping[str, Tensor]]:
        """The tokens of a rendered text that follows other tokens, and of the row's images in it: no special tokens are added.

        Returns:
            [C] ids with images expanded, [U] without, and [C] types of tokens, then token inputs and image tensors as in `Prompt`.
        """
        processed = self._processing(text, row, special=False)
        unexpanded = self._processing.tokens(text, special=False)[0]
        return (
            _ids(processed.ids),
            _ids(unexpanded),
            _ids(processed.token_types),
            processed.token_inputs,
            processed.vision,
        )

    def count_tokens(self, row: Row) -> int:
        """The number of tokens of the row's prompt and completions, images expanded. Image tokens are counted from image
        sizes alone if the processor supports it.

        This is for planning and for checks before training: no image is decoded if sizes suffice. Some processors leave
        out a few tokens of an image (`Family.uncounted_image_tokens`), or count tiles that they do not cut
        (LLaVA-OneVision, when a prompt has several images).
        """
        if _only_messages(row):
            texts = [self.texts.conversation(row)]
        else:
            texts = [self.texts.prompt(row), *self.texts.completions(row)]
        special = self._processing.adds_special(texts[0], row)
        count = sum(
            len(self._processing.tokens(text, special=special and place == 0)[0]) for place, text in enumerate(texts)
        )
        if not row.images:
            return count
        expanded = image_token_counts(self.processor, row)
        if expanded is not None:
            return count + sum(expanded) - len(expanded)
        return (
            count
            + len(self._processing(texts[0], row).ids)
            - len(self._processing.tokens(texts[0], special=special)[0])
        )

    def sized(self) -> Encoder:
        """This encoder, but without images: their tokens are counted from their sizes where the processor can do so.

        What it returns has no image tensors, and no fewer tokens than there will be, so a limit that its sequences meet is met. It refuses
        what the processor refuses for its size, such as an extreme aspect ratio.
        """
        other = copy.copy(self)
        other._processing = replace(self._processing, by_size=True)
        return other

    def without_tools(self) -> Encoder:
        """This encoder, but without descriptions of tools in its prompts."""
        other = copy.copy(self)
        other.texts = copy.copy(self.texts)
        other.texts.tools = {}
        return other

    @property
    def counts_by_size(self) -> bool:
        """Whether `sized` needs no pixels."""
        return self.texts.is_bare or counts_by_size(self.processor)

    def model_sizes(self, prompt: Prompt) -> list[tuple[int, int]]:
        """(Width, height) in pixels of a prompt's images as the processor resized them for the model.

        Raises:
            ModelError: the processor cuts images into tiles, so an image has no single size.
        """
        grids = prompt.vision.get(self.facts.family.image_grids)
        if grids is not None:
            patch = self.processor.image_processor.patch_size
            return [(int(width) * patch, int(height) * patch) for _, height, width in grids]
        pixels = prompt.vision.get("pixel_values")
        if not prompt.images:
            return []
        if pixels is None or pixels.ndim != 4 or len(pixels) != len(prompt.images):
            raise ModelError(
                f"{type(self.processor).__name__} cuts images into tiles, so they have no single size in the model: use "
                "image_sizes instead of model_image_sizes."
            )
        return [(pixels.shape[3], pixels.shape[2])] * len(prompt.images)

    def fits(self, row: Row, max_length: int) -> bool:
        """Whether the row's prompt with its longest completion has at most `max_length` tokens. Images are processed only if their
        sizes do not decide it."""
        # All completions together are longer than the longest.
        uncounted = self.facts.family.uncounted_image_tokens * len(row.images)
        if self.count_tokens(row) + uncounted <= max_length:
            return True
        group = self._answered(row, assistant_only=True)
        return len(group.prompt.ids) + max(len(completion.ids) for completion in group.completions) <= max_length

    def _answered(self, row: Row, *, assistant_only: bool) -> Group:
        """The prompt, and every completion tokenised on its own, as if the policy had produced it."""
        prompt, texts = self.prompt(row), self.texts.completions(row)
        pairs = zip(row.completions, texts, strict=True)
        return Group(prompt, tuple(self._completion(row, *pair, assistant_only=assistant_only) for pair in pairs))

    def _completion(self, row: Row, completion: str | Conversation, text: str, *, assistant_only: bool) -> Completion:
        ids, offsets = self._processing.tokens(text, special=False)
        spans: list[Span] = [(0, len(text))]
        if assistant_only and not isinstance(completion, str) and len(completion) > 1:
            before = len(self.texts.prompt(row))
            produced = self.texts.produced(row, joined(row.prompt, completion), len(row.prompt))
            spans = [(start - before, end - before) for start, end in produced]
        elif not isinstance(completion, str) and (holes := self._left_out(row, completion, len(row.prompt))):
            before = len(self.texts.prompt(row))
            spans = without(spans, [(start - before, end - before) for start, end in holes])
        counted = counted_tokens(ids, offsets, spans, self.facts.stop_ids)
        length = max((place + 1 for place, counts in enumerate(counted) if counts), default=0)
        ids, counted = ids[:length], counted[:length]
        if (
            not ids or ids[-1] not in self.facts.stop_ids
        ):  # the template adds no end token, and the policy must learn one
            ids, counted = [*ids, self.texts.end_id], [*counted, True]
        return Completion(ids=_ids(ids), mask=torch.tensor(counted), text=self._decoded(ids))

    def _told(self, row: Row, *, assistant_only: bool, counts_prompt: bool) -> Group:
        """Prompt and completion as one text; or, where the template rewrites earlier turns of the assistant's, as branches of it."""
        try:
            return self._whole(row, assistant_only=assistant_only, counts_prompt=counts_prompt)
        except RewrittenError:
            if not assistant_only:
                raise
        start = 0 if counts_prompt else len(row.prompt)
        branches = self.texts.branches(row, joined(row.prompt, row.completions[0]), start)
        return branched_group(branches, row, self._processing)

    def _whole(self, row: Row, *, assistant_only: bool, counts_prompt: bool) -> Group:
        """Prompt and completion as one text; the group's prompt is everything before the first token that counts."""
        text, spans = self._whole_text(row, assistant_only=assistant_only, counts_prompt=counts_prompt)
        processed = self._processing(text, row)
        offsets = (
            processed.offsets
            if processed.offsets is not None
            else self._processing.prefix_offsets(text, spans, processed, row)
        )
        counted = counted_tokens(processed.ids, offsets, spans, self.facts.stop_ids)
        placed = self._processing.placed(text, offsets, processed, row)
        mask = torch.tensor([counts and not theirs for counts, theirs in zip(counted, placed, strict=True)])
        mask[0] = False  # nothing predicts the first token
        if not mask.any():
            why = "it has no assistant's turn" if spans == [] else "nothing but images is left"
            raise DataError(
                f"row {row.index}: no token would count in the loss: {why}. Add an assistant's message, or drop the "
                "row."
            )
        split = int(mask.int().argmax())
        ids, token_types = _ids(processed.ids), _ids(processed.token_types)
        before = self._processing.tokens(text[: offsets[split][0]], special=self._processing.adds_special(text, row))[0]
        prompt = Prompt(
            row=row,
            ids=ids[:split],
            token_types=token_types[:split],
            vision=processed.vision,
            unexpanded_ids=_ids(before),
            token_inputs={name: values[:split] for name, values in processed.token_inputs.items()},
        )
        completion = Completion(
            ids=ids[split:],
            mask=mask[split:],
            text=self._decoded(ids[mask]),
            token_types=token_types[split:],
            token_inputs={name: values[split:] for name, values in processed.token_inputs.items()},
        )
        return Group(prompt, (completion,))

    def _whole_text(self, row: Row, *, assistant_only: bool, counts_prompt: bool) -> tuple[str, list[Span] | None]:
        """The text, and the spans of it that count (None: all)."""
        completion = row.completions[0]
        if isinstance(completion, str):
            return self.texts.conversation(row), None
        text = self.texts.conversation(row)
        if assistant_only:
            messages = joined(row.prompt, completion)
            return text, self.texts.produced(row, messages, 0 if counts_prompt else len(row.prompt))
        spans = None if counts_prompt else [(len(text) - len(self.texts.completions(row)[0]), len(text))]
        holes = self._left_out(row, completion, 0 if counts_prompt else len(row.prompt))
        return text, without(spans or [(0, len(text))], holes) if holes else spans

    def _left_out(self, row: Row, completion: Conversation, start: int) -> list[Span]:
        """The spans of the turns from message `start` on whose weight is 0."""
        messages = joined(row.prompt, completion)
        if all(message.get("weight", 1) for message in messages[start:]):
            return []
        return self.texts.produced(row, messages, start, weights=(0,))

    def _shortened(self, group: Group, max_length: int | None) -> Group:
        """The group with completions truncated so that prompt and completion fit `max_length`; `Completion.truncated` marks
        them."""
        if max_length is None:
            return group
        room = max(max_length - len(group.prompt.ids), 0)
        fitting = [
            completion if len(completion.ids) <= room else self._cut(completion, room, group.prompt, max_length)
            for completion in group.completions
        ]
        return replace(group, completions=tuple(fitting))

    def _cut(self, completion: Completion, length: int, prompt: Prompt, max_length: int) -> Completion:
        kept, types = completion.mask[:length], completion.token_types
        if not kept.any() or (types is not None and types[length:].any()):
            why = "an image would be cut" if kept.any() else "nothing that counts would be left"
            raise DataError(
                f"row {prompt.row.index}: {len(prompt.ids)} + {len(completion.ids)} tokens are more than max_length "
                f"({max_length}), and {why}. Raise max_length, set it to None, lower max_pixels, or drop the row."
            )
        return replace(
            completion,
            ids=completion.ids[:length],
            mask=kept,
            token_types=None if types is None else types[:length],
            token_inputs={name: values[:length] for name, values in completion.token_inputs.items()},
            text=self._decoded(completion.ids[:length][kept]),
            truncated=True,
        )

    def _decoded(self, ids: Sequence[int] | Tensor) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)


def _only_messages(row: Row) -> bool:
    """Whether the row is one conversation with no prompt set apart."""
    return not row.prompt and len(row.completions) == 1 and (is_text(row) or not isinstance(row.completions[0], str))


def _ids(values: Sequence[int]) -> Ids:
    return torch.tensor(values, dtype=torch.long)

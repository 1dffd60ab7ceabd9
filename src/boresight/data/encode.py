"""`Row` → `Prompt` and `Group`: the processor runs once, on one prompt and its pictures."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor

from boresight.data.budget import set_pixel_budget
from boresight.data.images import decode
from boresight.data.schema import part_pictures
from boresight.data.spans import Span, counted_tokens, produced_spans, unexpanded_offsets
from boresight.errors import DataError, ModelError, PictureError
from boresight.types import Completion, Conversation, Group, Message, ModelFacts, Prompt, Row

_TEXT_OUTPUTS = (
    "input_ids",
    "attention_mask",
    "mm_token_type_ids",
    "token_type_ids",
    "offset_mapping",
    "text_replacement_offsets",
)


@dataclass(frozen=True, slots=True)
class _Processed:
    """What the processor made of one text and its pictures."""

    ids: list[int]
    token_types: list[int]
    vision: Mapping[str, Tensor]
    offsets: list[Span] | None
    """Where each token stands in the text before expansion; None when the processor does not say."""


class Encoder:
    """Runs the processor: rows in, token ids and picture tensors out.

    Conversations go through the processor's chat template, which is never edited; special tokens are added unless the template wrote
    the first itself, exactly as `processor.apply_chat_template(tokenize=True)` does. In a string prompt every picture needs the
    family's placeholder (`placeholder`); where it has none, they are put in front of the text.

    Args:
        processor: a processor with a tokenizer, or a bare tokenizer for text alone.
        facts: the model's ids.
        min_pixels: fewest pixels of a picture, see `set_pixel_budget`.
        max_pixels: most pixels of a picture.
        max_prompt_length: longest prompt in tokens, pictures expanded. None is no limit. A longer one is an error: cutting would
            part a question from its picture.
        chat_template_kwargs: further variables for the chat template (TRL's option of this name; a row's column of this name
            goes on top).
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
    ) -> None:
        self.processor = processor
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.facts = facts
        self.max_prompt_length = max_prompt_length
        self.chat_template_kwargs = dict(chat_template_kwargs or {})
        self.counts: Counter[str] = Counter()
        """What was done to rows: `shortened_completions`. One worker's own; `Completion.truncated` marks each."""
        set_pixel_budget(processor, min_pixels=min_pixels, max_pixels=max_pixels)

    def prompt(self, row: Row) -> Prompt:
        """The prompt to be completed (GRPO), with the generation prompt.

        Raises:
            DataError: the row has no prompt, is longer than `max_prompt_length`, or does not suit the template or processor.
        """
        if not row.prompt:
            raise DataError(f"row {row.index}: this needs a prompt column, and the row only has messages.")
        text = self._prompt_text(row)
        processed = self._process(text, row)
        if self.max_prompt_length is not None and len(processed.ids) > self.max_prompt_length:
            raise DataError(
                f"row {row.index}: the prompt has {len(processed.ids)} tokens, {sum(map(bool, processed.token_types))} of them its "
                f"{len(row.pictures)} picture(s)'; max_prompt_length is {self.max_prompt_length}. Raise it, set it to None, lower max_pixels, "
                "or drop the row."
            )
        return Prompt(
            row=row,
            ids=torch.tensor(processed.ids),
            token_types=torch.tensor(processed.token_types),
            vision=processed.vision,
            unexpanded_ids=torch.tensor(self._tokens(text, special=self._adds_special(text, row))[0]),
        )

    def demonstration(
        self,
        row: Row,
        *,
        assistant_only: bool = False,
        completion_only: bool | None = None,
        max_length: int | None = None,
    ) -> Group:
        """The row as a group of one, to be imitated (SFT).

        What counts is TRL's: the completion of a row with prompt and completion (unless `completion_only` is False), the whole
        text of a row of messages, and of either only the assistant's turns with `assistant_only`. Different from TRL, ids
        that only the processor may place never count, nor does what a template writes after the end token of a turn.

        Args:
            row: the row.
            assistant_only: count the assistant's turns alone; from rendered prefixes, so any chat template serves.
            completion_only: None is True where there is a prompt.
            max_length: longest sequence in tokens. The completion's text is cut from its end, never a picture.

        Raises:
            DataError: nothing would count, or `max_length` would cut a picture.
        """
        if len(row.completions) != 1:
            raise DataError(
                f"row {row.index}: a demonstration has one completion (or messages), this row has {len(row.completions)}."
            )
        if completion_only and not row.prompt:
            raise DataError(
                f"row {row.index}: completion_only_loss=True needs prompt and completion columns, and the row has messages. Set "
                "assistant_only_loss=True instead."
            )
        counts_prompt = completion_only is False or not row.prompt
        completion = row.completions[0]
        if assistant_only and isinstance(completion, str):
            raise DataError(
                f"row {row.index}: assistant_only_loss=True needs conversations, and the row has plain strings."
            )
        if counts_prompt or assistant_only or (not isinstance(completion, str) and part_pictures(completion)):
            group = self._whole(row, assistant_only=assistant_only, counts_prompt=counts_prompt)
        else:
            group = self._answered(row, assistant_only=False)
        return self._shortened(group, max_length)

    def preference(self, row: Row, *, max_length: int | None = None) -> Group:
        """Chosen and rejected as a group of two (DPO, MPO); only what the assistant said counts.

        Raises:
            DataError: the row has no pair, or `max_length` leaves nothing of a completion.
        """
        if len(row.completions) != 2:
            raise DataError(f"row {row.index}: a preference needs chosen and rejected, and the row has neither.")
        return self._shortened(self._answered(row, assistant_only=True), max_length)

    def count_tokens(self, row: Row) -> int:
        """Tokens of the row's prompt and completions, from the pictures' sizes alone where the processor can tell.

        For planning, before anything is decoded: Gemma3 does not count the line breaks around a picture, nor LLaVA-OneVision
        that several pictures are not tiled.
        """
        if row.prompt:
            texts = [self._prompt_text(row), *self._completion_texts(row)]
        else:
            texts = [self._render(_joined(row.prompt, row.completions[0]), row)]
        text_tokens = sum(
            len(self._tokens(text, special=place == 0 and self._adds_special(text, row))[0])
            for place, text in enumerate(texts)
        )
        if not row.pictures:
            return text_tokens
        sizes = [[height, width] for width, height in (picture.size for picture in row.pictures)]
        if hasattr(self.processor, "_get_num_multimodal_tokens"):
            pictures = self.processor._get_num_multimodal_tokens(image_sizes=sizes)["num_image_tokens"]
            return text_tokens + sum(pictures) - len(sizes)
        expanded = self._process(texts[0], row)
        return (
            text_tokens + len(expanded.ids) - len(self._tokens(texts[0], special=self._adds_special(texts[0], row))[0])
        )

    @cached_property
    def placeholder(self) -> str:
        """What stands for one picture in a string prompt, the family's start and end marks included."""
        image = self._image_token
        if image is None or not self._has_template:
            return image or ""
        message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "x"}]}
        text = self.processor.apply_chat_template([message], tokenize=False)
        tokens = self.tokenizer.convert_ids_to_tokens(self._tokens(text, special=False)[0])
        start = tokens.index(image)
        end = start + 1
        while start > 0 and tokens[start - 1] in self._reserved:
            start -= 1
        while end < len(tokens) and tokens[end] in self._reserved:
            end += 1
        return "".join(tokens[start:end])

    # Groups

    def _answered(self, row: Row, *, assistant_only: bool) -> Group:
        """The prompt, and every completion tokenised on its own, as if the policy had produced it."""
        prompt = self.prompt(row)
        texts = self._completion_texts(row)
        return Group(
            prompt,
            tuple(
                self._completion(row, completion, text, assistant_only)
                for completion, text in zip(row.completions, texts, strict=True)
            ),
        )

    def _completion(self, row: Row, completion: str | Conversation, text: str, assistant_only: bool) -> Completion:
        ids, offsets = self._tokens(text, special=False)
        spans: list[Span] = [(0, len(text))]
        if assistant_only and not isinstance(completion, str) and len(completion) > 1:
            before = len(self._prompt_text(row))
            spans = [
                (start - before, end - before)
                for start, end in self._spans(row, _joined(row.prompt, completion), len(row.prompt))
            ]
        counted = counted_tokens(ids, offsets, spans, self.facts.stop_ids)
        length = max((place + 1 for place, counts in enumerate(counted) if counts), default=0)
        ids, counted = ids[:length], counted[:length]
        if not ids or ids[-1] not in self.facts.stop_ids:
            ids, counted = [*ids, self._end_id], [*counted, True]
        return Completion(
            ids=torch.tensor(ids), mask=torch.tensor(counted), text=self.tokenizer.decode(ids, skip_special_tokens=True)
        )

    def _whole(self, row: Row, *, assistant_only: bool, counts_prompt: bool) -> Group:
        """Prompt and completion as one text; the group's prompt is what stands before the first token that counts."""
        start = 0 if counts_prompt else len(row.prompt)
        if isinstance(row.completions[0], str):
            text, spans = self._prompt_text(row) + self._completion_texts(row)[0], None
        else:
            messages = _joined(row.prompt, row.completions[0])
            text = self._render(messages, row)
            if assistant_only:
                spans = self._spans(row, messages, start)
            else:
                spans = None if counts_prompt else [(len(self._prompt_text(row)), len(text))]
        processed = self._process(text, row)
        offsets = (
            processed.offsets if processed.offsets is not None else self._prefix_offsets(text, spans, processed, row)
        )
        counted = counted_tokens(processed.ids, offsets, spans, self.facts.stop_ids)
        placed = self._placed(text, offsets, processed, row)
        mask = torch.tensor([counts and not theirs for counts, theirs in zip(counted, placed, strict=True)])
        mask[0] = False  # nothing predicts the first token
        if not mask.any():
            why = "it has no assistant's turn" if spans == [] else "nothing but pictures is left"
            raise DataError(
                f"row {row.index}: no token would count in the loss: {why}. Add an assistant's message, or drop the row."
            )
        split = int(mask.int().argmax())
        ids, token_types = torch.tensor(processed.ids), torch.tensor(processed.token_types)
        before = text[: offsets[split][0]]
        prompt = Prompt(
            row=row,
            ids=ids[:split],
            token_types=token_types[:split],
            vision=processed.vision,
            unexpanded_ids=torch.tensor(
                self._tokens(before, special=self._adds_special(text, row))[0], dtype=torch.long
            ),
        )
        said = self.tokenizer.decode(ids[split:][mask[split:]], skip_special_tokens=True)
        completion = Completion(ids=ids[split:], mask=mask[split:], text=said, token_types=token_types[split:])
        return Group(prompt, (completion,))

    def _placed(self, text: str, offsets: Sequence[Span], processed: _Processed, row: Row) -> list[bool]:
        """True for what only the processor may place: marks, and all that a placeholder was expanded to, tile labels included."""
        marks = set(self.facts.modality_ids)
        spans = (
            [match.span() for match in re.finditer(re.escape(self._image_token or ""), text)] if row.pictures else []
        )
        inside = [any(start <= left and right <= end for start, end in spans) for left, right in offsets]
        return [
            id in marks or kind != 0 or expanded
            for id, kind, expanded in zip(processed.ids, processed.token_types, inside, strict=True)
        ]

    def _shortened(self, group: Group, max_length: int | None) -> Group:
        if max_length is None:
            return group
        row, room = group.prompt.row, max_length - len(group.prompt.ids)
        completions = []
        for completion in group.completions:
            if len(completion.ids) > room:
                kept = max(room, 0)
                types = completion.token_types[:kept] if completion.token_types is not None else None
                if completion.token_types is not None and completion.token_types[kept:].any():
                    raise DataError(_too_long(row, group, completion, max_length, "a picture would be cut"))
                if not completion.mask[:kept].any():
                    raise DataError(_too_long(row, group, completion, max_length, "nothing that counts would be left"))
                completion = replace(
                    completion,
                    ids=completion.ids[:kept],
                    mask=completion.mask[:kept],
                    token_types=types,
                    truncated=True,
                    text=self.tokenizer.decode(completion.ids[:kept][completion.mask[:kept]], skip_special_tokens=True),
                )
                self.counts["shortened_completions"] += 1
            completions.append(completion)
        return replace(group, completions=tuple(completions))

    # Texts

    def _prompt_text(self, row: Row) -> str:
        if isinstance(row.prompt, str):
            return self._with_placeholders(row.prompt, row)
        self._check_texts(row.prompt, row)
        continues = row.prompt[-1]["role"] == "assistant"
        return self._render(row.prompt, row, add_generation_prompt=not continues, continue_final_message=continues)

    def _completion_texts(self, row: Row) -> list[str]:
        """What each completion adds to the rendered prompt."""
        texts = []
        for completion in row.completions:
            self._check_texts(completion, row)
            if isinstance(completion, str):
                end = self.tokenizer.convert_ids_to_tokens(self._end_id)
                texts.append(completion if completion.endswith(end) else completion + end)
                continue
            before, whole = self._prompt_text(row), self._render(_joined(row.prompt, completion), row)
            if not whole.startswith(before):
                raise DataError(
                    f"row {row.index}: the chat template does not render the prompt the same way with its completion behind it: the prompt ends "
                    f"{before[-40:]!r}, but there {whole[len(before) - 40 : len(before)]!r} stands. Pass chat_template_kwargs under which they "
                    "agree (such as enable_thinking=False), or give prompt and completion as strings."
                )
            texts.append(whole[len(before) :])
        return texts

    def _with_placeholders(self, text: str, row: Row) -> str:
        image = self._image_token
        self._check_texts(text, row, allowed=(image, *self._marks) if row.pictures else ())
        present = text.count(image) if image else 0
        if present == 0:
            return self.placeholder * len(row.pictures) + text
        if present != len(row.pictures) or text.count(self.placeholder) != present:
            raise PictureError(
                f"row {row.index}: the prompt has {text.count(self.placeholder)} of the placeholder {self.placeholder!r} for "
                f"{len(row.pictures)} picture(s). Write one for each, or none: then they are put before the text."
            )
        return text

    def _check_texts(self, content: str | Conversation, row: Row, *, allowed: Sequence[str | None] = ()) -> None:
        texts = (
            [content]
            if isinstance(content, str)
            else [part["text"] for message in content for part in message["content"] if part["type"] == "text"]
        )
        for mark in self._reserved:
            if mark not in allowed and any(mark in text for text in texts):
                raise DataError(
                    f"row {row.index}: a text contains {mark!r}, which stands for a picture and may not be written as text. Remove it, and "
                    'write a content part {"type": "image"} where a picture goes.'
                )

    def _render(self, messages: Sequence[Message], row: Row, **options: bool) -> str:
        if not self._has_template:
            raise ModelError(
                f"row {row.index} is a conversation, but this processor has no chat template. Pass one that has, or rows of plain strings."
            )
        extra = {**self.chat_template_kwargs, **(row.columns.get("chat_template_kwargs") or {})}
        texts = [_flat(message) for message in messages] if self._is_bare else [dict(message) for message in messages]
        try:
            return self.processor.apply_chat_template(
                texts, tools=row.columns.get("tools") or None, tokenize=False, **options, **extra
            )
        except TemplateError as error:
            raise DataError(f"row {row.index}: the chat template refuses the conversation: {error}") from error

    def _spans(self, row: Row, messages: Sequence[Message], start: int) -> list[Span]:
        return produced_spans(
            [message["role"] for message in messages],
            lambda count, generation: self._render(messages[:count], row, add_generation_prompt=generation),
            start=start,
            where=f"row {row.index}",
        )

    # Tokens

    def _process(self, text: str, row: Row) -> _Processed:
        """The processor, run once on this text and the row's pictures."""
        special = self._adds_special(text, row)
        if self._is_bare:
            if row.pictures:
                raise ModelError(
                    f"row {row.index} has pictures, but only a tokenizer was given. Pass the model's processor."
                )
            ids, offsets = self._tokens(text, special=special)
            return _Processed(ids, [0] * len(ids), {}, offsets)
        images = [
            decode(picture, where=f"row {row.index}, picture {place}") for place, picture in enumerate(row.pictures)
        ]
        try:
            outputs = self.processor(
                images=images or None,
                text=[text],
                text_kwargs={
                    "add_special_tokens": special,
                    "return_tensors": None,
                    "return_mm_token_type_ids": True,
                    "return_offsets_mapping": True,
                    "return_text_replacement_offsets": True,
                },
                images_kwargs={"return_tensors": "pt"},
            )
        except (ValueError, RuntimeError) as error:
            sizes = ", ".join(f"{width}×{height}" for width, height in (picture.size for picture in row.pictures))
            raise DataError(
                f"row {row.index}: the processor refuses it (pictures: {sizes or 'none'}): {error}"
            ) from error
        ids = list(outputs["input_ids"][0])
        given = outputs.get("mm_token_type_ids", outputs.get("token_type_ids"))
        types = list(given[0]) if given is not None else [int(id == self.facts.image_token_id) for id in ids]
        vision = {name: value for name, value in outputs.items() if name not in _TEXT_OUTPUTS}
        return _Processed(ids, types, vision, _original_offsets(outputs, has_pictures=bool(images)))

    def _prefix_offsets(self, text: str, spans: Sequence[Span] | None, processed: _Processed, row: Row) -> list[Span]:
        """Offsets by the processor run on prefixes, for processors that do not say what they expanded: exact where spans begin and end."""
        bounds = sorted({0, len(text), *(bound for span in spans or () for bound in span)})
        offsets: list[Span] = []
        for start, end in pairwise(bounds):
            part = text[:end]
            held = replace(row, pictures=row.pictures[: part.count(self._image_token or "")] if row.pictures else ())
            ids = self._process(part, held).ids if end < len(text) else processed.ids
            if ids != processed.ids[: len(ids)]:
                raise DataError(
                    f"row {row.index}: tokens run across the end of a turn at {text[end - 20 : end]!r}; use prompt and completion columns."
                )
            offsets += [(start, end)] * (len(ids) - len(offsets))
        return offsets

    def _tokens(self, text: str, *, special: bool) -> tuple[list[int], list[Span]]:
        """Ids and offsets of a text whose pictures stay unexpanded."""
        encoded = self.tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
        return encoded["input_ids"], encoded["offset_mapping"]

    def _adds_special(self, text: str, row: Row) -> bool:
        first = self.tokenizer.bos_token
        if self._is_bare and not isinstance((row.prompt or row.completions[0]), str):
            return False  # a tokenizer's template says it all; a processor's only where it writes the first token
        return first is None or not text.startswith(first)

    # What the processor is

    @property
    def _is_bare(self) -> bool:
        return self.tokenizer is self.processor

    @property
    def _has_template(self) -> bool:
        return getattr(self.processor, "chat_template", None) is not None

    @property
    def _image_token(self) -> str | None:
        return getattr(self.processor, "image_token", None)

    @property
    def _end_id(self) -> int:
        return self.tokenizer.eos_token_id if self.tokenizer.eos_token_id is not None else self.facts.stop_ids[0]

    @cached_property
    def _reserved(self) -> tuple[str, ...]:
        """What may not be written as text: the marks that only the processor may place."""
        named = [getattr(self.processor, f"{kind}_token", None) for kind in ("image", "video", "audio")]
        tokens = [mark for mark, id in self.tokenizer.get_added_vocab().items() if id in self.facts.modality_ids]
        return tuple(dict.fromkeys(mark for mark in (*named, *tokens) if mark))

    @cached_property
    def _marks(self) -> tuple[str, ...]:
        """The marks that belong to a string prompt's placeholder."""
        return tuple(mark for mark in self._reserved if mark in self.placeholder)


def _joined(prompt: str | Conversation, completion: str | Conversation) -> list[Message]:
    """A prompt that is a conversation and what follows it, as one."""
    return [*prompt, *completion]  # pyright: ignore[reportReturnType]


def _flat(message: Message) -> dict[str, Any]:
    return {**message, "content": "".join(part["text"] for part in message["content"])}


def _original_offsets(outputs: Mapping[str, Any], *, has_pictures: bool) -> list[Span] | None:
    offsets = [(int(start), int(end)) for start, end in outputs["offset_mapping"][0]]
    if not has_pictures:
        return offsets
    if "text_replacement_offsets" not in outputs:
        return None
    replaced = [(tuple(item["span"]), tuple(item["new_span"])) for item in outputs["text_replacement_offsets"][0]]
    return unexpanded_offsets(offsets, replaced)


def _too_long(row: Row, group: Group, completion: Completion, max_length: int, why: str) -> str:
    return (
        f"row {row.index}: {len(group.prompt.ids)} + {len(completion.ids)} tokens are more than max_length ({max_length}), and {why}. "
        "Raise max_length, set it to None, lower max_pixels, or drop the row."
    )

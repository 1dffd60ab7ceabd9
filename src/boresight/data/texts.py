"""`Row` → text: the chat template for conversations, placeholders for plain strings."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from typing import Any

from jinja2 import TemplateError

from boresight.data.marks import MARK
from boresight.data.spans import RenderedBranch, Span, is_rewritten, produced_spans, rendered_branches
from boresight.errors import DataError, ImageError, ModelError
from boresight.types import Conversation, Message, ModelFacts, Row


class Texts:
    """Renders rows as the processor expects them, one placeholder for each image.

    The chat template is never edited. In plain text every image needs the family's `placeholder`, or the mark `<image>` that other tools
    write, which is replaced by it. If the text has neither, the placeholders are put before it.
    """

    def __init__(
        self,
        processor: Any,
        facts: ModelFacts,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        tools: Mapping[str | None, Sequence[Mapping[str, Any]]] | None = None,
    ) -> None:
        self.processor = processor
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.facts = facts
        self.chat_template_kwargs = dict(chat_template_kwargs or {})
        self.tools = dict(tools or {})

    def prompt(self, row: Row) -> str:
        """The prompt with the generation prompt. If the last message is the assistant's, the completion continues it."""
        if isinstance(row.prompt, str):
            return self._with_placeholders(row.prompt, row)
        if is_text(row):
            return ""
        self._check(row.prompt, row)
        continues = row.prompt[-1]["role"] == "assistant"
        return self.render(row.prompt, row, add_generation_prompt=not continues, continue_final_message=continues)

    def completions(self, row: Row) -> list[str]:
        """The text that each completion adds to the prompt, its end token included."""
        return [self._completion(completion, row) for completion in row.completions]

    def conversation(self, row: Row) -> str:
        """Prompt and demonstration as one text."""
        if isinstance(row.completions[0], str):
            return self.prompt(row) + self.completions(row)[0]
        self._check(row.prompt, row)
        self._check(row.completions[0], row)
        return self.render(joined(row.prompt, row.completions[0]), row)

    def branches(self, row: Row, messages: Sequence[Message], start: int) -> list[RenderedBranch]:
        """The assistant's turns of weight 1 from message `start` on, each after what was rendered before it (`data.rewritten`)."""
        return rendered_branches(
            [message["role"] == "assistant" and message.get("weight", 1) == 1 for message in messages],
            self._up_to(row, messages),
            start=start,
            where=f"row {row.index}",
        )

    def rewrites(self, row: Row, messages: Sequence[Message]) -> bool:
        """Whether a turn of the assistant's is rendered differently once the rest of the messages follows."""
        return is_rewritten(messages, self._up_to(row, messages))

    def _up_to(self, row: Row, messages: Sequence[Message]) -> Callable[[int, bool], str]:
        return lambda count, generation: self.render(messages[:count], row, add_generation_prompt=generation)

    def produced(
        self, row: Row, messages: Sequence[Message], start: int, *, weights: Collection[int] = (1,)
    ) -> list[Span]:
        """The spans of the assistant's turns in the rendered `messages`, from message `start` on.

        Args:
            weights: of the turns that are wanted; a message without a weight has 1.
        """
        return produced_spans(
            [message["role"] == "assistant" and message.get("weight", 1) in weights for message in messages],
            self._up_to(row, messages),
            start=start,
            where=f"row {row.index}",
        )

    def render(self, messages: Sequence[Message], row: Row, **options: bool) -> str:
        """The messages in the processor's chat template."""
        if not self.has_template:
            raise ModelError(
                f"row {row.index} is a conversation, but the processor has no chat template. Pass one that has, or "
                "rows of plain strings."
            )
        extra = {**self.chat_template_kwargs, **_variables(row)}
        conversation = [_flat(message) if self.is_bare else dict(message) for message in messages]
        try:
            return self.processor.apply_chat_template(
                conversation, tools=self._tools(row), tokenize=False, **options, **extra
            )
        except TemplateError as error:
            raise DataError(f"row {row.index}: the chat template refuses the conversation: {error}") from error
        except (
            AttributeError,
            KeyError,
            TypeError,
            ValueError,
        ) as error:  # a tool or a message of another form than it expects
            reason = f"{type(error).__name__}: {error}"
            raise DataError(f"row {row.index}: the chat template cannot render the conversation ({reason}).") from error

    def _tools(self, row: Row) -> Any:
        """The descriptions of the tools in a row's prompt: its column `tools`, or those of its environment."""
        # Some templates write a heading for an empty list.
        own = self.tools.get(row.columns.get("environment"), self.tools.get(None))
        return row.columns.get("tools") or list(own or ()) or None

    @property
    def stop_tokens(self) -> tuple[str, ...]:
        """The tokens that end a completion."""
        return tuple(self.tokenizer.convert_ids_to_tokens(list(self.facts.stop_ids)))

    @property
    def is_bare(self) -> bool:
        """Whether there is only a tokenizer."""
        return self.tokenizer is self.processor

    @property
    def image_token(self) -> str | None:
        """The token that the processor replaces with an image's tokens."""
        token = getattr(self.processor, "image_token", None)
        return None if token is None else str(token)  # some processors hold an AddedToken

    @property
    def image_token_id(self) -> int | None:
        """The id of `image_token`."""
        return None if self.image_token is None else self.tokenizer.convert_tokens_to_ids(self.image_token)

    @property
    def end_id(self) -> int:
        """The id that ends a completion when the template adds no end token."""
        return self.facts.stop_ids[0] if self.tokenizer.eos_token_id is None else self.tokenizer.eos_token_id

    @cached_property
    def placeholder(self) -> str:
        """The text of one image in a string prompt: the image token with the family's marker tokens around it."""
        image = self.image_token
        if image is None or self.facts.family.places_image:
            return ""
        if not self.has_template:
            return image
        message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "x"}]}
        text = self.processor.apply_chat_template([message], tokenize=False)
        tokens = self.tokenizer.convert_ids_to_tokens(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        start = tokens.index(image)
        end = start + 1
        while start > 0 and tokens[start - 1] in self.reserved:
            start -= 1
        while end < len(tokens) and tokens[end] in self.reserved:
            end += 1
        return "".join(tokens[start:end])

    @cached_property
    def reserved(self) -> tuple[str, ...]:
        """Marker tokens that only a template or processor may place. The processor would read them in text as images."""
        named = [getattr(self.processor, f"{kind}_token", None) for kind in ("image", "video", "audio")]
        added = [mark for mark, id in self.tokenizer.get_added_vocab().items() if id in self.facts.modality_ids]
        return tuple(dict.fromkeys(str(mark) for mark in (*named, *added) if mark))

    @cached_property
    def control(self) -> tuple[str, ...]:
        """Special tokens, such as the one that ends a turn. Written in a text, they act as if the template had placed them."""
        return tuple(token for token in dict.fromkeys(self.tokenizer.all_special_tokens) if token not in self.reserved)

    @property
    def has_template(self) -> bool:
        """Whether the processor has a chat template."""
        return getattr(self.processor, "chat_template", None) is not None

    def _completion(self, completion: str | Conversation, row: Row) -> str:
        if is_text(row):
            completion = self._with_placeholders(row.completions[0], row)  # pyright: ignore[reportArgumentType]
        else:
            self._check(completion, row)
        if isinstance(completion, str):
            end = self.tokenizer.convert_ids_to_tokens(self.end_id)
            return completion if completion.endswith(end) else completion + end
        before, whole = self.prompt(row), self.render(joined(row.prompt, completion), row)
        if not whole.startswith(before):
            there = whole[max(len(before) - 40, 0) : len(before)]
            raise DataError(
                f"row {row.index}: the chat template renders the prompt differently once its completion follows: "
                f"alone it ends with {before[-40:]!r}, but before a completion with {there!r}. Pass chat_template_kwargs "
                "that make them agree (such as enable_thinking=False), or give prompt and completion as strings."
            )
        return whole[len(before) :]

    def _with_placeholders(self, text: str, row: Row) -> str:
        if self.facts.family.places_image and row.images:
            text = text.replace(MARK, "")
        marks = [mark for mark in self.reserved if mark in self.placeholder] if row.images else []
        self._check(text, row, allowed=marks)
        present = text.count(self.image_token) if self.image_token else 0
        if present == 0 and row.images and text.count(MARK) == len(row.images):
            return text.replace(MARK, self.placeholder)
        if present == 0:
            return self.placeholder * len(row.images) + text
        if not present == len(row.images) == text.count(self.placeholder):
            raise ImageError(
                f"row {row.index}: the prompt has the placeholder {self.placeholder!r} "
                f"{text.count(self.placeholder)} time(s) for {len(row.images)} image(s). Write one for each image, or "
                "write none: boresight then puts them before the text."
            )
        return text

    def _check(self, content: str | Conversation, row: Row, *, allowed: Sequence[str] = ()) -> None:
        """Raise if a text contains a marker token of an image."""
        texts = [content] if isinstance(content, str) else _written(content)
        for mark in self.reserved:
            if mark not in allowed and any(mark in text for text in texts):
                raise DataError(
                    f"row {row.index}: a text contains {mark!r}, which stands for an image and may not be "
                    'written as text. Remove it, and write a content part {"type": "image"} where an image goes.'
                )


def is_text(row: Row) -> bool:
    """Whether the row is one plain text (`text`), with no prompt set apart."""
    return not isinstance(row.prompt, str) and len(row.prompt) == 0 and isinstance(row.completions[0], str)


_TAKEN = (
    "tokenize",
    "add_generation_prompt",
    "continue_final_message",
    "conversation",
    "tools",
    "return_dict",
    "return_tensors",
)
"""Arguments of the template that the encoder sets."""


def _variables(row: Row) -> Mapping[str, Any]:
    """The template variables of one row.

    Raises:
        DataError: they are no mapping, or set what the encoder sets.
    """
    given = row.columns.get("chat_template_kwargs") or {}
    if not isinstance(given, Mapping):
        raise DataError(
            f"row {row.index}: chat_template_kwargs is a {type(given).__name__}. Store a mapping, or its JSON as text."
        )
    if taken := [name for name in given if name in _TAKEN]:
        raise DataError(
            f"row {row.index}: chat_template_kwargs sets {taken[0]!r}, which is not the row's to set. Drop it."
        )
    return {name: value for name, value in given.items() if value is not None}


def joined(prompt: str | Conversation, completion: str | Conversation) -> list[Message]:
    """Prompt and completion as one conversation; an empty prompt adds nothing."""
    return [*prompt, *completion]  # pyright: ignore[reportReturnType]


def _written(conversation: Conversation) -> list[str]:
    return [part["text"] for message in conversation for part in message["content"] if part["type"] == "text"]


def _flat(message: Message) -> dict[str, Any]:
    """The message in the format that templates of text-only tokenizers expect."""
    return {**message, "content": "".join(part["text"] for part in message["content"] if part["type"] == "text")}

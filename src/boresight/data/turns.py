"""Turns of an environment inside a completion: their tokens and images, and completions that grow turn by turn.

Tokens are only ever appended. What the policy produced stays as it is, and a turn is tokenised once, when it is appended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from boresight.data.encode import Encoder
from boresight.data.texts import Texts
from boresight.errors import DataError, ModelError
from boresight.types import Completion, EncodedImage, Ids, ImageSet, Message, Row


@dataclass(frozen=True, slots=True)
class EncodedTurn:
    """What an environment appends to a completion, after the processor."""

    ids: Ids
    """[C] with every image expanded to its placeholder tokens."""
    unexpanded_ids: Int[Tensor, "U"]
    token_types: Ids
    """[C] as `Prompt.token_types`."""
    token_inputs: Mapping[str, Tensor]
    """[C, …] as `Prompt.token_inputs`."""
    image_set: ImageSet | None
    """None without images."""


def encoded_turn(encoder: Encoder, text: str, images: Sequence[EncodedImage], *, row: int) -> EncodedTurn:
    """The tokens of a turn that follows others: no special tokens are added to it.

    Args:
        encoder: of the prompts.
        text: with one placeholder for each image, as the chat template renders it.
        images: those that the placeholders stand for.
        row: the number of the row, for errors.

    Raises:
        DataError: the processor refuses an image.
    """
    ids, unexpanded, types, inputs, vision = encoder.continuation(text, Row(row, text, (), tuple(images), {}))
    return EncodedTurn(ids, unexpanded, types, inputs, ImageSet(tuple(images), vision) if vision else None)


def with_turn(completion: Completion, turn: EncodedTurn, messages: Sequence[Message] = ()) -> Completion:
    """A completion with an environment's turn after it. None of the turn's tokens count."""
    uncounted = torch.zeros(len(turn.ids), dtype=torch.bool)
    return _joined(
        completion,
        Completion(
            ids=turn.ids,
            mask=uncounted,
            text=completion.text,
            sampler_logp=torch.zeros(len(turn.ids)),
            truncated=completion.truncated,
            token_types=turn.token_types if turn.image_set else None,
            token_inputs=turn.token_inputs if turn.image_set else {},
            image_sets=() if turn.image_set is None else (turn.image_set,),
            unexpanded_ids=turn.unexpanded_ids,
            messages=tuple(messages),
        ),
    )


def continued(completion: Completion, sampled: Completion, messages: Sequence[Message] = ()) -> Completion:
    """A completion with what the policy sampled next."""
    return _joined(completion, replace(sampled, messages=tuple(messages)))


def _joined(first: Completion, second: Completion) -> Completion:
    parts = (first, second)
    logp = None
    if first.sampler_logp is not None and second.sampler_logp is not None:
        logp = torch.cat([first.sampler_logp, second.sampler_logp])
    has_types = any(part.token_types is not None for part in parts)
    names = dict.fromkeys(name for part in parts for name in part.token_inputs)
    return Completion(
        ids=torch.cat([part.ids for part in parts]),
        mask=torch.cat([part.mask for part in parts]),
        text=second.text,
        sampler_logp=logp,
        truncated=second.truncated,
        token_types=torch.cat([_types(part) for part in parts]) if has_types else None,
        token_inputs={name: torch.cat([_input(part, name, parts) for part in parts]) for name in names},
        image_sets=(*first.image_sets, *second.image_sets),
        unexpanded_ids=torch.cat([part.ids if part.unexpanded_ids is None else part.unexpanded_ids for part in parts]),
        messages=(*(first.messages or ()), *(second.messages or ())),
    )


def _types(part: Completion) -> Ids:
    return torch.zeros_like(part.ids) if part.token_types is None else part.token_types


def _input(part: Completion, name: str, parts: Sequence[Completion]) -> Tensor:
    """A token input of one part; zero, as for text, where the part is text alone."""
    if name in part.token_inputs:
        return part.token_inputs[name]
    like = next(other.token_inputs[name] for other in parts if name in other.token_inputs)
    return like.new_zeros(len(part.ids), *like.shape[1:])


# ---- What a chat template writes around a tool's result ------------------------------------------------------------------------------


def rendered_turn(texts: Texts, messages: Sequence[Message], row: Row) -> str:
    """The text that the chat template puts between the end token of an assistant's turn and the next one, `messages` inside it.

    It is what a template writes after a made-up conversation, in two versions that must agree: only then does it depend on the messages
    alone, and can follow what a policy wrote without rendering that again.

    Args:
        texts: of the encoder of the prompts.
        messages: of tools, their content as parts.
        row: whose template variables and tools are used.

    Raises:
        ModelError: the template writes it differently after different conversations, or rewrites what comes before.
    """
    calls = [{"type": "function", "function": {"name": message["name"], "arguments": {}}} for message in messages]
    one, other = (_after(texts, messages, row, words, calls) for words in ("x", "Look again."))
    if one != other:
        raise ModelError(
            f"the chat template renders the results of tools differently after different conversations, {first_difference(one, other)}: "
            "tokens cannot be appended to a completion. Pass a template that renders a message the same wherever it stands."
        )
    return one


def _after(texts: Texts, messages: Sequence[Message], row: Row, words: str, calls: Sequence[Mapping[str, Any]]) -> str:
    before = [
        {"role": "user", "content": [{"type": "text", "text": words}]},
        {"role": "assistant", "content": [{"type": "text", "text": words}], "tool_calls": list(calls)},
    ]
    base = texts.render(before, row)
    whole = texts.render([*before, *messages], row, add_generation_prompt=True)
    # The policy wrote the end token itself; templates write more after it, such as a line break.
    ends = [base.rfind(token) + len(token) for token in texts.stop_tokens if token in base]
    cut = max(ends, default=len(base))
    if not whole.startswith(base[:cut]):
        raise ModelError(
            "the chat template renders an assistant's turn differently once a tool's result follows, "
            f"{first_difference(base[:cut], whole)}: tokens cannot be appended to a completion. Pass a template that leaves earlier turns "
            "as they are (TRL's `…_training` templates do)."
        )
    return whole[cut:]


def check_template(texts: Texts) -> None:
    """Check that the chat template renders calls and results of tools.

    Raises:
        ModelError: it does not; the message says what is missing.
    """
    marks = {
        "the name of a call": "tool_name_a8f3",
        "its arguments": "tool_value_d6e7",
        "a tool's result": "tool_text_c4f9",
    }
    name, value, result = marks.values()
    call = {"type": "function", "function": {"name": name, "arguments": {"argument": value}}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "text", "text": "x"}]},
        {"role": "assistant", "content": [{"type": "text", "text": ""}], "tool_calls": [call]},
        {"role": "tool", "name": name, "content": [{"type": "text", "text": result}]},
    ]
    try:
        text = texts.render(messages, Row(0, (), (), (), {}))
        missing = [what for what, mark in marks.items() if mark not in text]
        reason = f"it leaves out {', '.join(missing)}"
    except DataError as error:
        missing, reason = ["all"], str(error)
    if missing:
        raise ModelError(
            f"tools need a chat template that renders calls and results, and the processor's does not ({reason}). Set the chat_template of "
            "the processor to one that does, such as Qwen3-VL's."
        )


def first_difference(one: str, other: str) -> str:
    """Where two texts part, for messages."""
    place = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return f"at character {place}: {one[place : place + 40]!r} and {other[place : place + 40]!r}"

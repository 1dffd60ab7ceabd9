"""Functions of TRL's `data_utils` that scripts call on their rows. The trainers need none of them: they read all of these forms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from boresight.errors import DataError

KEYS = ("prompt", "completion", "chosen", "rejected", "messages")


def is_conversational(example: Mapping[str, Any]) -> bool:
    """Whether a row holds messages instead of plain strings."""
    found = next((example[key] for key in KEYS if key in example), None)
    return bool(isinstance(found, Sequence) and found and isinstance(found[0], Mapping) and "role" in found[0])


def prepare_multimodal_messages(
    messages: Sequence[Mapping[str, Any]], images: Sequence[Any] = ()
) -> list[dict[str, Any]]:
    """Messages whose content is a list of parts, with the images in place.

    Images go to the parts of type `image` that hold none. Without any such part they precede the text of the first user message.

    Raises:
        DataError: there are not as many places as images.
    """
    has_places = any(_empty_places(message) for message in messages)
    rest = list(images)
    prepared: list[dict[str, Any]] = []
    for message in messages:
        content: Any = message["content"]
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
            if message["role"] == "user" and not has_places:
                content = [*({"type": "image"} for _ in images), *content]
                has_places = True
        elif content is None:
            content = []
        parts = []
        for part in content:
            if part["type"] == "image" and part.get("image") is None:
                if not rest:
                    raise DataError(
                        f"The messages have more places for images than the {len(images)} images: pass one for each."
                    )
                part = {"type": "image", "image": rest.pop(0)}
            parts.append(part)
        prepared.append({**message, "content": parts})
    if rest:
        raise DataError(
            f"{len(rest)} of {len(images)} images have no place in the messages: add a part of type 'image' for each."
        )
    return prepared


def _empty_places(message: Mapping[str, Any]) -> bool:
    content = message["content"]
    return not isinstance(content, str) and any(
        part["type"] == "image" and part.get("image") is None for part in content or ()
    )


def extract_prompt(example: Mapping[str, Any]) -> dict[str, Any]:
    """The start that `chosen` and `rejected` share, as `prompt`, and what follows it in each."""
    chosen, rejected = example["chosen"], example["rejected"]
    shared = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False))))
    if isinstance(chosen, str) and shared and chosen[shared - 1] == " ":
        shared -= 1  # the space belongs to the answer, as tokenizers split text
    return {"prompt": chosen[:shared], "chosen": chosen[shared:], "rejected": rejected[shared:]}


def maybe_extract_prompt(example: Mapping[str, Any]) -> Mapping[str, Any]:
    """As `extract_prompt`; a row that has a prompt, or no pair, is returned unchanged."""
    if "chosen" not in example or "rejected" not in example or "prompt" in example:
        return example
    return {**example, **extract_prompt(example)}


def unpair_preference_dataset(dataset: Any, num_proc: int | None = None, desc: str | None = None) -> Any:
    """A data set of pairs as one of completions with a `label`: true for the chosen, which come first in each batch of rows.

    Args:
        dataset: a `datasets.Dataset`, or a dictionary of them.
    """

    def unpair(rows: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        size = len(rows["chosen"])
        others = {name: values * 2 for name, values in rows.items() if name not in ("chosen", "rejected")}
        return {**others, "completion": [*rows["chosen"], *rows["rejected"]], "label": [True] * size + [False] * size}

    return dataset.map(unpair, batched=True, remove_columns=["chosen", "rejected"], num_proc=num_proc, desc=desc)


def apply_chat_template(
    example: Mapping[str, Any], tokenizer: Any, tools: Any = None, **variables: Any
) -> dict[str, Any]:
    """A conversational row as rendered text, under the same keys; `messages` becomes `text`.

    Args:
        tokenizer: a tokenizer or a processor with a chat template.
        tools: the tools that the template lists.
        variables: further variables of the template.

    Raises:
        DataError: the template renders the prompt differently once an answer follows it.
    """
    variables = {**(example.get("chat_template_kwargs") or {}), **variables}

    def rendered(messages: Sequence[Any], **how: Any) -> str:
        return tokenizer.apply_chat_template(list(messages), tools=tools, tokenize=False, **how, **variables)

    if "messages" in example:
        return {"text": rendered(example["messages"])}
    if "prompt" not in example:
        return {key: rendered(example[key]) for key in ("chosen", "rejected") if key in example}
    continues = example["prompt"][-1]["role"] == "assistant"
    how = {"continue_final_message": True} if continues else {"add_generation_prompt": True}
    prompt = rendered(example["prompt"], **how)
    found = {"prompt": prompt}
    for key in ("completion", "chosen", "rejected"):
        if key not in example:
            continue
        text = rendered([*example["prompt"], *example[key]])
        if not text.startswith(prompt):
            raise DataError(
                "The chat template renders the prompt differently once an answer follows it, so the answer cannot be cut off."
            )
        found[key] = text[len(prompt) :]
    return {**found, **({"label": example["label"]} if "label" in example else {})}

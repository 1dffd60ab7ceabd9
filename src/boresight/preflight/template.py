"""Whether the chat template keeps what a conversation says: texts, roles, images and ends of turns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from boresight.data.schema import read_row
from boresight.errors import UserError
from boresight.preflight.finding import Finding
from boresight.preflight.set_up import SetUp

ASKED, ANSWERED, AGAIN = "zebra question", "walnut answer", "quince question"
"""Texts that no template writes by itself."""


def check_template(set_up: SetUp) -> Iterator[Finding]:
    """Render a conversation of three turns, and look for its parts."""
    texts = set_up.encoder.texts
    if not getattr(set_up.encoder.processor, "chat_template", None):
        yield Finding("template", "note", "", "the processor has no chat template: rows must be plain strings.")
        return
    try:
        whole = _rendered(set_up)
    except UserError as error:
        yield Finding(
            "template", "warning", "chat_template", f"it renders no conversation of three turns: {error}",
            "If your rows have more than one turn, pass a processor with another chat template.",
        )  # fmt: skip
        return
    if lost := [text for text in (ASKED, ANSWERED, AGAIN) if text not in whole]:
        yield Finding(
            "template", "error", "chat_template", f"it leaves out {len(lost)} of three messages ({', '.join(map(repr, lost))}).",
            "Pass a processor whose chat template writes every message.",
        )  # fmt: skip
        return
    to_assistant, to_user = _between(whole, ASKED, ANSWERED), _between(whole, ANSWERED, AGAIN)
    if to_assistant == to_user:
        yield Finding(
            "template", "warning", "chat_template", "it writes questions and answers alike, so that the model cannot tell the roles apart.",
            "Pass a processor whose chat template marks the roles.",
        )  # fmt: skip
    ids = set_up.encoder.tokenizer(to_user, add_special_tokens=False)["input_ids"]
    if not set(ids) & set(set_up.facts.stop_ids):
        names = ", ".join(map(repr, set_up.encoder.tokenizer.convert_ids_to_tokens(list(set_up.facts.stop_ids)[:4])))
        yield Finding(
            "template", "warning", "chat_template",
            f"no end token ({names}) follows an answer, so templated text never shows where an answer ends. boresight adds "
            f"{set_up.encoder.tokenizer.convert_ids_to_tokens(texts.end_id)!r} to the completions that it trains on.",
            "Pass a processor whose chat template ends turns, or set the generation config's eos_token_id to the token that ends them.",
        )  # fmt: skip


def _rendered(set_up: SetUp) -> str:
    turns = [("user", ASKED), ("assistant", ANSWERED), ("user", AGAIN)]
    row = read_row({"prompt": [{"role": role, "content": text} for role, text in turns]}, 0)
    messages: Any = row.prompt
    return set_up.encoder.texts.render(messages, row)


def _between(text: str, first: str, second: str) -> str:
    """What stands between two parts of a text."""
    return text[text.index(first) + len(first) : text.index(second)]

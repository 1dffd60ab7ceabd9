"""The text of each token of a completion, for pages that shade tokens by their log-probability."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from boresight.files import write_whole

FILE = "completions/tokenizer.json"
"""The tokenizer of a run's completions."""


def keep_tokenizer(run: str | os.PathLike[str], tokenizer: Any) -> None:
    """Write the tokenizer beside the completions. A slow tokenizer has no such file: the page shows no tokens then."""
    backend: Tokenizer | None = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        write_whole(Path(run) / FILE, backend.to_str())


class TokenTexts:
    """Splits completions into the texts of their tokens; joined, they are the decoded text, special tokens included.

    Args:
        tokenizer: the run's.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._alone: dict[int, str] = {}

    @classmethod
    def of_run(cls, run: str | os.PathLike[str]) -> TokenTexts | None:
        """Made from the tokenizer that the run stored, or its newest checkpoint's; None where there is neither."""
        files = [Path(run) / FILE, *sorted(Path(run).glob("checkpoint-*/tokenizer.json"), key=_step, reverse=True)]
        found = next((file for file in files if file.exists()), None)
        return None if found is None else cls(Tokenizer.from_file(str(found)))

    def __call__(self, completions: Sequence[Sequence[int]]) -> list[list[str]]:
        """One text per token. A character of several tokens belongs to the last; the others are empty."""
        whole = self._tokenizer.decode_batch([list(ids) for ids in completions], skip_special_tokens=False)
        return [self._split(ids, text) for ids, text in zip(completions, whole, strict=True)]

    def _split(self, ids: Sequence[int], text: str) -> list[str]:
        # Most tokens decode alike in any context; whether all do shows when their texts are joined.
        quick = [self._text(id) for id in ids]
        return quick if "".join(quick) == text else self._streamed(ids, text)

    def _text(self, id: int) -> str:
        if id not in self._alone:
            self._alone[id] = self._tokenizer.decode([id], skip_special_tokens=False)
        return self._alone[id]

    def _streamed(self, ids: Sequence[int], text: str) -> list[str]:
        stream = DecodeStream(skip_special_tokens=False)
        texts = [stream.step(self._tokenizer, id) or "" for id in ids]
        # The stream holds back a character that the length limit cut off.
        whole = "".join(texts)
        return [*texts[:-1], texts[-1] + text[len(whole) :]] if text.startswith(whole) else texts


def _step(path: Path) -> int:
    return int(path.parent.name.rpartition("-")[2])

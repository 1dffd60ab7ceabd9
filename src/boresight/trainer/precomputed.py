"""Reference log-probabilities computed once and kept on disk, under a fingerprint of all that they depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn
from transformers.utils import cached_file

from boresight.data.texts import Texts
from boresight.errors import ConfigError
from boresight.files import write_whole
from boresight.model.load import WHERE
from boresight.types import PerSequence, Row


def sample_digest(row: Row) -> str:
    """SHA-256 of what a pair's log-probabilities are computed from: its texts, its images' bytes, its template variables."""
    said = [row.prompt, *row.completions, row.columns.get("chat_template_kwargs")]
    text = json.dumps(said, sort_keys=True, default=str) + "".join(image.digest for image in row.images)
    return hashlib.sha256(text.encode()).hexdigest()


def weights_digest(model: nn.Module, *, adapter: bool = False) -> str:
    """SHA-256 of every weight and buffer with its name, shape and dtype: of the base, or else of its adapter alone."""
    prefix = model.base_model.prefix if isinstance(model, PeftModel) else None  # pyright: ignore[reportAttributeAccessIssue]
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if adapter != (prefix is not None and (str(prefix) in name or "modules_to_save" in name)):
            continue
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def saved_model_digest(name: str, options: Mapping[str, Any]) -> str:
    """SHA-256 of a saved model's weight files and configuration, or of its id and commit where it is on the hub.

    Args:
        options: of `from_pretrained`.
    """
    digest = hashlib.sha256()
    folder = Path(name)
    if not folder.is_dir():
        # Not tried against a real hub here: transformers keeps a commit's files in a folder named after it.
        where = {key: options[key] for key in WHERE if key in options}
        digest.update(f"{name} {Path(str(cached_file(name, 'config.json', **where))).parent.name}".encode())
        return digest.hexdigest()
    for path in sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin", ".json")):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def processor_digest(processor: Any) -> str:
    """SHA-256 of what the processor does to text and images, pixel budget included."""
    return _digest([_tokenizer(processor), _plain(getattr(processor, "image_processor", None))])


def template_digest(texts: Texts, variables: Mapping[str, Any] | None) -> str:
    """SHA-256 of the chat template and its variables."""
    return _digest([getattr(texts.processor, "chat_template", None), texts.tokenizer.chat_template, variables])


def _tokenizer(processor: Any) -> str:
    tokenizer = getattr(processor, "tokenizer", processor)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return tokenizer.name_or_path if backend is None else backend.to_str()


def _plain(image_processor: Any) -> Any:
    return None if image_processor is None else image_processor.to_dict()


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


class PrecomputedReference:
    """`completion_logps` of pairs under the reference, by the digest of their samples.

    Args:
        fingerprint: what all entries depend on, each part by a name that a person understands. A file made under another one is
            refused.
    """

    def __init__(self, fingerprint: Mapping[str, str]) -> None:
        self.fingerprint = dict(fingerprint)
        self._logps: dict[str, Tensor] = {}

    @classmethod
    def load(cls, path: Path, fingerprint: Mapping[str, str]) -> PrecomputedReference:
        """Read a file back.

        Raises:
            ConfigError: it was made under another fingerprint; the message names what changed.
        """
        table = cls(fingerprint)
        with safe_open(path, "pt") as file:
            made: dict[str, str] = file.metadata() or {}
            digests = made.pop("digests", "").split()
            changed = sorted(name for name in {*made, *fingerprint} if made.get(name) != fingerprint.get(name))
            if changed:
                raise ConfigError(
                    f"{path} holds reference log-probabilities made with another {' and another '.join(changed)}: delete it to have them "
                    "computed anew, or set precomputed_ref_path to a file of its own."
                )
            table._logps = dict(zip(digests, file.get_tensor("logps"), strict=True))
        return table

    def save(self, path: Path) -> None:
        """Write the table, replacing the file in one move."""
        logps = torch.stack(list(self._logps.values())) if self._logps else torch.empty(0, 2)
        write_whole(path, save({"logps": logps}, self.fingerprint | {"digests": " ".join(self._logps)}))

    def missing(self, rows: Iterable[Row]) -> list[Row]:
        """The rows that are not in the table, one for each digest."""
        found = {sample_digest(row): row for row in rows}
        return [row for digest, row in found.items() if digest not in self._logps]

    def add(self, rows: Sequence[Row], logps: PerSequence) -> None:
        """Take in pairs.

        Args:
            logps: [2 · rows] as `completion_logps` returns them.
        """
        for row, pair in zip(rows, logps.float().cpu().view(-1, 2), strict=True):
            self._logps[sample_digest(row)] = pair

    def update(self, entries: Mapping[str, Tensor]) -> None:
        """Take in what another rank computed."""
        self._logps.update(entries)

    @property
    def entries(self) -> dict[str, Tensor]:
        """Digest → [2] log-probabilities of chosen and rejected."""
        return self._logps

    def __call__(self, rows: Sequence[Row]) -> PerSequence:
        """[2 · rows] log-probabilities, chosen and rejected in turn."""
        return torch.cat([self._logps[sample_digest(row)] for row in rows])

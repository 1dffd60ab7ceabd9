"""Digests of everything that reference log-probabilities depend on: weights, adapter, processor, chat template."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers.utils import cached_file

from boresight.data.encode import Encoder
from boresight.model.load import WHERE


def reference_fingerprint(
    policy: nn.Module,
    ref_model: str | Path | nn.Module | None,
    encoder: Encoder,
    *,
    template_variables: Mapping[str, Any] | None,
    options: Mapping[str, Any],
    settings: Mapping[str, str],
) -> dict[str, str]:
    """Everything that reference log-probabilities depend on, except the samples, under readable names.

    Args:
        policy: the model being trained, before its first step.
        ref_model: the reference; None: the policy, or the policy with its adapter disabled.
        encoder: the encoder of the samples.
        template_variables: variables of the chat template.
        options: arguments of `from_pretrained`.
        settings: options of the method that change log-probabilities.
    """
    if isinstance(ref_model, str | Path):
        # A saved model is identified by its files, or on the hub by its commit, so it need not be loaded.
        weights, adapter = saved_model_digest(str(ref_model), options), "none"
    else:
        weights = weights_digest(policy if ref_model is None else ref_model)
        adapter = "off" if ref_model is None else weights_digest(ref_model, adapter=True)
    return {
        "model weights": weights,
        "adapter": adapter,
        "processor or pixel budget": processor_digest(encoder.processor),
        "chat template": template_digest(encoder.processor, encoder.tokenizer, template_variables),
        **settings,
    }


def weights_digest(model: nn.Module, *, adapter: bool = False) -> str:
    """SHA-256 of every weight and buffer with its name, shape and dtype: those of the base model, or only those of its adapter."""
    prefix = model.base_model.prefix if isinstance(model, PeftModel) else None  # pyright: ignore[reportAttributeAccessIssue]
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if adapter != (prefix is not None and (str(prefix) in name or "modules_to_save" in name)):
            continue
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


SAMPLED = 256
"""Values of each tensor that `sampled_weights_digest` reads."""


def sampled_weights_digest(model: nn.Module) -> str:
    """A digest of the names and shapes of all weights of a base model and of evenly spaced values of each, in float32.

    It tells models apart in a fraction of a second, and does not depend on the dtype that they are loaded in, unless that rounds.
    """
    prefix = model.base_model.prefix if isinstance(model, PeftModel) else None  # pyright: ignore[reportAttributeAccessIssue]
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if prefix is None or not (str(prefix) in name or "modules_to_save" in name):
            flat = tensor.detach().flatten()
            some = flat[:: max(1, len(flat) // SAMPLED)].float().cpu()
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(some.numpy().tobytes())
    return digest.hexdigest()[:16]


def saved_model_digest(name: str, options: Mapping[str, Any]) -> str:
    """SHA-256 of a saved model's weight files and configuration, or of its id and commit if it is on the hub.

    Args:
        options: arguments of `from_pretrained`.
    """
    digest = hashlib.sha256()
    folder = Path(name)
    if not folder.is_dir():
        # Not tested against a real hub: transformers keeps a commit's files in a folder named after it.
        where = {key: options[key] for key in WHERE if key in options}
        digest.update(f"{name} {Path(str(cached_file(name, 'config.json', **where))).parent.name}".encode())
        return digest.hexdigest()
    for path in sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin", ".json")):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def processor_digest(processor: Any) -> str:
    """SHA-256 of the processor's tokenizer and image settings, including the pixel budget."""
    return _digest([_tokenizer(processor), _plain(getattr(processor, "image_processor", None))])


def template_digest(processor: Any, tokenizer: Any, variables: Mapping[str, Any] | None) -> str:
    """SHA-256 of the chat template and its variables."""
    return _digest([getattr(processor, "chat_template", None), tokenizer.chat_template, variables])


def _tokenizer(processor: Any) -> str:
    tokenizer = getattr(processor, "tokenizer", processor)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return tokenizer.name_or_path if backend is None else backend.to_str()


def _plain(image_processor: Any) -> Any:
    return None if image_processor is None else image_processor.to_dict()


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()

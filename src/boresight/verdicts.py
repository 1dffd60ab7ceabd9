"""Results of checks of a model, kept by what they depend on, so that a model is checked once and not at every start.

They lie in memory, and as small JSON files beside transformers' cache of models. Several processes may read and write them at once: a file
is there completely or not at all, and equal keys have equal results.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.constants import HF_HOME
from torch import nn

from boresight.files import write_whole
from boresight.modules import unwrap

_known: dict[str, dict[str, Any]] = {}


def folder() -> Path:
    """Where results are kept."""
    return Path(HF_HOME) / "boresight" / "verified"


def key_of(model: nn.Module, *further: str) -> str | None:
    """What a check of a model depends on, as a digest: its class and that class's source, configuration, adapters, trained weights,
    precision, device, and the versions of the libraries and of boresight's own source. None for a model that was altered after it was
    built, whose results are not kept.
    """
    inner = unwrap(model)
    if is_altered(inner):
        return None
    config = {
        name: value for name, value in inner.config.to_dict().items() if name not in ("_name_or_path", "architectures")
    }
    adapters = getattr(model, "peft_config", None)
    weights = [(name, weight.dtype, weight.requires_grad) for name, weight in inner.named_parameters()]
    parts = (
        _source(type(inner)),
        json.dumps(config, sort_keys=True, default=str),
        str(inner.get_decoder().config._attn_implementation).removeprefix("branch_"),
        str(weights),
        str(sorted((name, str(value)) for name, value in adapters.items())) if adapters else "",
        next(inner.parameters()).device.type,
        torch.__version__,
        transformers.__version__,
        own_source(),
        *further,
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def is_altered(model: nn.Module) -> bool:
    """Whether a module of the model has a forward or hooks of its own, so that its class and configuration do not say what it computes."""
    return any(
        "forward" in module.__dict__ or module._forward_hooks or module._forward_pre_hooks for module in model.modules()
    )


@cache
def _source(kind: type) -> str:
    source = Path(inspect.getfile(kind)).read_bytes()
    return f"{kind.__module__}.{kind.__qualname__} {hashlib.sha256(source).hexdigest()}"


@cache
def own_source() -> str:
    """A digest of boresight's source that computes log-probabilities and samples."""
    here = Path(__file__).parent
    files = sorted(
        [
            *here.glob("*.py"),
            *(here / "model").glob("*.py"),
            *(here / "rollout").glob("*.py"),
            *(here / "data").glob("*.py"),
        ]
    )
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()


def kept(key: str | None) -> dict[str, Any] | None:
    """The result under a key; None if there is none."""
    if key is None or key in _known:
        return _known.get(key) if key else None
    try:
        _known[key] = json.loads((folder() / f"{key}.json").read_text())
    except (OSError, ValueError):  # there is none, or a disk failed
        return None
    return _known[key]


def keep(key: str | None, result: dict[str, Any]) -> None:
    """Keep a result. A folder that cannot be written costs the next process the time of the check, and nothing else."""
    if key is None:
        return
    _known[key] = result
    try:
        write_whole(folder() / f"{key}.json", json.dumps(result))
    except OSError:
        return

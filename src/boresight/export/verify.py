"""Whether a saved folder is the model that was trained: its log-probabilities when plain transformers loads it, and its tensors by part."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import cached_file

from boresight.data.encode import Encoder
from boresight.data.schema import read_row
from boresight.errors import ModelError, UserError
from boresight.families import Part, family_of
from boresight.model.load import model_facts
from boresight.model.quantised import quantised_options, settle
from boresight.modules import evaluating, matching_arguments, unwrap
from boresight.own_forward import is_exact
from boresight.types import Prompt

QUESTIONS = ("What is in the image?", "Name three colours.")
"""The first is asked with an image."""
EXACT, ROUNDED = 1e-4, 0.25
"""Largest difference of log-probabilities in nats: of the same float32 weights, and of weights that were rounded to 16 bits."""


@dataclass(frozen=True, slots=True)
class Verified:
    """A folder that was loaded anew."""

    gap: float
    """Largest difference of log-probabilities from the trained model's, in nats."""
    bound: float
    num_tokens: int
    """Tokens that were compared."""

    def __str__(self) -> str:
        return (
            f"plain transformers loads it; log-probabilities of {self.num_tokens} tokens differ by {self.gap:.1e} at most "
            f"(≤ {self.bound:g})"
        )


@dataclass(frozen=True, slots=True)
class Probe:
    """A prompt that a saved folder is compared on."""

    prompt: Prompt
    inputs: Mapping[str, Tensor]
    """The inputs of a plain forward, [1, …], on the CPU."""


def make_probes(model: nn.Module, processor: Any) -> list[Probe]:
    """One for each of `QUESTIONS`. A prompt that the processor cannot prepare is left out."""
    facts = model_facts(model, processor)
    encoder = Encoder(processor, facts=facts)
    found: list[Probe] = []
    for place, question in enumerate(QUESTIONS):
        image = {"image": _gradient()} if place == 0 else {}
        has_template = getattr(processor, "chat_template", None)
        prompt = [{"role": "user", "content": question}] if has_template else question
        try:
            encoded = encoder.prompt(read_row({"prompt": prompt, **image}, place))
        except UserError:
            continue
        ids, types = encoded.ids[None], encoded.token_types[None]
        names = dict.fromkeys(family_of(unwrap(model).config.model_type).token_types, types)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **encoded.vision}
        found.append(Probe(encoded, inputs | matching_arguments(unwrap(model).forward, names)))
    return found


@torch.no_grad()
def log_probs(model: nn.Module, probes: Sequence[Probe]) -> list[Tensor]:
    """[T] for each probe: the log-probability of each token after the first, in float32 on the CPU."""
    device = next(model.parameters()).device
    found = []
    with evaluating(model):
        for probe in probes:
            moved = {name: value.to(device) for name, value in probe.inputs.items()}
            logits = model(**moved, use_cache=False).logits[0, :-1].float()
            found.append(logits.log_softmax(-1).gather(-1, moved["input_ids"][0, 1:, None])[:, 0].cpu())
    return found


def verify_folder(
    folder: Path,
    probes: Sequence[Probe],
    expected: Sequence[Tensor],
    *,
    trust_remote_code: bool = False,
    quantization_config: Any = None,
    coarse: bool = False,
) -> Verified:
    """Load a folder as anyone would, and compare it with the model that it should be.

    Args:
        probes: as `make_probes` returns them.
        expected: `log_probs` of that model.
        quantization_config: of the base, where the folder holds the adapter of a quantised one.
        coarse: whether `expected` are those of a model that rounds what it computes.

    Raises:
        ModelError: it cannot be loaded, or is another model; the message names the difference and its bound.
    """
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if quantization_config is not None:
        base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
        options = quantised_options(base, {**options, "quantization_config": quantization_config})
    try:
        loaded = settle(AutoModelForImageTextToText.from_pretrained(folder, **options))
        AutoProcessor.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"{folder} cannot be loaded by plain transformers: {error}") from error
    found = log_probs(loaded, probes)
    gap = max((float((one - other).abs().max()) for one, other in zip(found, expected, strict=True)), default=0.0)
    result = Verified(gap, EXACT if is_exact(loaded) and not coarse else ROUNDED, sum(map(len, found)))
    if not gap <= result.bound:
        raise ModelError(
            f"{folder} is not the model that was trained: log-probabilities differ by {gap:.2g} nats, where at most {result.bound:g} are "
            "expected. Do not use it, and report this model."
        )
    return result


# ---- Tensors by part -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Changed:
    """The tensors of one part of a saved model that differ from those of the model that training began with."""

    changed: int
    total: int


def changed_tensors(base: str | Path, folder: Path) -> dict[Part, Changed] | None:
    """How many tensors of each part changed, from the files alone; None where they do not have the same tensors.

    Args:
        base: a folder or a hub id.
    """
    before, after = tensor_files(base), tensor_files(folder)
    if not before or before.keys() != after.keys():
        return None
    family = family_of(json.loads((folder / "config.json").read_text())["model_type"])
    counts: dict[Part, list[int]] = {}
    for name in sorted(after):
        part = counts.setdefault(family.part(name), [0, 0])
        part[0] += not _same(_read(before[name], name), _read(after[name], name))
        part[1] += 1
    return {part: Changed(*counts[part]) for part in sorted(counts)}


def tensor_files(folder: str | Path) -> Mapping[str, Path]:
    """Tensor name → the safetensors file that holds it; empty where there is none."""
    home = Path(folder).expanduser()
    if not home.is_dir():
        config = cached_file(str(folder), "config.json", _raise_exceptions_for_missing_entries=False)
        home = Path(config).parent if config else home
    found: dict[str, Path] = {}
    for path in sorted(home.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found |= dict.fromkeys(file.keys(), path)
    return found


def shown_changes(changes: Mapping[Part, Changed]) -> str:
    """A sentence part; a part without a changed tensor is called untouched."""
    return ", ".join(
        f"{part} {'untouched' if not each.changed else f'{each.changed} of {each.total} tensors changed'}"
        for part, each in changes.items()
    )


def _read(path: Path, name: str) -> Tensor:
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(name)


def _same(before: Tensor, after: Tensor) -> bool:
    return before.shape == after.shape and torch.equal(before.to(after.dtype), after)


def _gradient() -> Image.Image:
    """An image that no resizing makes uniform."""
    return Image.linear_gradient("L").resize((112, 112)).convert("RGB")

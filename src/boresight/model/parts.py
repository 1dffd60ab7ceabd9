"""A plan by part on a model: adapters where they were asked for, weights trained or frozen, and what came of it.

PEFT finds the layers of an adapter by the ends of their names, and vision towers use the language models' names: `q_proj` is in both. So
a name means the language model's layers unless the plan, or the name itself, says otherwise.

A part that is trained in full beside an adapter goes into PEFT's `modules_to_save`: its trained copy is saved with the adapter, and the
model with its adapter off is still the model before training.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from boresight.errors import ConfigError
from boresight.families import Family, Part, family_of
from boresight.model.part_options import PARTS, PartPlan
from boresight.modules import is_quantised, num_bytes, num_weights, unwrap

NOT_LANGUAGE: tuple[Part, ...] = ("vision", "projector")


# ---- Where adapters go ---------------------------------------------------------------------------------------------------------------


def restricted(config: PeftConfig, model: nn.Module) -> PeftConfig:
    """A copy of an adapter's configuration whose layers are the language model's, unless a name asks for others.

    A name (or pattern) asks for others if it contains the name of a vision module or projector, or if no layer of the language model has
    it. Without `target_modules`, every linear layer of the language model is meant; `"all-linear"` means those of all parts, as in PEFT.
    """
    family = family_of(unwrap(model).config.model_type)
    config = copy.deepcopy(config)
    if not hasattr(config, "target_modules"):
        return config
    named: Any = config
    if named.target_modules is None and not getattr(named, "target_parameters", None):
        return _excluding(_all_linear(config), [family.names_of(*NOT_LANGUAGE)])
    entries = [entry for entry in targets(config) if entry != "all-linear"]
    found = {
        entry: {family.part(name) for name, _ in model.named_modules() if matches(entry, name)} for entry in entries
    }
    shared = [
        entry
        for entry, parts in found.items()
        if len(parts) > 1 and "language" in parts and not family.names_a_part(entry)
    ]
    if not shared:
        return config
    return _excluding(config, [f"(?=(?:{family.names_of(*NOT_LANGUAGE)})$)(?:{'|'.join(map(_pattern, shared))})"])


def left_out(config: PeftConfig, model: nn.Module) -> dict[str, int]:
    """Entry of `target_modules` → number of layers outside the language model that have this name too and get no adapter."""
    entries = set(targets(config)) - {"all-linear"}
    family = family_of(unwrap(model).config.model_type)
    layers = [name for name, module in unwrap(model).named_modules() if isinstance(module, nn.Linear)]
    counts = Counter(
        entry
        for name in layers
        if family.part(name) != "language"
        for entry in entries
        if matches(entry, name) and not family.names_a_part(entry)
    )
    return dict(sorted(counts.items()))


def targets(config: PeftConfig) -> tuple[str, ...]:
    """The entries of `target_modules`: names of layers, or one pattern."""
    found: Any = getattr(config, "target_modules", None)
    return (found,) if isinstance(found, str) else tuple(sorted(found or ()))


def matches(entry: str, name: str) -> bool:
    """Whether PEFT takes the module of this name for a target of this entry: the end of a name, or a pattern for the whole of it."""
    return name == entry or name.endswith(f".{entry}") or (is_pattern(entry) and re.fullmatch(entry, name) is not None)


def is_pattern(entry: str) -> bool:
    """Whether an entry of `target_modules` is a regular expression, not a name."""
    return re.fullmatch(r"[\w.-]+", entry) is None


def _pattern(entry: str) -> str:
    return entry if is_pattern(entry) else rf"(?:.*\.)?{re.escape(entry)}"


def _all_linear(config: PeftConfig) -> PeftConfig:
    named: Any = config
    named.target_modules = "all-linear"
    return config


def _excluding(config: PeftConfig, patterns: Iterable[str]) -> PeftConfig:
    """The configuration with further patterns of names that get no adapter."""
    named: Any = config
    own = named.exclude_modules or ()
    kept = [f"(?:{own})"] if isinstance(own, str) else [_pattern(entry) for entry in sorted(own)]
    named.exclude_modules = "|".join([*kept, *patterns])
    return config


def planned(config: PeftConfig, plan: PartPlan, model: nn.Module) -> PeftConfig:
    """A copy of an adapter's configuration under a plan: only layers of adapted parts, and the weights of full parts saved with it.

    Raises:
        ConfigError: the adapter has no layers, or a part that is trained in full is quantised.
    """
    config = copy.deepcopy(config)
    named: Any = config
    if not hasattr(config, "target_modules"):
        raise ConfigError(f"train=…=lora needs LoRA or another adapter of layers; {type(config).__name__} is neither.")
    if named.target_modules is None and not getattr(named, "target_parameters", None):
        _all_linear(config)
    family = family_of(unwrap(model).config.model_type)
    others: list[Part] = [part for part in PARTS if part not in plan.parts("lora")]
    if others:
        _excluding(config, [family.names_of(*others)])
    if full := plan.parts("full"):
        saved = list(_holders(model, full, family))
        named.modules_to_save = [*(named.modules_to_save or ()), *saved]
        tied: Any = getattr(unwrap(model), "all_tied_weights_keys", None) or {}
        if any(name.rpartition(".")[0] in saved for name in tied):
            named.ensure_weight_tying = True
    return config


def _holders(model: nn.Module, parts: Sequence[Part], family: Family) -> Iterator[str]:
    """The names of the topmost modules that hold weights of their own, all of whose weights belong to these parts."""

    def walk(name: str, module: nn.Module) -> Iterator[str]:
        weights = dict(module.named_parameters(prefix=name))
        for key, weight in weights.items():
            check_float(key, weight, trained=family.part(key) in parts)
        if (
            name
            and any(True for _ in module.parameters(recurse=False))
            and all(family.part(key) in parts for key in weights)
        ):
            yield name
            return
        for child, inner in module.named_children():
            yield from walk(f"{name}.{child}" if name else child, inner)

    yield from walk("", model)


def check_float(name: str, weight: nn.Parameter, *, trained: bool) -> None:
    """Raise `ConfigError` if a weight is trained in full but is quantised."""
    if trained and is_quantised(weight):
        raise ConfigError(
            f"train: {name} is quantised ({weight.dtype}), so it cannot be trained in full: write lora for its part."
        )


def check_plan(model: nn.Module, plan: PartPlan) -> None:
    """Check that every adapted part has an adapter, and that no frozen one has a weight that is trained.

    Raises:
        ConfigError: with the part and the way out.
    """
    family = family_of(unwrap(model).config.model_type)
    adapters = adapted_modules(model)
    for part in plan.parts("lora"):
        if not adapters[part]:
            raise ConfigError(
                f"train: {part}=lora finds no layer that can take an adapter in {part}. Name one of its layers in target_modules "
                f"(--lora_target_modules), leave target_modules out, or write {part}=full."
            )
    for part in plan.parts("frozen"):
        if found := [
            name for name, weight in model.named_parameters() if weight.requires_grad and family.part(name) == part
        ]:
            raise ConfigError(
                f"train freezes {part}, but peft_config trains {found[0]} ({len(found)} tensors there): change modules_to_save or "
                f"target_parameters, or write {part}=lora."
            )


# ---- What is trained -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PartSummary:
    """What is trained in one part of a model."""

    part: Part
    how: str
    """frozen, lora, full, or a mixture such as lora + full."""
    num_weights: int
    num_trainable: int
    weight_bytes: int
    gradient_bytes: int
    adapters: Mapping[str, int]
    """The end of a module's name → number of modules of that name with an adapter."""


def summaries(model: nn.Module) -> list[PartSummary]:
    """What is trained in each part, as the weights themselves say."""
    family = family_of(unwrap(model).config.model_type)
    adapters = adapted_modules(model)
    found = {part: PartSummary(part, "frozen", 0, 0, 0, 0, adapters[part]) for part in PARTS}
    own_full, own_lora = set[Part](), set[Part]()
    full = trained_in_full(model)
    for name, weight in model.named_parameters():
        part, size = family.part(name), num_bytes(weight)
        before = found[part]
        found[part] = replace(
            before,
            num_weights=before.num_weights + num_weights(weight),
            weight_bytes=before.weight_bytes + size,
            num_trainable=before.num_trainable + weight.numel() * weight.requires_grad,
            gradient_bytes=before.gradient_bytes + size * weight.requires_grad,
        )
        if weight.requires_grad:
            (own_full if id(weight) in full else own_lora).add(part)
    return [
        replace(found[part], how=_how(part in own_lora, part in own_full)) for part in PARTS if found[part].num_weights
    ]


def _how(adapted: bool, full: bool) -> str:
    return " + ".join([name for name, there in (("lora", adapted), ("full", full)) if there]) or "frozen"


def trained_in_full(model: nn.Module) -> set[int]:
    """The identities of the trained weights that no adapter brought into its layer."""
    adapters = {
        id(weight)
        for module in model.modules()
        if isinstance(module, BaseTunerLayer)
        for name, weight in module.named_parameters()  # pyright: ignore[reportAttributeAccessIssue]
        if not name.startswith("base_layer.")
    }
    return {id(weight) for weight in model.parameters() if weight.requires_grad} - adapters


def adapted_modules(model: nn.Module) -> dict[Part, dict[str, int]]:
    """Part → the last word of a module's name → number of modules of that name with an adapter."""
    family = family_of(unwrap(model).config.model_type)
    counts: dict[Part, Counter[str]] = {part: Counter() for part in PARTS}
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            counts[family.part(name)][_word(name)] += 1
    return {part: dict(sorted(words.items())) for part, words in counts.items()}


def _word(name: str) -> str:
    """The end of a name from its last word on: `mlp.0` for a numbered module."""
    words = name.split(".")
    place = next((index for index in range(len(words) - 1, -1, -1) if not words[index].isdigit()), 0)
    return ".".join(words[place:])

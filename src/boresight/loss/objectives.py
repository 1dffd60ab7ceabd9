"""Every loss as a row of data: its functions, the options that it reads, and its paper.

A new loss is one pure function and one row here. A row names its functions, which `policy_loss` and `preference_loss` look up when they
compute; it may also hold a function itself. This module does not import torch, because the command line and the documentation read it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal, TypeVar

from boresight.errors import ConfigError, nearest
from boresight.options import declarations

Function = str | Callable[..., Any]
"""A function's name in the module of its kind, or the function itself."""
Level = Literal["token", "sequence", "sequence_token", "sequence_sum"]
"""Values of `importance_sampling_level`: the keys of `ratio.RATIOS`."""
Entry = TypeVar("Entry")


@dataclass(frozen=True, slots=True)
class Objective:
    """A policy-gradient objective: a surrogate, an aggregate, and the ratios that it is defined for."""

    surrogate: Function
    """In `surrogate.py`: ``(Terms, PolicyLossOptions) -> Float[Tensor, "B T"]``."""
    aggregate: str
    """A key of `aggregate.AGGREGATES`."""
    levels: tuple[Level, ...]
    """The ratios that the row is defined for, the paper's own first."""
    reads: frozenset[str]
    """Options that have an effect on this row and not on every row."""
    source: str
    """The paper, for the documentation."""
    diagnostics: Function | None = None
    """In `diagnostics.py`: ``(Terms, PolicyLossOptions) -> dict[str, Float[Tensor, "B T"]]``, to be logged under TRL's names."""
    per_sequence: bool = False
    """Whether the diagnostics are one value per completion, so that each completion has the same weight in their mean."""
    corrects_itself: bool = False
    """Whether the surrogate applies the sampler correction itself."""


@dataclass(frozen=True, slots=True)
class Preference:
    """A loss of pairs."""

    term: Function
    """In `preference_terms.py`: ``(Pairs, PreferenceLossOptions) -> Float[Tensor, "N"]``."""
    reads: frozenset[str]
    """Options that have an effect on this row and not on every row."""
    source: str
    """The paper, for the documentation."""
    is_coupled: bool = False
    """Whether a pair's loss depends on the other pairs of the optimizer step."""


CLIP = frozenset({"epsilon", "epsilon_high", "delta"})
SAPO = frozenset({"sapo_temperature_pos", "sapo_temperature_neg"})
VESPO = frozenset({"vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg"})

OBJECTIVES: dict[str, Objective] = {
    "grpo": Objective(
        surrogate="clipped",
        aggregate="sequence_mean",
        levels=("token", "sequence", "sequence_token", "sequence_sum"),
        reads=CLIP,
        diagnostics="clipped_shares",
        source='DeepSeekMath, arXiv 2402.03300; with `importance_sampling_level="sequence"` GSPO, arXiv 2507.18071',
    ),
    "bnpo": Objective(
        surrogate="clipped",
        aggregate="token_mean",
        levels=("token",),
        reads=CLIP,
        diagnostics="clipped_shares",
        source="the mean over tokens of DAPO, arXiv 2503.14476, under TRL's name",
    ),
    "dr_grpo": Objective(
        surrogate="clipped",
        aggregate="constant",
        levels=("token",),
        reads=CLIP,
        diagnostics="clipped_shares",
        source="Dr. GRPO, arXiv 2503.20783",
    ),
    "dapo": Objective(
        surrogate="clipped",
        aggregate="token_mean",
        levels=("token",),
        reads=CLIP,
        diagnostics="clipped_shares",
        source="DAPO, arXiv 2503.14476",
    ),
    "luspo": Objective(
        surrogate="clipped",
        aggregate="sequence_sum",
        levels=("sequence", "sequence_token"),
        reads=CLIP,
        diagnostics="clipped_shares",
        source="LUSPO, arXiv 2602.05261",
    ),
    "rloo": Objective(
        surrogate="clipped",
        aggregate="sequence_mean",
        levels=("sequence_sum",),
        reads=CLIP,
        diagnostics="clipped_shares",
        source="Back to Basics, arXiv 2402.14740",
    ),
    "cispo": Objective(
        surrogate="cispo",
        aggregate="token_mean",
        levels=("token",),
        reads=frozenset({"epsilon_high"}),
        diagnostics="cispo_share",
        source="MiniMax-M1, arXiv 2506.13585; its cap: ScaleRL, arXiv 2510.13786",
    ),
    "sapo": Objective(
        surrogate="sapo",
        aggregate="sequence_mean",
        levels=("token", "sequence", "sequence_token"),
        reads=SAPO,
        source="SAPO, arXiv 2511.20347",
    ),
    "gmpo": Objective(
        surrogate="gmpo",
        aggregate="sequence_mean",
        levels=("token",),
        reads=frozenset({"gmpo_epsilon"}),
        diagnostics="gmpo_shares",
        source="GMPO, arXiv 2507.20673",
    ),
    "vespo": Objective(
        surrogate="vespo",
        aggregate="token_mean",
        levels=("token",),
        reads=VESPO,
        diagnostics="vespo_weights",
        source="VESPO, arXiv 2602.10693",
        per_sequence=True,
        corrects_itself=True,
    ),
}
"""`loss_type` of `GRPOConfig` → objective."""

BY_MARGIN, SMOOTHED = frozenset({"f_divergence_type"}), frozenset({"label_smoothing"})

PREFERENCES: dict[str, Preference] = {
    "sigmoid": Preference("sigmoid", BY_MARGIN | SMOOTHED, "DPO, arXiv 2305.18290"),
    "sigmoid_norm": Preference(
        "sigmoid_norm", BY_MARGIN | SMOOTHED, "DPO of per-token means: Tülu 3, arXiv 2411.15124"
    ),
    "hinge": Preference("hinge", BY_MARGIN, "SLiC-HF, arXiv 2305.10425; RSO, arXiv 2309.06657"),
    "ipo": Preference("ipo", BY_MARGIN, "IPO, arXiv 2310.12036"),
    "robust": Preference("robust", BY_MARGIN | SMOOTHED, "Robust DPO, arXiv 2403.00409"),
    "exo_pair": Preference("exo_pair", BY_MARGIN | SMOOTHED, "EXO, arXiv 2402.00856"),
    "discopop": Preference("discopop", BY_MARGIN | {"discopop_tau"}, "DiscoPOP, arXiv 2406.08414"),
    "bco_pair": Preference("bco_pair", frozenset({"bco_shift"}), "BCO, arXiv 2404.04656"),
    "nca_pair": Preference("nca_pair", frozenset(), "NCA, arXiv 2402.05369"),
    "sppo_hard": Preference("sppo_hard", frozenset(), "SPPO, arXiv 2405.00675"),
    "apo_zero": Preference("apo_zero", frozenset(), "APO, arXiv 2408.06266"),
    "apo_down": Preference("apo_down", frozenset(), "APO, arXiv 2408.06266"),
    "sft": Preference("sft", BY_MARGIN, "the generation loss of MPO, arXiv 2411.10442"),
    "aot": Preference("aot", SMOOTHED, "AOT, arXiv 2406.05882", is_coupled=True),
    "aot_unpaired": Preference("aot_unpaired", SMOOTHED, "AOT, arXiv 2406.05882", is_coupled=True),
}
"""`loss_type` of `DPOConfig` → loss of pairs."""


def row_of(table: Mapping[str, Entry], name: str, option: str) -> Entry:
    """A row by its name.

    Raises:
        ConfigError: there is no such row; the message suggests the nearest name.
    """
    if name not in table:
        raise ConfigError(f"{option}={name!r} is not one of {', '.join(map(repr, table))}.{nearest(name, table)}")
    return table[name]


def function_of(function: Function, module: ModuleType) -> Callable[..., Any]:
    """The function that a row names.

    Args:
        function: its name, or the function itself.
        module: the module in which a name is looked up.

    Raises:
        ConfigError: the module has no such function; the message suggests the nearest name.
    """
    if not isinstance(function, str):
        return function
    found = getattr(module, function, None)
    if not callable(found):
        known = [
            name
            for name, value in vars(module).items()
            if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
        ]
        raise ConfigError(
            f"{module.__name__} has no function {function!r}, which a loss names.{nearest(function, known)} It has {', '.join(known)}."
        )
    return found


def check_read(
    config: object,
    options: type,
    table: Mapping[str, Objective] | Mapping[str, Preference],
    chosen: Collection[str],
) -> None:
    """Refuse options that no chosen row reads.

    Args:
        config: the configuration with the values.
        options: the class that declares the options and their defaults.
        table: the rows.
        chosen: names of the chosen rows.

    Raises:
        ConfigError: an option is set and no chosen row reads it; the message names the rows that do.
    """
    for declared in declarations(options):
        readers = [name for name, row in table.items() if declared.name in row.reads]
        if readers and not set(readers) & set(chosen) and getattr(config, declared.name) != declared.default:
            raise ConfigError(
                f"{declared.name} has no effect with loss_type={', '.join(map(repr, chosen))}: unset it, or use one of "
                f"{', '.join(readers)}."
            )

"""The layout of a model: the fastest whose numbers are those of its own forward."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from torch import nn
from transformers import PreTrainedModel

from boresight import verdicts
from boresight.errors import ConfigError, ModelError
from boresight.model.layouts import Layout, RowsLayout, SharedLayout, takes_features, why_not_shared
from boresight.model.plain import PlainLayout
from boresight.model.verification import (
    LADDER,
    Candidate,
    Forward,
    Oracle,
    Verification,
    as_record,
    from_record,
    verify,
)
from boresight.modules import evaluating, unwrap
from boresight.types import ExampleSource

logger = logging.getLogger(__name__)

NAMES = ("auto", "shared", "rows", "plain")


def build_layout(model: PreTrainedModel, name: str, *, pad_id: int) -> Layout:
    """The layout of a name.

    Raises:
        ModelError: the model's structure does not allow it.
    """
    if name == "plain":
        return PlainLayout(model)
    if not takes_features(model) and name == "rows":
        raise ModelError(f"{type(model).__name__} takes no image features (mm_encoder_outputs): use layout='plain'.")
    if name == "rows":
        return RowsLayout(model, pad_id=pad_id)
    if (reason := why_not_shared(model)) is not None:
        raise ConfigError(f"layout='shared' cannot serve {type(model).__name__}: {reason}. Use layout='auto'.")
    return SharedLayout(model)


def choose(
    model: nn.Module, wanted: str, examples: ExampleSource | None, attempt: Callable[[Candidate], Forward]
) -> Verification:
    """The layout for a model, verified on made-up groups, or as verified before for this class, configuration and versions.

    Args:
        model: as loaded, or wrapped by PEFT.
        wanted: an option's value.
        examples: makes the groups. None: nothing is verified; structure alone decides.
        attempt: the forward of a candidate.

    Raises:
        ConfigError: the layout is unknown, or was asked for by name and does not give the model's own numbers.
        ModelError: no layout gives them.
    """
    if wanted not in NAMES:
        raise ConfigError(f"layout={wanted!r} is not one of {', '.join(map(repr, NAMES))}.")
    inner = unwrap(model)
    obstacle = why_not_shared(inner)
    if wanted == "shared" and obstacle is not None:
        raise ConfigError(f"layout='shared' cannot serve {type(inner).__name__}: {obstacle}. Use layout='auto'.")
    if examples is None:
        found = _by_structure(inner, wanted, obstacle)
    else:
        found = _verified(model, wanted, examples, obstacle, attempt)
    if wanted == "auto" and found.reason:
        logger.warning("%s", _says(type(inner).__name__, found))
    return found


def _says(name: str, found: Verification) -> str:
    how = {
        ("shared", False): "shares prompts one group at a time",
        ("rows", True): "runs one row per completion",
        ("plain", True): "runs its own forward for every completion, images included",
    }[found.layout, found.joins]
    return f"{name} {how}: {found.reason.rstrip('.')}."


def _by_structure(model: PreTrainedModel, wanted: str, obstacle: str | None) -> Verification:
    if wanted != "auto":
        return Verification(wanted, True, "", ())  # pyright: ignore[reportArgumentType]
    if obstacle is None:
        return Verification("shared", True, "", ())
    return Verification("rows" if takes_features(model) else "plain", True, obstacle, ())


def _verified(
    model: nn.Module,
    wanted: str,
    examples: ExampleSource,
    obstacle: str | None,
    attempt: Callable[[Candidate], Forward],
) -> Verification:
    key = verdicts.key_of(model, examples.key, wanted)
    if (record := verdicts.kept(key)) is not None:
        return from_record(record)
    found = verified_now(model, examples, attempt, wanted=wanted, obstacle=obstacle)
    verdicts.keep(key, as_record(found))
    return found


def verified_now(
    model: nn.Module,
    examples: ExampleSource,
    attempt: Callable[[Candidate], Forward],
    *,
    wanted: str = "auto",
    obstacle: str | None = None,
) -> Verification:
    """As `choose`, without looking at earlier results."""
    candidates: Sequence[Candidate] = [each for each in LADDER if wanted in ("auto", each.layout)]
    with evaluating(model):
        oracle = Oracle(model, examples.make())
        try:
            return verify(oracle, attempt, candidates=candidates, obstacle=obstacle)
        except ModelError as error:
            if wanted in ("auto", "plain"):
                raise
            raise ConfigError(f"layout={wanted!r} cannot be used: {error} Use layout='auto'.") from error

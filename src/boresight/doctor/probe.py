"""Checks of a model before training, on made-up images: all of boresight's ways to compute a number must agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from rich.text import Text
from torch import nn

from boresight.data.encode import Encoder
from boresight.data.made_up import example_source
from boresight.errors import UserError
from boresight.model.choice import verified_now
from boresight.model.forward import GroupForward
from boresight.model.layouts import why_not_shared
from boresight.model.load import load_model, load_processor, model_facts
from boresight.model.verification import Check, apart, at_most, bounds_of
from boresight.modules import evaluating, unwrap
from boresight.rollout.choice import SAYS, choose_sampling
from boresight.types import ExampleSource, Group, LayoutName, ModelFacts


@dataclass(frozen=True, slots=True)
class Report:
    """The results of a probe; rich prints them as a table."""

    model: str
    layout: LayoutName
    """The layout that `layout="auto"` chooses."""
    reason: str
    """Why it is chosen."""
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every required check passed."""
        return all(check.passed for check in self.checks if check.required)

    def __rich__(self) -> Table:
        table = Table(title=Text(f"{self.model}: layout '{self.layout}', {self.reason}"), title_justify="left")
        for column in ("check", "result", "measured", "required"):
            table.add_column(column, overflow="fold")
        for check in self.checks:
            colour = "" if check.passed else "red" if check.required else "yellow"
            # Text, not markup: a token may be called [IMG].
            table.add_row(*map(Text, (check.name, check.result, check.figure, check.bound)), style=colour)
        return table


def probe(model: str | Path | nn.Module, processor: Any = None) -> Report:
    """Run all checks on a model: those that choose its layout at the start of training, and sampling. Earlier results are not used.

    Args:
        model: a hub id or folder, loaded in float32 so that the bounds are tight; or a loaded model, which is not changed.
        processor: a processor or tokenizer; None loads the one in the model's folder.

    Raises:
        ModelError: the model or processor does not exist, or names no stop token.
        DataError: the processor cannot prepare a prompt with an image.
    """
    loaded = load_model(model) if isinstance(model, nn.Module) else load_model(model, dtype="float32")
    if not isinstance(model, nn.Module) and (
        accelerator := torch.accelerator.current_accelerator(check_available=True)
    ):
        loaded.to(accelerator)
    inner = unwrap(loaded)
    processor = load_processor(processor, inner, None if isinstance(model, nn.Module) else model)
    facts = model_facts(inner, processor)
    name = type(inner).__name__ if isinstance(model, nn.Module) else str(model)
    encoder = Encoder(processor, facts=facts)
    source = example_source(encoder)
    ids = _check_ids(facts, processor)
    with evaluating(loaded):
        examples = source.make()
        try:
            found = verified_now(
                loaded,
                ExampleSource(source.key, lambda: examples),
                lambda tried: GroupForward(loaded, facts, layout=tried.layout, joins=tried.joins),
                obstacle=why_not_shared(inner),
            )
        except UserError as error:
            return Report(name, "plain", str(error), (*ids, Check("a layout to train in", False, "none", "one")))
        forward = GroupForward(loaded, facts, layout=found.layout, joins=found.joins)
        checks = [*ids, *found.checks, *_check_images(forward, [example.group for example in examples])]
        checks.append(_check_sampling(loaded, forward, source))
    return Report(name, found.layout, found.reason or "whose numbers are those of its own forward", tuple(checks))


# ---- Checks --------------------------------------------------------------------------------------------------------------------------


def _check_ids(facts: ModelFacts, processor: Any) -> list[Check]:
    def names(ids: Sequence[int]) -> str:
        tokens = processor.tokenizer.convert_ids_to_tokens(list(ids[:8]))
        return " ".join(tokens) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "") or "none"

    placeholder = facts.image_token_id
    return [
        Check("stop ids", bool(facts.stop_ids), names(facts.stop_ids), "one or more"),
        Check(
            "ids that only the processor may place",
            placeholder in facts.modality_ids,
            names(facts.modality_ids),
            "the image placeholder among them",
        ),
    ]


def _check_images(forward: GroupForward, groups: Sequence[Group]) -> list[Check]:
    """Images of the same size in one call: a mixture of theirs would be wrong without an error."""
    one, other = [group for group in groups if group.prompt.images][:2]
    with torch.no_grad():
        together = forward([one, other, one]).logp
        alone = [forward([group]).logp for group in (one, other)]
    far = apart(together, torch.cat([*alone, alone[0]]))
    bound = bounds_of(forward.model).logp
    return [at_most("images of the same size are not confused: |Δ log-prob|", far, bound)]


def _check_sampling(model: nn.Module, forward: GroupForward, source: ExampleSource) -> Check:
    """Sample the made-up completions, one token after another."""
    features = forward.image_outputs if forward.takes_features else None
    try:
        sampling = choose_sampling(model, features, source, use_kept=False)
    except UserError as error:
        return Check("sampling", False, str(error), "the log-probabilities of its own forward")
    figure = SAYS[sampling.way] + (f", because {sampling.reason}" if sampling.reason else "")
    return Check("sampling", True, figure, "the log-probabilities of its own forward")

"""Checks of a model before training, on made-up images: all of boresight's ways to compute a number must agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn
from transformers import PreTrainedModel

from boresight.data.encode import Encoder
from boresight.data.schema import read_row
from boresight.errors import UserError
from boresight.families import family_of
from boresight.model.forward import GroupForward
from boresight.model.head import Head
from boresight.model.layouts import why_not_shared
from boresight.model.load import load_model, load_processor, model_facts
from boresight.modules import evaluating, matching_arguments, unwrap
from boresight.types import Completion, Group, LayoutName, ModelFacts, Prompt

LENGTHS = (5, 3)
"""The lengths in tokens of every made-up prompt's two completions."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """The largest difference allowed between two ways to compute the same number, by the precision of the weights."""

    logp: float
    """In nats."""
    gradient: float
    """Relative to a parameter's norm."""
    image: float = 1e-3
    """In nats: the smallest change of log-probabilities that another image must cause."""


FLOAT32 = Bounds(logp=1e-4, gradient=1e-3)
HALF = Bounds(logp=0.25, gradient=0.25, image=1e-2)


@dataclass(frozen=True, slots=True)
class Check:
    """One invariant of a model."""

    name: str
    passed: bool
    figure: str
    """What was measured."""
    bound: str
    """What is required."""
    required: bool = True
    """False where the model's layout does not need the check to pass."""

    @property
    def result(self) -> str:
        return "passed" if self.passed else "FAILED" if self.required else "failed, not needed"


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
    """Run all checks on a model: three prompts, two of them with images of the same size, and two completions of each.

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
    groups = _made_up_groups(processor, facts)
    bounds = FLOAT32 if next(inner.parameters()).dtype == torch.float32 else HALF
    with evaluating(loaded):
        obstacle = why_not_shared(inner)
        checks = [
            *_check_ids(facts, processor),
            _check_head(inner, groups[0], bounds),
            *_check_rows(loaded, facts, groups, bounds),
        ]
        shared: list[Check] = []
        is_tested = facts.family.shares
        if obstacle is None:
            shared = _check_shared(loaded, facts, groups, bounds, required=is_tested)
        layout: LayoutName = "shared" if obstacle is None and is_tested else "rows"
        checks += _check_images(GroupForward(loaded, facts, layout=layout), groups, bounds)
    return Report(name, layout, obstacle or _why(is_tested, shared), (*checks, *shared))


def _why(is_tested: bool, shared: Sequence[Check]) -> str:
    if is_tested:
        return "because boresight's tests cover its family in that layout"
    if all(check.passed for check in shared):
        return (
            "because boresight's tests do not cover its family; the checks below passed, so you can set layout='shared'"
        )
    return "because boresight's tests do not cover its family, and the shared layout failed the checks below"


# ---- Inputs --------------------------------------------------------------------------------------------------------


def _made_up_groups(processor: Any, facts: ModelFacts) -> list[Group]:
    """Three prompts with the same words: two with images of the same size, one with an image of another size."""
    encoder = Encoder(processor, facts=facts)
    generator = torch.Generator().manual_seed(0)
    ordinary = torch.tensor(
        sorted(set(range(min(facts.vocab_size, len(processor.tokenizer)))) - {*facts.modality_ids, *facts.stop_ids})
    )

    def completion(length: int) -> Completion:
        ids = ordinary[torch.randint(len(ordinary), (length,), generator=generator)]
        return Completion(ids, torch.ones(length, dtype=torch.bool), "")

    completions = tuple(completion(length) for length in LENGTHS)
    prompts = [_prompt(encoder, _noise(size, generator)) for size in ((112, 112), (112, 112), (224, 112))]
    return [Group(prompt, completions) for prompt in prompts]


def _noise(size: tuple[int, int], generator: torch.Generator) -> Image.Image:
    """Random blocks of colour. Unlike fine noise, they survive any resizing."""
    width, height = size
    pixels = torch.randint(0, 256, (4, 4, 3), dtype=torch.uint8, generator=generator)
    return Image.fromarray(pixels.numpy()).resize((width, height), Image.Resampling.NEAREST)


def _prompt(encoder: Encoder, image: Image.Image) -> Prompt:
    words = "What is in the image?"
    if getattr(encoder.processor, "chat_template", None):
        content = [{"type": "image"}, {"type": "text", "text": words}]
        return encoder.prompt(read_row({"prompt": [{"role": "user", "content": content}], "images": [image]}, 0))
    return encoder.prompt(read_row({"prompt": f"{encoder.texts.image_token}{words}", "images": [image]}, 0))


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


def _at_most(name: str, figure: float, bound: float, *, required: bool = True) -> Check:
    return Check(name, figure <= bound, f"{figure:.1e}", f"≤ {bound:.0e}", required)


@torch.no_grad()
def _check_head(model: PreTrainedModel, group: Group, bounds: Bounds) -> Check:
    """Compare boresight's chunked head with the logits of the model's own forward."""
    seen: list[Tensor] = []
    hook = model.base_model.register_forward_hook(
        lambda module, arguments, output: seen.append(output.last_hidden_state[0])
    )
    try:
        logits = model(**_plain_inputs(model, group, group.completions[0])).logits[0].float()
    finally:
        hook.remove()
    ours = Head.of(model).logits(seen[0])
    return _at_most(
        "head: |Δ log-prob| from the model's own logits",
        _apart(ours.log_softmax(-1), logits.log_softmax(-1)),
        bounds.logp,
    )


def _check_rows(model: nn.Module, facts: ModelFacts, groups: Sequence[Group], bounds: Bounds) -> list[Check]:
    """Compare the layout "rows" (ready image features, positions, padding) with one plain forward per completion."""
    inner = unwrap(model)
    with torch.no_grad():
        found = GroupForward(model, facts, layout="rows")(groups).logp
        expected = [_plain_logp(inner, group, completion) for group in groups for completion in group.completions]
    expected = nn.utils.rnn.pad_sequence(expected, True)
    return [_at_most("rows: |Δ log-prob| from plain forwards", _apart(found, expected), bounds.logp)]


def _check_shared(
    model: nn.Module, facts: ModelFacts, groups: Sequence[Group], bounds: Bounds, *, required: bool
) -> list[Check]:
    """Compare the shared layout with rows: log-probabilities, and gradients of the parameters small enough to keep twice."""
    try:
        found, gradients = _values_and_gradients(GroupForward(model, facts, layout="shared"), groups)
    except (UserError, RuntimeError, TypeError) as error:
        return [Check("shared: runs", False, str(error).splitlines()[0], "no error", required)]
    expected, wanted = _values_and_gradients(GroupForward(model, facts, layout="rows"), groups)
    checks = [_at_most("shared: |Δ log-prob| from rows", _apart(found, expected), bounds.logp, required=required)]
    if gradients:
        figure = _worst_gradient(gradients, wanted)
        checks.append(
            _at_most(
                f"shared: relative Δ of {len(gradients)} gradients from rows",
                figure,
                bounds.gradient,
                required=required,
            )
        )
    return checks


def _check_images(forward: GroupForward, groups: Sequence[Group], bounds: Bounds) -> list[Check]:
    one, other, _ = groups
    with torch.no_grad():
        together = forward([one, other, one]).logp
        alone = [forward([group]).logp for group in (one, other)]
    moved = _apart(alone[0], alone[1])
    return [
        Check("another image changes log-probs", moved >= bounds.image, f"{moved:.1e}", f"≥ {bounds.image:.0e}"),
        _at_most(
            "images of the same size are not confused: |Δ log-prob|",
            _apart(together, torch.cat([*alone, alone[0]])),
            bounds.logp,
        ),
    ]


# ---- Comparisons -----------------------------------------------------------------------------------------------------------------


def _apart(one: Tensor, other: Tensor) -> float:
    return (one - other).abs().max().item()


def _plain_inputs(model: PreTrainedModel, group: Group, completion: Completion) -> dict[str, Any]:
    """The inputs of a plain forward of the prompt and one completion, with the processor's own tensors."""
    prompt = group.prompt
    ids = torch.cat([prompt.ids, completion.ids])[None]
    types = torch.cat([prompt.token_types, torch.zeros_like(completion.ids)])[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **prompt.vision}
    names = family_of(model.config.model_type).token_types
    inputs |= matching_arguments(model.forward, dict.fromkeys(names, types))
    return {name: value.to(model.device) for name, value in inputs.items()} | {"use_cache": False}


def _plain_logp(model: PreTrainedModel, group: Group, completion: Completion) -> Tensor:
    """[C] of one plain forward with all its logits."""
    logits = model(**_plain_inputs(model, group, completion)).logits[0].float()
    ids = completion.ids.to(logits.device)
    return logits[-len(ids) - 1 : -1].log_softmax(-1).gather(-1, ids[:, None])[:, 0]


def _values_and_gradients(forward: GroupForward, groups: Sequence[Group]) -> tuple[Tensor, list[Tensor]]:
    """Log-probabilities, and the gradients of their weighted sum with respect to the trainable vectors (gains and biases)."""
    vectors = [parameter for parameter in forward.outer.parameters() if parameter.requires_grad and parameter.ndim == 1]
    logp = forward(groups).logp
    weights = torch.linspace(-1.0, 2.0, logp.numel(), device=logp.device).view_as(logp)
    found = torch.autograd.grad((logp * weights).sum(), vectors, allow_unused=True) if vectors else ()
    return logp.detach(), [
        torch.zeros_like(vector) if grad is None else grad for vector, grad in zip(vectors, found, strict=True)
    ]


def _worst_gradient(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference relative to a gradient's norm, or to a thousandth of the median norm if its own is smaller."""
    norms = torch.stack([gradient.norm() for gradient in expected])
    floor = 1e-3 * norms[norms > 0].median()
    apart = torch.stack([(one - other).norm() for one, other in zip(found, expected, strict=True)])
    return (apart / norms.clamp(min=floor)).max().item()

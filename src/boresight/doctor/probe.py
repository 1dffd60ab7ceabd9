"""Whether a model keeps what boresight promises of it: the invariants, run on made-up images."""

from __future__ import annotations

import inspect
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
from boresight.model.forward import PROVEN, GroupForward, why_not_shared
from boresight.model.head import Head
from boresight.model.load import load_model, load_processor, model_facts, unwrap
from boresight.model.reference import evaluating
from boresight.types import Completion, Group, LayoutName, ModelFacts, Prompt

LENGTHS = (5, 3)
"""Tokens of the two completions that every made-up prompt has."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How far two ways to the same number may be apart, by the precision of the weights."""

    logp: float
    """In nats."""
    gradient: float
    """Relative to a parameter's norm."""
    image: float = 1e-3
    """In nats: what another image changes at least."""


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
    """What it had to be."""
    required: bool = True
    """False where the layout that the model gets does not need it."""

    @property
    def result(self) -> str:
        return "passed" if self.passed else "FAILED" if self.required else "fails, not needed"


@dataclass(frozen=True, slots=True)
class Report:
    """What a probe found; rich prints it as a table."""

    model: str
    layout: LayoutName
    """What `layout="auto"` gives the model."""
    reason: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every check that the model needs holds."""
        return all(check.passed for check in self.checks if check.required)

    def __rich__(self) -> Table:
        table = Table(title=Text(f"{self.model}: layout '{self.layout}', {self.reason}"), title_justify="left")
        for column in ("check", "result", "found", "wanted"):
            table.add_column(column, overflow="fold")
        for check in self.checks:
            colour = "" if check.passed else "red" if check.required else "yellow"
            # Text, not markup: a token may be called [IMG].
            table.add_row(*map(Text, (check.name, check.result, check.figure, check.bound)), style=colour)
        return table


def probe(model: str | Path | nn.Module, processor: Any = None) -> Report:
    """Run the invariants on a model: two images of one size and one of another, two completions of each.

    Args:
        model: a hub id or folder, loaded in float32 so that the bounds are sharp; or a model as it is.
        processor: a processor or tokenizer; None loads the one that came with the model.

    Raises:
        ModelError: there is no such model or processor, or it names no stop token.
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
        proven = inner.config.model_type in PROVEN
        if obstacle is None:
            shared = _check_shared(loaded, facts, groups, bounds, required=proven)
        layout: LayoutName = "shared" if obstacle is None and proven else "rows"
        checks += _check_images(GroupForward(loaded, facts, layout=layout), groups, bounds)
    return Report(name, layout, obstacle or _why(proven, shared), (*checks, *shared))


def _why(proven: bool, shared: Sequence[Check]) -> str:
    if proven:
        return "its family is one of those that are tested to share"
    if all(check.passed for check in shared):
        return "its family is not one of those that are tested to share, but the probe finds that it can: set layout='shared'"
    return "its family is not one of those that are tested to share, and the probe finds that it cannot"


# ---- What the model is asked --------------------------------------------------------------------------------------------------------


def _made_up_groups(processor: Any, facts: ModelFacts) -> list[Group]:
    """Two images of one size under the same words, and one of another size."""
    encoder = Encoder(processor, facts=facts)
    draw = torch.Generator().manual_seed(0)
    ordinary = torch.tensor(
        sorted(set(range(min(facts.vocab_size, len(processor.tokenizer)))) - {*facts.modality_ids, *facts.stop_ids})
    )

    def completion(length: int) -> Completion:
        ids = ordinary[torch.randint(len(ordinary), (length,), generator=draw)]
        return Completion(ids, torch.ones(length, dtype=torch.bool), "")

    completions = tuple(completion(length) for length in LENGTHS)
    prompts = [_prompt(encoder, _noise(size, draw)) for size in ((112, 112), (112, 112), (224, 112))]
    return [Group(prompt, completions) for prompt in prompts]


def _noise(size: tuple[int, int], draw: torch.Generator) -> Image.Image:
    """Blocks of colour: unlike fine noise, they survive any resizing."""
    width, height = size
    pixels = torch.randint(0, 256, (4, 4, 3), dtype=torch.uint8, generator=draw)
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
            "the image's placeholder among them",
        ),
    ]


def _at_most(name: str, figure: float, bound: float, *, required: bool = True) -> Check:
    return Check(name, figure <= bound, f"{figure:.1e}", f"≤ {bound:.0e}", required)


@torch.no_grad()
def _check_head(model: PreTrainedModel, group: Group, bounds: Bounds) -> Check:
    """The head that we run in chunks against the logits of the model's own forward."""
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
        "head: |Δ log-prob| to the model's own logits",
        _apart(ours.log_softmax(-1), logits.log_softmax(-1)),
        bounds.logp,
    )


def _check_rows(model: nn.Module, facts: ModelFacts, groups: Sequence[Group], bounds: Bounds) -> list[Check]:
    """Image features handed over, positions and padding against one plain forward of each completion."""
    inner = unwrap(model)
    with torch.no_grad():
        found = GroupForward(model, facts, layout="rows")(groups).logp
        expected = [_plain_logp(inner, group, completion) for group in groups for completion in group.completions]
    expected = nn.utils.rnn.pad_sequence(expected, True)
    return [_at_most("rows: |Δ log-prob| to plain forwards", _apart(found, expected), bounds.logp)]


def _check_shared(
    model: nn.Module, facts: ModelFacts, groups: Sequence[Group], bounds: Bounds, *, required: bool
) -> list[Check]:
    """The shared layout against its twin: values, and gradients of what is small enough to keep twice."""
    try:
        found, gradients = _values_and_gradients(GroupForward(model, facts, layout="shared"), groups)
    except (UserError, RuntimeError, TypeError) as error:
        return [Check("shared: runs", False, str(error).splitlines()[0], "no error", required)]
    expected, twins = _values_and_gradients(GroupForward(model, facts, layout="rows"), groups)
    checks = [_at_most("shared: |Δ log-prob| to rows", _apart(found, expected), bounds.logp, required=required)]
    if gradients:
        figure = _worst_gradient(gradients, twins)
        checks.append(
            _at_most(f"shared: Δ of {len(gradients)} gradients, relative", figure, bounds.gradient, required=required)
        )
    return checks


def _check_images(forward: GroupForward, groups: Sequence[Group], bounds: Bounds) -> list[Check]:
    one, other, _ = groups
    with torch.no_grad():
        together = forward([one, other, one]).logp
        alone = [forward([group]).logp for group in (one, other)]
    moved = _apart(alone[0], alone[1])
    return [
        Check("another image moves log-probs", moved >= bounds.image, f"{moved:.1e}", f"≥ {bounds.image:.0e}"),
        _at_most(
            "images of one size are not confused: |Δ log-prob|",
            _apart(together, torch.cat([*alone, alone[0]])),
            bounds.logp,
        ),
    ]


# ---- What is compared ----------------------------------------------------------------------------------------------------------------


def _apart(one: Tensor, other: Tensor) -> float:
    return (one - other).abs().max().item()


def _plain_inputs(model: PreTrainedModel, group: Group, completion: Completion) -> dict[str, Any]:
    """What transformers takes for the prompt and one completion, the processor's own tensors with it."""
    prompt = group.prompt
    ids = torch.cat([prompt.ids, completion.ids])[None]
    types = torch.cat([prompt.token_types, torch.zeros_like(completion.ids)])[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **prompt.vision}
    accepts = inspect.signature(model.forward).parameters
    inputs |= {name: types for name in ("mm_token_type_ids", "token_type_ids") if name in accepts}
    return {name: value.to(model.device) for name, value in inputs.items()} | {"use_cache": False}


def _plain_logp(model: PreTrainedModel, group: Group, completion: Completion) -> Tensor:
    """[C] of one plain forward with all its logits."""
    logits = model(**_plain_inputs(model, group, completion)).logits[0].float()
    ids = completion.ids.to(logits.device)
    return logits[-len(ids) - 1 : -1].log_softmax(-1).gather(-1, ids[:, None])[:, 0]


def _values_and_gradients(forward: GroupForward, groups: Sequence[Group]) -> tuple[Tensor, list[Tensor]]:
    """Log-probabilities, and the gradients of their uneven sum with respect to the trainable vectors (gains and biases)."""
    vectors = [parameter for parameter in forward.outer.parameters() if parameter.requires_grad and parameter.ndim == 1]
    logp = forward(groups).logp
    weights = torch.linspace(-1.0, 2.0, logp.numel(), device=logp.device).view_as(logp)
    found = torch.autograd.grad((logp * weights).sum(), vectors, allow_unused=True) if vectors else ()
    return logp.detach(), [
        torch.zeros_like(vector) if grad is None else grad for vector, grad in zip(vectors, found, strict=True)
    ]


def _worst_gradient(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Largest difference relative to a parameter's norm, or to a thousandth of the median norm where its own is next to nothing."""
    norms = torch.stack([gradient.norm() for gradient in expected])
    floor = 1e-3 * norms[norms > 0].median()
    apart = torch.stack([(one - other).norm() for one, other in zip(found, expected, strict=True)])
    return (apart / norms.clamp(min=floor)).max().item()

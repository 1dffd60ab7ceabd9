"""How a model is sampled from: the fastest way whose log-probabilities are those of its own forward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from boresight import verdicts
from boresight.errors import ModelError, cause_of
from boresight.fine_arithmetic import FineArithmetic
from boresight.modules import computes_coarsely, unwrap
from boresight.own_forward import is_exact, own_logits
from boresight.rollout.branches import Branches
from boresight.rollout.continuing import KnownTurns
from boresight.rollout.decode import Decoder, ImageFeatures, Plain, Prefill, Rows
from boresight.types import Example, ExampleSource, Prompt

EXACT, ROUNDED = 1e-4, 0.25
"""Largest difference of a log-probability, in nats, in float32 and in the arithmetic of 16 bits."""
FAILS = "fails with"

Way: TypeAlias = Literal["branches", "rows", "plain"]

SAYS: dict[Way, str] = {
    "branches": "samples completions as branches of their prompts",
    "rows": "samples one prompt at a time, one row per completion",
    "plain": "samples one prompt at a time, without a cache",
}


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a model is sampled from, and why not faster."""

    way: Way
    reason: str = ""

    def decoders(
        self, prefill: Prefill, prompts: Sequence[Prompt], num_completions: int, known: KnownTurns | None = None
    ) -> list[Decoder]:
        """The decoders of these prompts: one for all of them, or one for each.

        Args:
            known: see `Branches`; other decoders run every turn from its prompt's beginning.
        """
        if self.way == "branches":
            return [Branches(prefill, prompts, num_completions, known)]
        kind = Rows if self.way == "rows" else Plain
        return [kind(prefill, prompt, num_completions) for prompt in prompts]


@torch.no_grad()
def choose_sampling(
    model: nn.Module, features: ImageFeatures | None, examples: ExampleSource | None, *, use_kept: bool = True
) -> Sampling:
    """The way to sample from a model, verified on made-up groups, or as verified before (`verdicts`).

    Args:
        model: in evaluation mode.
        features: see `Prefill`.
        examples: None: nothing is verified; structure alone decides.
        use_kept: whether an earlier result will do.

    Raises:
        ModelError: no way gives the log-probabilities of the model's own forward.
    """
    base = unwrap(model)
    obstacle = Prefill(base, features).why_not_branches()
    if examples is None:
        return Sampling("branches" if obstacle is None else "rows", obstacle or "")
    key = verdicts.key_of(model, examples.key, "sampling", str(features is None))
    if use_kept and (record := verdicts.kept(key)) is not None:
        return Sampling(**record)
    found = _verified(Prefill(base, features), examples.make(), obstacle)
    verdicts.keep(key, {"way": found.way, "reason": found.reason})
    return found


def _verified(prefill: Prefill, examples: Sequence[Example], obstacle: str | None) -> Sampling:
    arithmetics = _arithmetics(prefill, examples)
    ways: list[Way] = ["rows", "plain"] if obstacle else ["branches", "rows", "plain"]
    reasons = [obstacle] if obstacle else []
    for way in ways:
        # Each way starts from its own prefill, whatever an earlier one left behind.
        reason = _first_difference(lambda tried=way: Sampling(tried), prefill, examples, arithmetics)
        if reason is None:
            return Sampling(way, "; ".join(reasons))
        reasons.append(f"sampling by {way} {reason}")
    name = type(prefill.model).__name__
    raise ModelError(
        f"{name} cannot be sampled from: no way gives the log-probabilities of its own forward. {'; '.join(reasons)}."
    )


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """One in which ways to sample are compared with the model's own forward."""

    context: Callable[[], AbstractContextManager[Any]]
    expected: list[Tensor]
    """[C] for each example: see `_expected`."""
    bound: float
    """In nats."""


def _arithmetics(prefill: Prefill, examples: Sequence[Example]) -> list[Arithmetic]:
    """The model's own. With weights of 16 bits, whose rounding would hide a wrong way, float32 comes before it, if the model can."""
    own = [_expected(prefill, example) for example in examples]
    if is_exact(prefill.model):
        return [Arithmetic(nullcontext, own, EXACT)]
    found = [Arithmetic(nullcontext, own, ROUNDED)]
    if not computes_coarsely(prefill.model):
        with suppress(Exception), FineArithmetic():  # of any kind: see `Oracle`
            found.insert(0, Arithmetic(FineArithmetic, [_expected(prefill, example) for example in examples], EXACT))
    return found


def _first_difference(
    sampling: Callable[[], Sampling], prefill: Prefill, examples: Sequence[Example], arithmetics: Sequence[Arithmetic]
) -> str | None:
    """As `_difference`, in every arithmetic. What fails is judged by the model's own arithmetic alone, the last."""
    for arithmetic in arithmetics:
        try:
            with arithmetic.context():
                reason = _difference(sampling, prefill, examples, arithmetic.expected, arithmetic.bound)
        except torch.OutOfMemoryError:  # in float32, activations take twice the memory
            if arithmetic is arithmetics[-1]:
                raise
            continue
        if reason is not None and (arithmetic is arithmetics[-1] or not reason.startswith(FAILS)):
            return reason
    return None


@torch.no_grad()
def _expected(prefill: Prefill, example: Example) -> Tensor:
    """[C] log-probabilities of the example's first completion under the model's own forward."""
    ids = example.group.completions[0].ids
    logits = own_logits(prefill.model, example.processed, ids, num_last=len(ids) + 1)[:-1].float().cpu()
    return logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0]


def _difference(
    sampling: Callable[[], Sampling],
    prefill: Prefill,
    examples: Sequence[Example],
    expected: Sequence[Tensor],
    bound: float,
) -> str | None:
    """What sets a way's log-probabilities of the first completions apart from those expected; None if nothing does."""
    prompts = [example.group.prompt for example in examples]
    try:
        decoders = sampling().decoders(Prefill(prefill.model, prefill.features), prompts, 2)
        shares = [expected] if len(decoders) == 1 else [[one] for one in expected]
        ids = [example.group.completions[0].ids for example in examples]
        owns = [ids] if len(decoders) == 1 else [[one] for one in ids]
        far = max(
            (_forced(decoder, torch.stack(own)) - torch.stack(list(share))).abs().max().item()
            for decoder, own, share in zip(decoders, owns, shares, strict=True)
        )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of any kind: a model class fails in its own way on a cache that it was not written for
        return f"{FAILS} {cause_of(error).removesuffix('.')}"
    return (
        None
        if far <= bound
        else f"gives log-probabilities {far:.1e} from those of its own forward (required: ≤ {bound:.0e})"
    )


def _forced(decoder: Decoder, ids: Tensor) -> Tensor:
    """[G, C] log-probabilities of one given completion per prompt, as the first of two. The second ends two tokens before it."""
    device = decoder.logits.device
    slots, logits, found = torch.arange(2 * len(ids), device=device), decoder.logits, []
    for place in range(ids.shape[1]):
        tokens = ids[:, place].to(device).repeat_interleave(2)[slots]
        logp = logits.float().log_softmax(-1).gather(1, tokens[:, None])[:, 0]
        found.append(logp[slots % 2 == 0].cpu())
        if place == ids.shape[1] - 1:
            break
        if place == ids.shape[1] - 3:
            kept = decoder.compact(slots % 2 == 0)
            if kept is not None:
                slots, tokens = slots[kept], tokens[kept]
        logits = decoder.step(tokens)
    return torch.stack(found, 1)

"""A model's layouts, compared with its own forward where it stands, before training.

The oracle is the model's own forward on its processor's own outputs, one row at a time (`own_forward`). A layout is used if its
log-probabilities, and the gradients of a sample of parameters, equal the oracle's within the bounds of the model's precision.

With weights of 16 bits, rounding hides wrong layouts and makes right ones look wrong. Such a model is compared twice: in float32
(`fine_arithmetic`), where the bounds are narrow, and in its own arithmetic, where the kernels run that it trains with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from boresight.errors import ModelError, cause_of
from boresight.fine_arithmetic import FineArithmetic
from boresight.modules import unwrap
from boresight.own_forward import is_exact, own_logits
from boresight.types import Completion, Example, Group, LayoutName, TokenStats

NO_ERROR = "no error"
"""What is required of a layout that fails."""
NUM_GRADIENTS = 64
"""Most parameters whose gradients are compared: trainable vectors (gains, biases), or the smallest trainable tensors (adapters)."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """The largest difference allowed between two ways to compute the same number, by the precision of the weights."""

    logp: float
    """In nats, of one token."""
    mean: float
    """In nats, over all tokens."""
    gradient: float
    """Relative to a parameter's norm."""
    floor: float
    """The smallest norm that a parameter counts with, relative to the median norm. Some gradients are zero but for rounding: those of
    the biases of attention's keys."""
    image: float
    """In nats: the smallest change of log-probabilities that another image must cause."""


FLOAT32 = Bounds(logp=1e-4, mean=1e-4, gradient=1e-3, floor=1e-3, image=1e-3)
HALF = Bounds(logp=0.25, mean=0.05, gradient=0.25, floor=0.1, image=1e-2)
FINE = replace(FLOAT32, gradient=0.05)
"""Weights of 16 bits in float32 arithmetic. Their gradients are rounded to 16 bits, once for every use."""


def bounds_of(model: nn.Module) -> Bounds:
    """Those of the model's coarsest floating-point weights."""
    return FLOAT32 if is_exact(model) else HALF


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison."""

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


def at_most(name: str, figure: float, bound: float) -> Check:
    return Check(name, figure <= bound, f"{figure:.1e}", f"≤ {bound:.0e}")


def apart(one: Tensor, other: Tensor) -> float:
    """The largest difference; infinity if anything is not a number."""
    far = (one - other).abs()
    return far.max().item() if far.isfinite().all() else float("inf")


@dataclass(frozen=True, slots=True)
class Measured:
    """Log-probabilities of examples' completions, and gradients of their weighted sum."""

    logp: Tensor
    """[N] of every token, completions in order."""
    gradients: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Expected:
    """What the model's own forward gives in one arithmetic."""

    measured: Measured
    rows: list[list[Tensor]]
    """[C] log-probabilities of every completion of every example."""
    bounds: Bounds

    def causality(self) -> float:
        """How far a token's log-probability is moved by what comes after it, in nats: one completion begins another."""
        return max(apart(rows[0][: len(rows[-1])], rows[-1]) for rows in self.rows)


Forward = Callable[[Sequence[Group]], TokenStats]


class Oracle:
    """The model's own forward on some examples, run once, and once more in float32 arithmetic where its weights have 16 bits.

    Args:
        model: as loaded, or wrapped by PEFT; in evaluation mode.
        examples: made-up groups. In each, the last completion begins another one (`data.made_up`).
    """

    def __init__(self, model: nn.Module, examples: Sequence[Example]) -> None:
        self.model = unwrap(model)
        self.examples = examples
        self.groups = [example.group for example in examples]
        self.parameters = gradient_sample(model)
        self.own = self._measure(bounds_of(self.model))
        self.fine = None if self.own.bounds is FLOAT32 else self._measure_in_float32()

    @property
    def narrowest(self) -> Expected:
        """What is known most exactly."""
        return self.own if self.fine is None else self.fine

    def _measure_in_float32(self) -> Expected | None:
        """None where the model cannot compute so: a layer that rounds by itself, a dtype that its code insists on, too little memory."""
        try:
            with FineArithmetic():
                found = self._measure(FINE)
        except (torch.OutOfMemoryError, ModelError):
            return None
        return found if found.causality() <= FINE.logp else None

    def _measure(self, bounds: Bounds) -> Expected:
        gradients = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in self.parameters]
        weights = iter(self._weights(self.groups))
        measured: list[list[Tensor]] = []
        for example in self.examples:
            rows = []
            for completion in example.group.completions:
                logp = self._row(example, completion)
                for total, found in zip(gradients, self._gradients(logp, next(weights)), strict=True):
                    total += found
                rows.append(logp.detach())
            measured.append(rows)
        return Expected(Measured(torch.cat([row for rows in measured for row in rows]), gradients), measured, bounds)

    def _row(self, example: Example, completion: Completion) -> Tensor:
        """[C] log-probabilities of a completion."""
        with torch.set_grad_enabled(bool(self.parameters)):
            try:
                logits = own_logits(self.model, example.processed, completion.ids, num_last=len(completion.ids) + 1)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # of any kind: a model class fails in its own way
                kind = "with" if example.group.prompt.images else "without"
                raise ModelError(
                    f"{type(self.model).__name__} cannot be trained: its own forward fails on what its processor makes of a prompt {kind} "
                    f"images ({cause_of(error)}). Use the processor that was saved with the model; if it is that one, their configurations "
                    "disagree."
                ) from error
            ids = completion.ids.to(logits.device)
            return logits[:-1].float().log_softmax(-1).gather(-1, ids[:, None])[:, 0]

    def of(self, forward: Forward) -> Measured:
        """The same numbers of a layout."""
        with torch.set_grad_enabled(bool(self.parameters)):
            stats = forward(self.groups)
        logp = stats.logp[stats.mask]
        return Measured(logp.detach(), self._gradients(logp, torch.cat(self._weights(self.groups))))

    def _weights(self, groups: Sequence[Group]) -> list[Tensor]:
        """[C] for each completion: a weight for every token, so that no gradient cancels by symmetry."""
        lengths = [len(completion.ids) for group in groups for completion in group.completions]
        return list(torch.linspace(-1.0, 2.0, sum(lengths)).split(lengths))

    def _gradients(self, logp: Tensor, weights: Tensor) -> list[Tensor]:
        if not self.parameters:
            return []
        total = (logp * weights.to(logp.device)).sum()
        if not total.requires_grad:  # a prompt without images, and only the vision tower is trained
            return [torch.zeros_like(parameter) for parameter in self.parameters]
        found = torch.autograd.grad(total, self.parameters, allow_unused=True)
        return [
            torch.zeros_like(parameter) if gradient is None else gradient
            for parameter, gradient in zip(self.parameters, found, strict=True)
        ]

    def causality(self) -> Check:
        """What comes after a token must not change its log-probability."""
        name = "own forward: |Δ log-prob| of a token when others follow it"
        return at_most(name, self.narrowest.causality(), self.narrowest.bounds.logp)

    def sees_images(self) -> Check | None:
        """Negative control: an image of the same size must change what the comparison looks at. None without two such images."""
        with_images = [
            rows
            for example, rows in zip(self.examples, self.narrowest.rows, strict=True)
            if example.group.prompt.images
        ]
        if len(with_images) < 2:
            return None
        moved = apart(with_images[0][0], with_images[1][0])
        name = "another image changes log-probs"
        smallest = self.narrowest.bounds.image
        return Check(name, moved >= smallest, f"{moved:.1e}", f"≥ {smallest:.0e}")

    def check(self, name: str, forward: Forward, *, gradients: bool) -> list[Check]:
        """Compare a layout with the model's own forward. An exception is a failed check; running out of memory is not."""
        if self.fine is None:
            return self._check(name, forward, self.own, self.own.bounds, gradients=gradients)
        try:
            with FineArithmetic():
                fine = self._check(f"{name}, in float32", forward, self.fine, self.fine.bounds, gradients=gradients)
        except torch.OutOfMemoryError:  # activations take twice the memory
            fine = []
        if not fine or fine[0].bound == NO_ERROR:  # perhaps only in float32
            return self._check(name, forward, self.own, self.own.bounds, gradients=gradients)
        if not all(check.passed for check in fine):
            return fine
        return [*fine, *self._check(name, forward, self.own, self._rounding(self.fine), gradients=gradients)]

    def _rounding(self, fine: Expected) -> Bounds:
        """What the model's own arithmetic may differ by: twice what its own forward differs by from float32, where that is more. Rounding
        sends a token to another expert."""
        own, bounds = self.own.measured, self.own.bounds
        far = (own.logp - fine.measured.logp).abs()
        gradient = worst_gradient(own.gradients, fine.measured.gradients, floor=bounds.floor) if own.gradients else 0.0
        return replace(
            bounds,
            logp=max(bounds.logp, 2 * far.max().item()),
            mean=max(bounds.mean, 2 * far.mean().item()),
            gradient=max(bounds.gradient, 2 * gradient),
        )

    def _check(
        self, name: str, forward: Forward, expected: Expected, bounds: Bounds, *, gradients: bool
    ) -> list[Check]:
        try:
            found = self.of(forward)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of any kind: a model class fails in its own way on what it was not written for
            return [Check(f"{name}: runs", False, cause_of(error), NO_ERROR)]
        own = expected.measured
        far = apart(found.logp, own.logp)
        checks = [at_most(f"{name}: |Δ log-prob| from the model's own forward", far, bounds.logp)]
        if bounds.mean < bounds.logp:
            mean = (found.logp - own.logp).abs().mean().item()
            checks.append(at_most(f"{name}: mean |Δ log-prob|", mean, bounds.mean))
        if gradients and self.parameters:
            worst = worst_gradient(found.gradients, own.gradients, floor=bounds.floor)
            checks.append(at_most(f"{name}: relative Δ of {len(self.parameters)} gradients", worst, bounds.gradient))
        return checks


def gradient_sample(model: nn.Module) -> list[nn.Parameter]:
    """The trainable parameters whose gradients are compared."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    vectors = [parameter for parameter in trainable if parameter.ndim == 1]
    chosen = vectors or sorted(trainable, key=lambda parameter: parameter.numel())
    step = max(1, len(chosen) // NUM_GRADIENTS)
    return chosen[::step][:NUM_GRADIENTS]


def worst_gradient(found: Sequence[Tensor], expected: Sequence[Tensor], *, floor: float = FLOAT32.floor) -> float:
    """The largest difference relative to a gradient's norm, or to `floor` times the median norm if its own is smaller."""
    norms = torch.stack([gradient.norm() for gradient in expected]).float()
    if not (norms > 0).any():
        return 0.0
    far = torch.stack([(one - other).norm() for one, other in zip(found, expected, strict=True)]).float()
    return (far / norms.clamp(min=floor * norms[norms > 0].median())).max().item()


@dataclass(frozen=True, slots=True)
class Candidate:
    """A layout that may be used: its name, and whether it joins the image features of several prompts (`VisionEncoder.joins`)."""

    layout: LayoutName
    joins: bool = True

    @property
    def name(self) -> str:
        return self.layout if self.joins else f"{self.layout}, one group at a time"


LADDER = (Candidate("shared"), Candidate("shared", joins=False), Candidate("rows"), Candidate("plain"))
"""The fastest first. The last is the model's own forward, fed with what the encoder made of the processor's outputs."""


@dataclass(frozen=True, slots=True)
class Verification:
    """The result of comparing a model's layouts with its own forward."""

    layout: LayoutName
    joins: bool
    """See `Candidate`."""
    reason: str
    """Why no faster layout is used; empty if the fastest is."""
    checks: tuple[Check, ...]


def verify(
    oracle: Oracle,
    attempt: Callable[[Candidate], Forward],
    *,
    candidates: Sequence[Candidate] = LADDER,
    obstacle: str | None = None,
) -> Verification:
    """The first candidate whose numbers are the model's own.

    Args:
        attempt: the forward of a candidate; what it raises counts against the candidate.
        candidates: in the order to try.
        obstacle: why the shared layout is not tried.

    Raises:
        ModelError: no candidate's numbers are, or the model's own forward lets a token see later ones.
    """
    name = type(oracle.model).__name__
    checks = [oracle.causality()]
    if not checks[0].passed:
        raise ModelError(
            f"{name} cannot be trained: in its own forward, tokens of a completion attend to later ones (their log-probabilities change by "
            f"{checks[0].figure} nats when others follow)."
        )
    reasons: list[str] = []
    control = oracle.sees_images()
    if control is not None:
        checks.append(control)
        if not control.passed and candidates[-1].layout == "plain":
            reasons.append("its log-probabilities do not depend on images, so no layout can be verified")
            candidates = candidates[-1:]
    for candidate in candidates:
        if candidate.layout == "shared" and obstacle is not None:
            reasons = reasons or [obstacle]
            continue
        found = oracle.check(candidate.name, lambda groups, tried=candidate: attempt(tried)(groups), gradients=True)
        failed = [check for check in found if not check.passed]
        checks += [*found] if not failed else [_not_needed(check) for check in found]
        if not failed:
            return Verification(candidate.layout, candidate.joins, "; ".join(reasons), tuple(checks))
        reasons.append(_says(candidate, failed[0]))
    raise ModelError(
        f"{name} cannot be trained: no layout gives the log-probabilities of its own forward. {'; '.join(reasons)}."
    )


def _says(candidate: Candidate, failed: Check) -> str:
    if failed.bound == NO_ERROR:
        return f"the layout {candidate.name} fails with {failed.figure.removesuffix('.')}"
    return f"{failed.name}: {failed.figure} (required: {failed.bound})"


def _not_needed(check: Check) -> Check:
    return Check(check.name, check.passed, check.figure, check.bound, required=False)


def as_record(verification: Verification) -> dict[str, Any]:
    """For `from_record`, as JSON holds it."""
    checks = [[check.name, check.passed, check.figure, check.bound, check.required] for check in verification.checks]
    return {"layout": verification.layout, "joins": verification.joins, "reason": verification.reason, "checks": checks}


def from_record(record: dict[str, Any]) -> Verification:
    return Verification(
        record["layout"], record["joins"], record["reason"], tuple(Check(*check) for check in record["checks"])
    )

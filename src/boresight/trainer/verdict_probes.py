"""The additional measurements for verdicts, and the schedule of verdicts."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor
from transformers import TrainerCallback

from boresight.modules import local
from boresight.report.jsonl import StepLines
from boresight.report.metrics import MeanMetrics
from boresight.report.step_rows import split_prefix
from boresight.report.verdicts import FIRST_VERDICT, verdicts, window_means
from boresight.types import Group, Prompt

WEIGHTS_PER_TENSOR = 1024
"""Number of weights of a parameter that are compared."""

MAX_SWAPS = 4
"""Maximum groups of a rank whose images are swapped."""

SWAPPED_COMPLETIONS = 2
"""Number of completions of such a group that are compared."""


def is_due(every: int, step: int, num_steps: int = 1) -> bool:
    """Whether a verdict falls on one of the `num_steps` optimizer steps after `step`: on the multiples of `every`, and on step
    `FIRST_VERDICT` if that comes first. Never where `every` is 0."""
    after = step + num_steps
    is_first = every > FIRST_VERDICT and step < FIRST_VERDICT <= after
    return every > 0 and (is_first or after // every > step // every)


class Verdicts(TrainerCallback):
    """Computes verdicts from the log lines of every `every` steps, at the first log after them, and from the remaining lines at the end.

    Verdicts depend only on the log, which checkpoints contain. So a resumed run gives the same verdicts as an uninterrupted one.

    Args:
        every: `verdict_steps`.
        lines: RUN/verdicts.jsonl.
        say: prints a message to the user.
    """

    def __init__(self, every: int, lines: StepLines, say: Callable[[str], None]) -> None:
        self._every = every
        self._lines = lines
        self._say = say
        self._start()

    def _start(self) -> None:
        self._window: list[Mapping[str, float]] = []
        self._earlier: list[Mapping[str, float]] = []
        self._held_out: list[Mapping[str, float]] = []
        self._last_step = 0
        self._first_evaluation: int | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._start()
        if args.eval_strategy == "steps" and 0 < state.eval_steps <= state.max_steps:
            self._first_evaluation = int(state.eval_steps)
        for line in state.log_history:
            self._note_evaluation(line)
            if "loss" in line and self._is_complete_with(line):
                self._close()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Log the step of a verdict, so that the verdict need not wait for the next log."""
        control.should_log |= args.logging_strategy == "steps" and is_due(self._every, state.global_step - 1)

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        line = state.log_history[-1]
        self._note_evaluation(line)
        if "loss" in line and self._is_complete_with(line):
            self._judge()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._window:
            self._judge()

    def _note_evaluation(self, line: Mapping[str, Any]) -> None:
        kind, metrics = split_prefix(line)
        if kind:
            self._held_out.append(metrics)

    def _is_complete_with(self, line: Mapping[str, float]) -> bool:
        """Add a log line to the window, and return whether a verdict is due."""
        step, before = int(line["step"]), self._last_step
        self._window.append(line)
        self._last_step = step
        return is_due(self._every, before, step - before)

    def _judge(self) -> None:
        means = window_means(self._window)
        first = self._first_evaluation
        # A step is evaluated after its verdict.
        coming = first if first is not None and first >= self._last_step else None
        for verdict in verdicts(means, self._earlier, self._held_out, coming):
            self._lines.add(self._last_step, {"verdict": verdict.name, "text": verdict.text})
            self._say(f"step {self._last_step}: {verdict.text}")
        self._close()

    def _close(self) -> None:
        self._earlier.append(window_means(self._window))
        self._window = []


class UpdateProbe(TrainerCallback):
    """Measures the share of weights that an update leaves unchanged, at the steps with a verdict.

    The share is over weights with a nonzero gradient, among about `WEIGHTS_PER_TENSOR` of each parameter, evenly spaced. A step smaller
    than half the resolution of a weight's dtype leaves its bits unchanged.

    Args:
        every: `verdict_steps`.
        metrics: receives `update/frac_unmoved`, and `update/relative_size`: |Δw| / |w|, mean over parameters.
    """

    def __init__(self, every: int, metrics: MeanMetrics) -> None:
        self._every = every
        self._metrics = metrics
        self._watched: list[tuple[Tensor, Tensor, Tensor]] = []

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **_: Any
    ) -> None:
        moves = any(group["lr"] > 0 for group in optimizer.param_groups)
        # fp16 skips whole steps when its loss scale overflows.
        if moves and not args.fp16 and is_due(self._every, state.global_step):
            self._watched = [
                (weight, _some(weight).clone(), _some(weight.grad) != 0)
                for weight in model.parameters()
                if weight.grad is not None and local(weight).numel()
            ]

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # A skipped step has no gradients any more, and says nothing about resolution.
        for weight, before, has_gradient in (one for one in self._watched if one[0].grad is not None):
            now = _some(weight)
            self._metrics.mean("update/frac_unmoved", (now == before).float(), weight=has_gradient)
            moved, size = (now.float() - before.float()).square().sum(), before.float().square().sum()
            if size > 0:  # an adapter's second factor starts at 0
                self._metrics.mean("update/relative_size", (moved / size).sqrt())
        self._watched = []


def _some(values: Tensor) -> Tensor:
    flat = local(values.detach()).flatten()
    return flat[:: max(1, len(flat) // WEIGHTS_PER_TENSOR)]


def swapped_images(groups: Sequence[Group]) -> list[tuple[Group, Group]]:
    """Some groups with images, each paired with a copy that has another group's images of the same shapes and number of placeholders."""
    alike: dict[Hashable, list[Group]] = {}
    for group in groups:
        if group.prompt.images:
            alike.setdefault(_shapes(group.prompt), []).append(group)
    pairs = []
    for same in alike.values():
        for group in same:
            other = next((one.prompt for one in same if one.prompt.images != group.prompt.images), None)
            if other is not None:
                few = group.branches(0, SWAPPED_COMPLETIONS)
                row = replace(few.prompt.row, images=other.images)
                pairs.append((few, replace(few, prompt=replace(few.prompt, row=row, vision=other.vision))))
    return pairs[:MAX_SWAPS]


def _shapes(prompt: Prompt) -> Hashable:
    """The properties that two prompts must share to swap their images: shapes of float tensors, values of grids and sizes, placeholders."""
    tensors = tuple(
        (name, tuple(value.shape), None if value.is_floating_point() else tuple(value.flatten().tolist()))
        for name, value in sorted(prompt.vision.items())
    )
    return tensors, int((prompt.token_types == 1).sum())


def note_image_swap(
    metrics: MeanMetrics, groups: Sequence[Group], logp: Callable[[Sequence[Group]], Sequence[Tensor]]
) -> None:
    """Measure how much the log-probabilities of completions change when their images are swapped with others of the same shapes.

    Args:
        metrics: receives `image/swap_gap`: mean |Δ log-probability| per token, in nats. Nothing is added if no images can be swapped.
        groups: sampled groups.
        logp: one [K, C] block of log-probabilities for each group. All ranks call it together, with or without groups.
    """
    pairs = swapped_images(groups)
    # Also without pairs: other ranks may have some, and all of them compute together.
    plain, swapped = (logp([pair[place] for pair in pairs]) for place in (0, 1))
    for (group, _), one, other in zip(pairs, plain, swapped, strict=True):
        for completion, here, there in zip(group.completions, one, other, strict=True):
            counted = completion.mask.to(here.device)
            gap = (here - there).abs()[: len(counted)]
            metrics.mean("image/swap_gap", gap, weight=counted)

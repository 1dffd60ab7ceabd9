"""The gradients of one optimizer step.

`training_step` sums the loss's divisor over the step and all ranks, cuts this rank's share into micro-batches, runs them, and synchronises
gradients at the last one. So the result depends neither on how a step is cut nor on the number of ranks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from boresight import rank_link
from boresight.model.forward import GroupForward
from boresight.model.offloading import OffloadedActivations
from boresight.model.routers import Routers
from boresight.model.shards import drop_gradients, exchanges_layers, gathered, is_sharded, scatter_gradients
from boresight.report.metrics import MeanMetrics
from boresight.report.timeline import Timeline
from boresight.terminal import printable
from boresight.trainer.identity import options_of
from boresight.trainer.kept_step import keep_step
from boresight.trainer.lifecycle import LifecycleTrainer
from boresight.trainer.nonfinite import BAD, NonFiniteSteps, ZeroGradients, gradients_of, largest
from boresight.trainer.random_states import random_states_kept
from boresight.trainer.steps import Cuttable, StepPlan, micro_batches, smaller_budget

Item = TypeVar("Item", bound=Cuttable)
Part = TypeVar("Part", bound=Cuttable)


class UpdatingTrainer(LifecycleTrainer, Generic[Item]):
    """Computes a step's gradients by the items, the divisor and the loss that a method defines."""

    plan: StepPlan
    policy: GroupForward
    routers: Routers | None
    """The policy's, where their load-balancing loss is part of the loss."""
    timeline: Timeline
    _max_tokens: int | None
    _non_finite: NonFiniteSteps
    _zero_gradients: ZeroGradients
    by_layers = False
    """Whether FSDP2 gathers one layer after another in each pass, not the whole weights for a step: `fsdp_reshard_after_forward`."""
    was_skipped = False
    """Whether the last step changed no weight, because a number of it was not finite."""

    def prepare(self, inputs: list[Any]) -> list[Item]:
        """The items that one optimizer step learns from, given the loader's item for that step."""
        return inputs

    def models_beside(self) -> list[nn.Module]:
        """The models other than the policy that `prepare` runs. Those with shards are gathered for it."""
        return []

    def total(self, items: Sequence[Item]) -> Tensor:
        """This rank's share of the loss's divisor: a scalar or a vector, to be summed over all ranks."""
        raise NotImplementedError

    def loss(self, model: nn.Module, items: Sequence[Item], total: Tensor, metrics: MeanMetrics) -> Tensor:
        """The loss of one micro-batch, divided by the step's `total`. The sum over micro-batches and ranks is the step's loss."""
        raise NotImplementedError

    def trial_step(self, items: Sequence[Item]) -> Tensor:
        """The loss of a step of these items on this rank, for a trial before training. The gradients are left in the weights."""
        model = self.policy.outer.train()
        return self._backward(model, items, self.total(items).to(self.args.device))

    @property
    def fitting_tokens(self) -> int | None:
        """The most tokens of a micro-batch: `max_tokens_per_pass`, or fewer after one that did not fit in memory."""
        return self._max_tokens

    def learns_from(self, item: Item) -> bool:
        """Whether an item can have a gradient. Other items are left out of the passes, but not of `total`."""
        return True

    def note_step(self) -> None:
        """Called once a step's gradients are there."""

    def log_once(self, message: str) -> None:
        """Print a line on the first rank only."""
        if self.is_world_process_zero():
            self.accelerator.print(printable(f"boresight: {message}"))

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Compute the gradients of one whole optimizer step. transformers clips and applies them."""
        model.train()
        if callable(getattr(self.optimizer, "train", None)):
            self.optimizer.train()  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
        self.was_skipped = False
        with gathered(model, layers=not self.by_layers):
            return self._gathered_step(model, inputs)

    def _gathered_step(self, model: nn.Module, inputs: Any) -> Tensor:
        with gathered(*self.models_beside(), layers=not self.by_layers):
            items = self.prepare(inputs)
        with self.timeline.phase("update"):
            total: Any = self.accelerator.reduce(self.total(items).to(self.args.device), reduction="sum")
            # A step without a learning signal still runs one pass: an optimizer treats zero gradients and missing gradients differently.
            learning = [item for item in items if self.learns_from(item)] or items[:1]
            self._balanced_tokens = self._num_balanced(learning)
            loss = self._backward(model, learning, total)
        self._computed = model, loss.detach(), learning
        self._tokens_seen += sum(item.num_tokens for item in items)
        self.note_step()
        return loss * self.accelerator.num_processes

    _computed: tuple[nn.Module, Tensor, Sequence[Item]]
    """The model, this rank's loss, and the items of the step whose gradients are there."""

    def before_weights_change(self) -> None:
        self._refuse_non_finite()
        super().before_weights_change()

    def _refuse_non_finite(self) -> None:
        """Drop the step's gradients where a log-probability, the loss or a gradient is not finite on any rank.

        It is called as the last thing before the optimizer, which leaves weights without a gradient alone.

        Raises:
            NonFiniteError: as `nan_policy` says.
        """
        model, loss, items = self._computed
        # The loss scale of fp16 makes gradients overflow now and then; its scaler skips those steps itself.
        gradient = largest([] if self.args.fp16 else gradients_of(model)).to(loss.device)
        bad: Any = torch.stack(
            [self._bad_logp.to(loss.device), ~loss.isfinite(), ~gradient.isfinite(), gradient > 0]
        ).int()
        *found, moves = self.accelerator.reduce(bad, reduction="sum").tolist()  # pyright: ignore[reportAttributeAccessIssue]
        if not any(found):
            self._non_finite.finite()
            if not self.args.fp16 and (
                line := self._zero_gradients.seen(self.state.global_step + 1, is_zero=not moves)
            ):
                self.log_once(line)
            return
        model.zero_grad(set_to_none=True)
        self.was_skipped = True
        self._lost_loss |= bool(found[1])
        self.metrics.sum("update/num_skipped_steps", 1 / self.accelerator.num_processes)
        what = next(name for name, count in zip(BAD, found, strict=True) if count)
        groups: list[Any] = [getattr(item, "group", item) for item in items]  # an item is a group, or has one
        step, rank = self.state.global_step + 1, self.args.process_index
        kept = keep_step(self.args.output_dir, step, rank, what=what, items=items, options=options_of(self.args))
        rows = [group.prompt.row.index for group in groups]
        self.log_once(self._non_finite.skipped(step, rows, what, kept))

    def watch(self, logp: Tensor, mask: Tensor | None = None) -> None:
        """Note whether one of these log-probabilities is not finite; of a mask, where it is true."""
        bad = ~logp.detach().isfinite()
        self._bad_logp = self._bad_logp.to(bad.device) | (bad if mask is None else bad & mask).any()

    _bad_logp = torch.tensor(False)

    _lost_loss = False

    def take_lost_loss(self) -> bool:
        """Whether a loss was not finite since the last call. transformers' loop logs the mean of the others in its place."""
        lost, self._lost_loss = self._lost_loss, False
        return lost

    def _backward(self, model: nn.Module, items: Sequence[Item], total: Tensor) -> Tensor:
        """This rank's loss and gradients. If a micro-batch does not fit in memory, the step restarts with smaller ones.

        Raises:
            torch.OutOfMemoryError: a single completion does not fit, the ranks are already exchanging gradients, or they exchange layers in
                each micro-batch.
        """
        while True:
            passes = micro_batches(items, self.plan, self._max_tokens)
            metrics = MeanMetrics()
            self.begin_passes()
            try:
                loss = self._passes(model, passes, total, metrics)
            except torch.OutOfMemoryError as error:
                budget = smaller_budget(passes)
                if self._is_aligned:
                    most = max(map(_num_tokens, passes))
                    error.add_note(
                        "boresight: with fsdp_reshard_after_forward: true, ranks exchange layers in each pass, and none can make its "
                        f"micro-batches smaller alone. Lower max_tokens_per_pass: the largest had {most} tokens."
                    )
                    raise
                if budget is None or self._exchanging:
                    error.add_note(
                        "boresight: set max_tokens_per_pass, gradient_checkpointing=True, or lower max_pixels or the lengths."
                    )
                    raise
                self._max_tokens = budget
                self.log_once(
                    f"step {self.state.global_step + 1}: a micro-batch did not fit in memory; from now on max_tokens_per_pass={budget}."
                )
            else:
                if is_sharded(model):
                    scatter_gradients(model)
                self.metrics.absorb(metrics)
                return loss
            # This runs outside `except`, whose traceback keeps the activations alive. It clears the partly accumulated gradients.
            drop_gradients(model)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _passes(
        self, model: nn.Module, passes: Sequence[Sequence[Item]], total: Tensor, metrics: MeanMetrics
    ) -> Tensor:
        loss = torch.zeros((), device=self.args.device)
        items = [item for part in passes for item in part]
        if self.routers is not None:
            self.policy.take_balance()  # of a step that did not fit in memory
        shards = is_sharded(model)
        for number, (part, counts) in enumerate(self.aligned(passes), 1):
            if not counts:
                self.repeat(model, part)
                continue
            last = number == len(passes)
            self._exchanging = last and not shards and self.accelerator.num_processes > 1
            if last:
                rank_link.at("the last micro-batch")
            with contextlib.nullcontext() if last or shards else self.accelerator.no_sync(model):
                with self.compute_loss_context_manager(), self.offloading():
                    share = self.loss(model, part, total, metrics) + self._balance(part, items, metrics)
                # Gradients are averaged over ranks; the total already counts all of them.
                self.accelerator.backward(share * self.accelerator.num_processes)
            loss += share.detach()
        return loss

    def repeat(self, model: nn.Module, part: Sequence[Item]) -> None:
        """A micro-batch again, with gradients of 0 where gradients are computed: see `aligned`."""
        groups: list[Any] = [getattr(item, "group", item) for item in part]  # an item is a group, or has one
        with self.unnoticed():
            with self.compute_loss_context_manager(), self.offloading():
                logp = self.policy(groups, wrapped=model).logp
            if logp.requires_grad:
                self.accelerator.backward(logp.sum() * 0.0)
                self.policy.take_balance()

    @property
    def _is_aligned(self) -> bool:
        """Whether ranks must run equally many passes."""
        return self.by_layers and any(map(exchanges_layers, (self.policy.outer, *self.models_beside())))

    def aligned(
        self, passes: Sequence[Sequence[Part]], spare: Sequence[Part] = ()
    ) -> Iterator[tuple[Sequence[Part], bool]]:
        """This rank's passes, each with whether it counts. Where ranks exchange layers in each pass, those with fewer repeat their
        smallest, which does not count. All ranks call this together.

        Args:
            spare: where there may be no pass, what one is made of.
        """
        most = len(passes)
        if self._is_aligned:
            everywhere: Any = self.accelerator.gather(torch.tensor([most], device=self.args.device))
            most = int(everywhere.max())
        yield from ((part, True) for part in passes)
        if len(passes) < most:
            smallest = min(passes or [spare[:1]], key=_num_tokens)
            yield from ((smallest, False) for _ in range(len(passes), most))

    @contextlib.contextmanager
    def unnoticed(self) -> Iterator[None]:
        """A context whose passes neither count nor draw random numbers of the run."""
        with random_states_kept(), self.policy.uncounted():
            yield

    _balanced_tokens: float | None = None

    def _num_balanced(self, items: Sequence[Item]) -> float | None:
        """The tokens over which a step's load-balancing loss is the mean, on all ranks; None without such a loss."""
        if self.routers is None:
            return None
        own = torch.tensor(float(sum(item.num_tokens for item in items)), device=self.args.device)
        everywhere: Any = self.accelerator.reduce(own, reduction="sum")
        return float(everywhere)

    def _balance(self, part: Sequence[Item], items: Sequence[Item], metrics: MeanMetrics) -> Tensor | float:
        """A micro-batch's share of `router_aux_loss_coef` times the load-balancing loss, which is the mean over the step's tokens."""
        if self.routers is None or (value := self.policy.take_balance()) is None:
            return 0.0
        tokens = sum(item.num_tokens for item in part)
        total = self._balanced_tokens or sum(item.num_tokens for item in items)
        metrics.mean("aux_loss", value.detach().cpu(), weight=tokens)
        return self.routers.weight * value * (tokens / total)

    def offloading(self) -> contextlib.AbstractContextManager[object]:
        """Where a forward pass keeps its activations: as `activation_offloading` says."""
        if not self.args.activation_offloading:  # pyright: ignore[reportAttributeAccessIssue]
            return contextlib.nullcontext()
        return OffloadedActivations(self.policy.outer.parameters())

    _exchanging = False

    def begin_passes(self) -> None:
        """Called before the first micro-batch of a step, and again when the step restarts."""
        self._bad_logp = torch.tensor(False)

    _tokens_seen = 0

    def floating_point_ops(self, inputs: Any) -> int:
        """Operations per weight and token: two in the forward pass, four in the backward pass."""
        tokens, self._tokens_seen = self._tokens_seen, 0
        if self.args.include_num_input_tokens_seen != "no":
            everywhere: Any = self.accelerator.reduce(torch.tensor(tokens, device=self.args.device), "sum")
            self.state.num_input_tokens_seen += int(everywhere)
        return 6 * tokens * sum(parameter.numel() for parameter in self.policy.model.parameters())

    def _track_num_input_tokens(self, inputs: Any) -> None:
        """Counted with the floating-point operations."""


def _num_tokens(part: Sequence[Cuttable]) -> int:
    return sum(item.num_tokens for item in part)

"""The passes before an update: what old policy, reference and entropies say of the groups of a rollout."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from boresight.loss.policy import counted_mask, high_entropy_threshold
from boresight.loss.policy_options import loss_beta
from boresight.model.packing import completion_mask
from boresight.report.metrics import MeanMetrics
from boresight.trainer.base import GroupTrainer
from boresight.trainer.rollouts.scored import Scored, padded, per_group
from boresight.trainer.steps import micro_batches
from boresight.types import Group, TokenStats


class ScoredPasses(GroupTrainer[Scored]):
    """A trainer of scored groups, which adds to them the log-probabilities and entropies that its loss needs."""

    args: Any
    _entropy_threshold: float | None = None
    """Of tokens that count in the loss, where `top_entropy_quantile` is below 1: set at every step."""

    def learns_from(self, item: Scored) -> bool:
        return not item.is_flat or loss_beta(self.args) != 0 or self.args.entropy_coef != 0

    def _with_entropy(self, items: Sequence[Scored]) -> list[Scored]:
        """The items with their tokens' entropies. The threshold is set from their quantile over the whole step and all ranks."""
        groups = [item.group for item in items]
        with self.timeline.phase("logp"):
            rows = self._token_rows(groups, self.policy, "entropy")
        mask = self._mask(groups)
        counted = padded(rows, mask.shape[1])[mask]
        everywhere = torch.cat(gather_object([counted]))
        self._entropy_threshold = high_entropy_threshold(everywhere, self.args.top_entropy_quantile)
        return [replace(item, entropy=block) for item, block in zip(items, per_group(rows, groups), strict=True)]

    def _with_logp(self, scored: Sequence[Scored]) -> list[Scored]:
        """The items with their log-probabilities before the update and under the reference. Items without a gradient get none."""
        learned = [item for item in scored if self.learns_from(item)]
        groups = [item.group for item in learned]
        # With one update per rollout, the old policy is the policy, and no pass is needed.
        old = [None] * len(groups)
        if self.plan.rollout_period > 1:
            old = self.logp(groups, self.policy, spare=[item.group for item in scored])
        known = self._with_reference([replace(item, old=logp) for item, logp in zip(learned, old, strict=True)])
        complete = dict(zip(map(id, learned), known, strict=True))
        return [complete.get(id(item), item) for item in scored]

    def _with_reference(self, items: Sequence[Scored]) -> list[Scored]:
        """The items with their log-probabilities under the reference, if there is one."""
        if self.reference is None or loss_beta(self.args) == 0:
            return list(items)
        logp = self.logp([item.group for item in items], self.reference)
        return [replace(item, reference=block) for item, block in zip(items, logp, strict=True)]

    def _kl_penalty(self, groups: Sequence[Group], metrics: MeanMetrics) -> list[Tensor]:
        """[K] for each group: beta times the log ratio of policy to reference, summed over a completion's tokens."""
        policy, reference = self.logp(groups, self.policy), self.logp(groups, self.reference)  # pyright: ignore[reportArgumentType]
        penalties = []
        for group, own, other in zip(groups, policy, reference, strict=True):
            mask = completion_mask([group])
            ratio = (own - other).masked_fill(~mask, 0.0)
            metrics.mean("kl", ratio, weight=mask)
            penalties.append(self.args.beta * ratio.sum(-1))
        return penalties

    def logp(
        self, groups: Sequence[Group], model: Callable[..., TokenStats], spare: Sequence[Group] = ()
    ) -> list[Tensor]:
        """Log-probabilities of every group under a model, without gradient and dropout. All ranks call this together.

        Args:
            spare: where this rank may have no groups and others do, some of its groups.
        """
        return per_group(self._token_rows(groups, model, "logp", spare), groups)

    def _token_rows(
        self, groups: Sequence[Group], model: Callable[..., TokenStats], wanted: str, spare: Sequence[Group] = ()
    ) -> list[Tensor]:
        """One row per completion with its tokens' `logp` or `entropy` under a model."""
        rows: list[Tensor] = []
        passes = micro_batches(groups, self.plan, self.args.max_tokens_per_pass)
        with self.without_gradient():
            for part, counts in self.aligned(passes, spare):
                with contextlib.nullcontext() if counts else self.unnoticed():
                    stats = model(part, temperature=self._temperature, ban_modalities=True, entropy=wanted == "entropy")
                if counts:
                    rows += getattr(stats, wanted).cpu()
        return rows

    @property
    def _temperature(self) -> float:
        """The divisor of the logits in the loss: the sampler's temperature, or 1 if that is 0."""
        return self.args.temperature or 1.0

    def _mask(self, groups: Sequence[Group]) -> Tensor:
        truncated = torch.tensor([completion.truncated for group in groups for completion in group.completions])
        return counted_mask(self.args, completion_mask(groups), truncated)

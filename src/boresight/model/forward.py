"""The one function that all forward passes of all methods use: groups in, log-probabilities of their completions out."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from boresight.errors import ModelError
from boresight.model.choice import build_layout, choose
from boresight.model.head import MAX_LOGIT_BYTES, token_logp
from boresight.model.layouts import Predictions
from boresight.model.routers import Routers
from boresight.model.shards import is_sharded, through_root
from boresight.model.verification import Candidate, Forward
from boresight.model.vision import VisionEncoder, join_features
from boresight.modules import redirected, unwrap
from boresight.own_forward import joined_vision
from boresight.types import ExampleSource, Group, HasImages, Ids, LayoutName, ModelFacts, TokenStats


class GroupForward:
    """Log-probabilities of groups under one model. The model's class is never edited; see `attention.install`.

    Other code uses only the call and the attributes below.

    Args:
        model: as loaded, or wrapped by PEFT.
        facts: from `load.model_facts`.
        layout: `"shared"`, `"rows"`, `"plain"` or `"auto"`: see `choice.choose`.
        examples: makes the groups on which the layout is verified. None verifies nothing: for a model whose layout is known.
        joins: see `VisionEncoder`; verification decides about it.
        max_logit_bytes: see `head.token_logp`.
        max_cache_gib: see `vision.VisionEncoder`.
        router_aux_loss_coef: weight of experts' load-balancing loss; None: the model's own.

    Attributes:
        outer: the model as passed, which is trained, saved, and switched between modes.
        model: the transformers model inside it, adapters in its layers.
        facts: as passed.
        layout: the chosen layout.
        verification: how it was chosen.
        examples: as passed.
        max_logit_bytes: as passed.
        vision: encodes images and caches their features; a frozen copy of the model may share it.
        routers: the routers with a load-balancing loss; None: no such loss.
        counts: work done so far: vision_encodes, prompt_tokens, completion_tokens, padded_tokens; and the work that prompts and images
            would take if every completion had a row of its own: unshared_vision_encodes, unshared_prompt_tokens. The caller that
            reports the counts clears them.
    """

    outer: nn.Module
    model: PreTrainedModel
    facts: ModelFacts
    layout: LayoutName
    max_logit_bytes: int
    vision: VisionEncoder
    counts: Counter[str]

    def __init__(
        self,
        model: nn.Module,
        facts: ModelFacts,
        *,
        layout: LayoutName | str = "auto",
        examples: ExampleSource | None = None,
        joins: bool = True,
        max_logit_bytes: int = MAX_LOGIT_BYTES,
        max_cache_gib: float = 2.0,
        router_aux_loss_coef: float | None = 0.0,
    ) -> None:
        if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
            raise ModelError(
                f"{model.active_peft_config.peft_type} puts its own prompts before ours: use LoRA or a similar method."
            )
        self.outer = model
        self.model = unwrap(model)
        self.facts = facts
        self.max_logit_bytes = max_logit_bytes
        self.counts = Counter()
        self.vision = VisionEncoder(self.model, max_cache_gib=max_cache_gib, counts=self.counts)
        self.examples = examples
        self._accepts = set(inspect.signature(self.model.base_model.forward).parameters)
        self.routers = Routers.of(self.model, router_aux_loss_coef)
        self._balance: list[tuple[Tensor, float]] = []
        self._keep_statistics()
        self.verification = choose(model, layout, examples, self._attempt)
        self.vision.joins = joins and self.verification.joins
        self._layout = build_layout(self.model, self.verification.layout, pad_id=facts.pad_id)
        self.layout = self._layout.name

    def _attempt(self, candidate: Candidate) -> Forward:
        """The forward of a candidate, with its own counts."""
        return GroupForward(
            self.outer,
            self.facts,
            layout=candidate.layout,
            joins=candidate.joins,
            max_logit_bytes=self.max_logit_bytes,
            max_cache_gib=0.0,
        )

    def __call__(
        self,
        groups: Sequence[Group],
        *,
        temperature: float = 1.0,
        ban_modalities: bool = False,
        entropy: bool = False,
        entropy_grad: bool = False,
        collision: bool = False,
        wrapped: nn.Module | None = None,
    ) -> TokenStats:
        """Log-probabilities of every completion of every group, in order.

        Args:
            temperature: the sampler's; 1 for data that was not sampled.
            ban_modalities: give zero probability to ids that only the processor may place, as samplers do.
            entropy: also return entropies; `entropy_grad` lets them carry a gradient.
            collision: also return log Σ p² of every token's distribution.
            wrapped: the same model inside DDP or another wrapper, if the wrapper's hooks must see this forward.
        """

        def forward() -> TokenStats:
            self._keep_statistics()
            prompts = self._layout.prompts(groups)
            found = self._predictions(groups)
            self._count(groups, prompts, found)
            return self._stats(
                found,
                banned=self._banned() if ban_modalities else None,
                temperature=temperature,
                entropy=entropy,
                entropy_grad=entropy_grad,
                collision=collision,
            )

        if is_sharded(self.outer):
            return through_root(self.outer, forward)
        if wrapped is None or wrapped is self.outer:
            return forward()
        with redirected(wrapped.module, forward):  # pyright: ignore[reportArgumentType]
            return wrapped()

    def _predictions(self, groups: Sequence[Group]) -> Predictions:
        """One forward of the layout, or one for each group whose image features cannot be joined with others'."""
        if self.vision.joins:
            return self._run(groups)
        return Predictions.joined([self._run([group]) for group in groups])

    def _run(self, groups: Sequence[Group]) -> Predictions:
        features = self._features(self._layout.image_sets(groups))
        if self.routers is None or not torch.is_grad_enabled():
            return self._layout(groups, features)
        with self.routers.recorded() as logits:
            found = self._layout(groups, features)
        counts = self._layout.token_counts(groups)
        self._balance.append((self.routers.loss(logits, counts), float(counts.sum())))
        return found

    def take_balance(self) -> Tensor | None:
        """The load-balancing loss of the passes with gradients since the last call, a mean over tokens; None without such a loss."""
        taken, self._balance = self._balance, []
        total = sum(weight for _, weight in taken)
        return torch.stack([value * (weight / total) for value, weight in taken]).sum() if taken else None

    def _features(self, sets: Sequence[HasImages]) -> dict[str, Any]:
        """The features of these images as keyword arguments of the model's forward, with their grids and sizes, which positions may depend
        on."""
        if not sets or not self._layout.takes_features:
            return {}
        beside = {
            name: tensor.to(self._layout.device)
            for name, tensor in joined_vision(sets, pixels=False).items()
            if name in self._accepts
        }
        return {**beside, "mm_encoder_outputs": {"image": join_features(self.vision(sets))}}

    def image_outputs(self, prompts: Sequence[Sequence[HasImages]]) -> list[Any]:
        """The vision tower's output for these prompts' images, as the model's forward takes it, computed or cached."""
        return self.vision.outputs(prompts)

    @property
    def takes_features(self) -> bool:
        """Whether `image_outputs` can be handed to the model."""
        return self._layout.takes_features

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """A context whose work does not count."""
        before = self.counts.copy()
        try:
            yield
        finally:
            self.counts.clear()
            self.counts.update(before)

    def _keep_statistics(self) -> None:
        """Keep modules with running statistics (BatchNorm in a tower) in evaluation mode, so that an image has the same features in every
        pass. `train()` switches them back, hence at every call; not undone afterwards, because checkpointing runs modules again."""
        for module in self.model.modules():
            if getattr(module, "track_running_stats", False):
                module.eval()

    def _banned(self) -> Ids | None:
        ids = self.facts.modality_ids
        return torch.tensor(ids, device=next(self.model.parameters()).device) if ids else None

    def _stats(self, found: Predictions, **options: Any) -> TokenStats:
        """The head's results, each at the index of its token."""
        results = token_logp(
            self._layout.head, found.hidden, found.targets, max_logit_bytes=self.max_logit_bytes, **options
        )
        logp, *rest = (
            None if values is None else values.new_zeros(found.mask.shape).masked_scatter(found.mask, values)
            for values in results
        )
        return TokenStats(logp, found.mask, *rest)  # pyright: ignore[reportArgumentType]

    def _count(self, groups: Sequence[Group], prompts: Sequence[Group], found: Predictions) -> None:
        if not self._layout.takes_features:
            self.counts["vision_encodes"] += sum(len(each.images) for each in self._layout.image_sets(groups))
        self.counts["prompt_tokens"] += sum(len(group.prompt.ids) for group in prompts)
        self.counts["completion_tokens"] += sum(group.num_completion_tokens for group in groups)
        self.counts["padded_tokens"] += found.num_padded
        self.counts["unshared_prompt_tokens"] += sum(len(group) * len(group.prompt.ids) for group in groups)
        self.counts["unshared_vision_encodes"] += sum(
            len(group) * len(group.prompt.images) + group.num_completion_images for group in groups
        )

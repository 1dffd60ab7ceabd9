"""The one function that all passes of all methods go through: groups in, log-probabilities of their completions out.

Two layouts give the same numbers. `shared` runs a prompt once with its completions as branches. `rows` repeats it for every completion, as
every other trainer does: it is the twin that tests compare with, and the fallback for models whose layers a table cannot serve.
"""

from __future__ import annotations

import inspect
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from boresight.errors import ConfigError, ModelError
from boresight.model.attention import BranchTable, install
from boresight.model.head import MAX_LOGIT_BYTES, Head, token_logp
from boresight.model.load import unwrap
from boresight.model.packing import completion_mask, pack
from boresight.model.vision import VisionEncoder, join_features
from boresight.types import Group, LayoutName, ModelFacts, TokenStats

logger = logging.getLogger(__name__)

SHARED_LAYERS = {"full_attention", "sliding_attention"}
"""Kinds of layers that a branch table serves."""


PROVEN = {
    "gemma3",
    "idefics3",
    "internvl",
    "llava",
    "llava_next",
    "llava_onevision",
    "qwen2_5_vl",
    "qwen2_vl",
    "qwen3_vl",
    "smolvlm",
}
"""Families (`model_type`) whose shared layout tests compare with plain transformers; `auto` shares for these alone."""


def why_not_shared(model: PreTrainedModel) -> str | None:
    """What keeps a model from the shared layout, or None when nothing does."""
    config = model.get_decoder().config
    accepts = inspect.signature(model.base_model.forward).parameters
    foreign = set(getattr(config, "layer_types", None) or []) - SHARED_LAYERS
    if foreign:
        return f"its layers of type {', '.join(sorted(foreign))} carry a state from token to token, which a mask cannot branch"
    if config._attn_implementation == "eager":
        return "it was loaded with eager attention, which each model class defines for itself; 'sdpa' can share"
    if "mm_encoder_outputs" not in accepts:
        return "its forward takes no image features (mm_encoder_outputs)"
    if getattr(model, "_is_stateful", False):
        return "it carries a state from token to token, which a mask cannot branch"
    if getattr(config, "attn_logit_softcapping", None) is not None:
        return "it caps its attention scores"
    if getattr(config, "use_bidirectional_attention", None) or (
        "token_type_ids" in accepts and not _has_image_blocks(model)
    ):
        return "some of its tokens see what comes after them, in a pattern of its own"
    return None


def _has_image_blocks(model: PreTrainedModel) -> bool:
    """Whether the tokens of an image see one another both ways (Gemma 3)."""
    return model.config.model_type == "gemma3"


class GroupForward:
    """Log-probabilities of groups under one model.

    Args:
        model: as loaded, or wrapped by PEFT. The class is never edited; see `attention.install`.
        facts: what `load.model_facts` says of it.
        layout: `"shared"`, `"rows"`, or `"auto"`: shared for the families that are proven to give the same numbers (`PROVEN`).
        max_logit_bytes: see `head.token_logp`.
        max_cache_gib: see `vision.VisionEncoder`.
    """

    def __init__(
        self,
        model: nn.Module,
        facts: ModelFacts,
        *,
        layout: LayoutName | str = "auto",
        max_logit_bytes: int = MAX_LOGIT_BYTES,
        max_cache_gib: float = 2.0,
    ) -> None:
        if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
            raise ModelError(
                f"{model.active_peft_config.peft_type} puts prompts of its own before ours; use LoRA or the like."
            )
        self.outer = model
        self.model = unwrap(model)
        self.facts = facts
        self.head = Head.of(self.model)
        self.max_logit_bytes = max_logit_bytes
        self.counts: Counter[str] = Counter()
        """Work done so far: vision_encodes, prompt_tokens, completion_tokens, padded_tokens; and what prompts and images would have taken
        with nothing shared, every completion a row with its own: unshared_vision_encodes, unshared_prompt_tokens."""
        self.vision = VisionEncoder(self.model, max_cache_gib=max_cache_gib, counts=self.counts)
        self.layout = self._choose(layout)
        self._accepts = set(inspect.signature(self.model.base_model.forward).parameters)

    def _choose(self, layout: str) -> LayoutName:
        if layout not in ("auto", "shared", "rows"):
            raise ConfigError(f"layout={layout!r} is not one of 'auto', 'shared', 'rows'.")
        reason = why_not_shared(self.model) if layout != "rows" else None
        if layout == "auto" and reason is None and self.model.config.model_type not in PROVEN:
            reason = "its family is not proven to share; `boresight doctor --probe` can prove it, layout='shared' then asks for it"
        if reason is not None and layout == "shared":
            raise ConfigError(f"layout='shared' cannot serve {type(self.model).__name__}: {reason}. Use layout='rows'.")
        if reason is not None:
            logger.warning("%s runs one row per completion: %s.", type(self.model).__name__, reason)
        if layout == "rows" or reason is not None:
            return "rows"
        install(self.model)
        return "shared"

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
            temperature: the sampler's; 1 for data that nobody sampled.
            ban_modalities: give ids that only the processor may place no probability, as samplers do.
            entropy: also return entropies; `entropy_grad` lets them carry a gradient.
            collision: also return log Σ p² of every token's distribution.
            wrapped: the same model inside DDP or the like, when its hooks must see this forward.
        """
        run = self._shared if self.layout == "shared" else self._rows
        head = {
            "temperature": temperature,
            "entropy": entropy,
            "entropy_grad": entropy_grad,
            "collision": collision,
        }

        def forward() -> TokenStats:
            return run(groups, banned=banned, **head)

        device = next(self.model.parameters()).device
        banned = (
            torch.tensor(self.facts.modality_ids, device=device) if ban_modalities and self.facts.modality_ids else None
        )
        if wrapped is None or wrapped is self.outer:
            return forward()
        with _redirected(wrapped.module, forward):  # pyright: ignore[reportArgumentType]
            return wrapped()

    def _shared(self, groups: Sequence[Group], *, banned: Tensor | None, **head: Any) -> TokenStats:
        base, device = self.model.base_model, next(self.model.parameters()).device
        row = pack(base, groups)
        table = BranchTable.of(row, image_blocks=_has_image_blocks(self.model)).to(device)
        hidden = base(
            input_ids=row.ids[None].to(device),
            position_ids=(row.positions[None] if row.positions.ndim == 1 else row.positions[:, None]).to(device),
            # A 4-D mask is handed on as it is, and the table takes its place: no L×L mask is built.
            attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device),
            use_cache=False,
            branches=table,
            **self._features(groups),
        ).last_hidden_state[0]
        if not table.visits:
            raise ModelError(
                f"{type(self.model).__name__} does not hand keyword arguments to its attention: use layout='rows'."
            )
        self._count(groups, len(groups), padded=0)
        return self._stats(
            hidden[row.predictors.to(device)], row.targets.to(device), row.mask.to(device), banned, **head
        )

    def _rows(self, groups: Sequence[Group], *, banned: Tensor | None, **head: Any) -> TokenStats:
        base, device = self.model.base_model, next(self.model.parameters()).device
        ids, types, predictors, targets = [], [], [], []
        for group in groups:
            for completion in group.completions:
                own = completion.token_types
                ids.append(torch.cat([group.prompt.ids, completion.ids]))
                types.append(
                    torch.cat([group.prompt.token_types, torch.zeros_like(completion.ids) if own is None else own])
                )
                predictors.append(torch.arange(len(completion.ids))[completion.mask] + len(group.prompt.ids) - 1)
                targets.append(completion.ids[completion.mask])
        mask = pad_sequence([torch.ones_like(row, dtype=torch.bool) for row in ids], True)
        repeated = [group for group in groups for _ in group.completions]
        token_types = pad_sequence(types, True).to(device)
        extra = {name: token_types for name in ("mm_token_type_ids", "token_type_ids") if name in self._accepts}
        # M-RoPE models work out their positions from the images' grids, row by row.
        grids = [group.prompt.vision["image_grid_thw"] for group in repeated if "image_grid_thw" in group.prompt.vision]
        if grids and "image_grid_thw" in self._accepts:
            extra["image_grid_thw"] = torch.cat(grids).to(device)
        hidden = base(
            input_ids=pad_sequence(ids, True, self.facts.pad_id).to(device),
            attention_mask=mask.long().to(device),
            use_cache=False,
            **extra,
            **self._features(repeated),
        ).last_hidden_state
        rows = torch.repeat_interleave(torch.arange(len(ids)), torch.tensor([len(target) for target in targets]))
        self._count(groups, len(ids), padded=int((~mask).sum()))
        places, target_ids = torch.cat(predictors).to(device), torch.cat(targets).to(device)
        return self._stats(
            hidden[rows.to(device), places], target_ids, completion_mask(groups).to(device), banned, **head
        )

    def _features(self, groups: Sequence[Group]) -> dict[str, Any]:
        prompts = [group.prompt for group in groups if group.prompt.vision]
        if not prompts:
            return {}
        if "mm_encoder_outputs" not in self._accepts:
            raise ModelError(
                f"{type(self.model).__name__} takes no image features (mm_encoder_outputs), so its images could not be encoded once: "
                "boresight does not train it."
            )
        return {"mm_encoder_outputs": {"image": join_features(self.vision(prompts))}}

    def _stats(self, hidden: Tensor, targets: Tensor, mask: Tensor, banned: Tensor | None, **head: Any) -> TokenStats:
        found = token_logp(self.head, hidden, targets, banned=banned, max_logit_bytes=self.max_logit_bytes, **head)
        logp, *rest = (
            None if values is None else values.new_zeros(mask.shape).masked_scatter(mask, values) for values in found
        )
        return TokenStats(logp, mask, *rest)  # pyright: ignore[reportArgumentType]

    def _count(self, groups: Sequence[Group], num_prompts: int, *, padded: int) -> None:
        shared = num_prompts == len(groups)
        copies = [1 if shared else len(group) for group in groups]
        self.counts["prompt_tokens"] += sum(n * len(group.prompt.ids) for n, group in zip(copies, groups, strict=True))
        self.counts["completion_tokens"] += sum(group.num_completion_tokens for group in groups)
        self.counts["padded_tokens"] += padded
        self.counts["unshared_prompt_tokens"] += sum(len(group) * len(group.prompt.ids) for group in groups)
        self.counts["unshared_vision_encodes"] += sum(len(group) * len(group.prompt.images) for group in groups)


@contextmanager
def _redirected(module: nn.Module, forward: Callable[[], TokenStats]) -> Iterator[None]:
    """For one call, `module(…)` runs `forward`: so a wrapper's own forward, with its hooks, is what calls it."""
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before

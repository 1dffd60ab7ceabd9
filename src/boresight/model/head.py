"""Hidden states to log-probabilities, in chunks: logits `[B, T, V]` never exist."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from boresight.errors import ModelError

MAX_LOGIT_BYTES = 2**28
"""Most bytes of float32 logits in memory at once. 256 MiB holds 2,048 tokens of a vocabulary of 32,768."""


@dataclass(frozen=True, slots=True)
class Head:
    """The language-model head: all steps from a hidden state to logits.

    Args:
        project: the output embeddings: tied or not, with or without LoRA.
        scale: multiplies the logits (Cohere, Granite).
        soft_cap: limits logits to ±soft_cap by tanh (Gemma 2).
    """

    project: nn.Module
    scale: float = 1.0
    soft_cap: float | None = None

    @classmethod
    def of(cls, model: PreTrainedModel) -> Head:
        """The head of a transformers model.

        If its text config has a scale or a cap, the model's own logits decide how it is applied. Some classes ignore them
        (Aya Vision, PaliGemma 2), and HyperCLOVA X multiplies by the value that Granite divides by.

        Raises:
            ModelError: the model does something else with its logits.
        """
        config = model.config.get_text_config()
        project: Any = model.get_output_embeddings()
        plain = cls(project)
        scale = getattr(config, "logit_scale", None) or 1.0
        scaling = getattr(config, "logits_scaling", None) or 1.0
        cap = getattr(config, "final_logit_softcapping", None)
        candidates = [
            replace(plain, scale=scale / scaling, soft_cap=cap),
            plain,
            replace(plain, scale=scale * scaling, soft_cap=cap),
        ]
        if candidates[0] == plain:
            return plain
        hidden, logits = _own_logits(model)
        for head in candidates:
            if torch.allclose(head.logits(hidden), logits, rtol=1e-2, atol=1e-2 * logits.abs().max().item()):
                return head
        raise ModelError(
            f"{type(model).__name__} changes its logits in a way that neither its scale nor its cap explains."
        )

    def logits(self, hidden: Float[Tensor, "N H"]) -> Float[Tensor, "N V"]:
        """Logits in float32."""
        logits = self.project(hidden).float()
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.soft_cap is not None:
            logits = self.soft_cap * torch.tanh(logits / self.soft_cap)
        return logits


@torch.no_grad()
def _own_logits(model: PreTrainedModel) -> tuple[Float[Tensor, "4 H"], Float[Tensor, "4 V"]]:
    """Random hidden states, and the logits that the model's own forward computes from them."""
    head: Any = model.get_output_embeddings()
    weight = head.weight
    # Large enough for a cap to have an effect.
    hidden = torch.randn(4, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(weight) * 8
    ids = torch.zeros(1, len(hidden), dtype=torch.long, device=weight.device)

    def put(base: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
        output.last_hidden_state = hidden[None]
        return output

    hook = model.base_model.register_forward_hook(put)
    try:
        return hidden, model(input_ids=ids, use_cache=False).logits[0].float()
    finally:
        hook.remove()


class TokenLogp(NamedTuple):
    """Statistics of the distributions that N tokens come from, one entry per token."""

    logp: Float[Tensor, "N"]
    """In nats, float32."""
    entropy: Float[Tensor, "N"] | None
    """In nats, float32; None if not requested."""
    greedy: Bool[Tensor, "N"] | None
    """Whether the token is the most likely one; None without entropy."""
    log_collision: Float[Tensor, "N"] | None
    """log Σ_v p_v², in nats; None if not requested."""


def token_logp(
    head: Head,
    hidden: Float[Tensor, "N H"],
    targets: Int[Tensor, "N"],
    *,
    temperature: float = 1.0,
    banned: Int[Tensor, "_"] | None = None,
    entropy: bool = False,
    entropy_grad: bool = False,
    collision: bool = False,
    max_logit_bytes: int = MAX_LOGIT_BYTES,
) -> TokenLogp:
    """Log-probability of each target, and the entropy of the distribution it was sampled from.

    Each chunk of logits is computed, used and freed. If all chunks together exceed `max_logit_bytes`, the backward pass recomputes
    each.

    Args:
        hidden: final hidden states.
        targets: ids.
        temperature: divides the logits before the softmax.
        banned: ids whose probability is zero, as in sampling.
        entropy: whether to return entropies.
        entropy_grad: whether entropies carry a gradient.
        collision: whether to return log Σ_v p_v², without a gradient.
    """

    def chunk_stats(hidden: Float[Tensor, "n H"], targets: Int[Tensor, "n"]) -> TokenLogp:
        logits = head.logits(hidden) / temperature
        if banned is not None:
            logits = logits.index_fill(-1, banned, -torch.inf)
        log_total = logits.logsumexp(-1)
        logp = logits.gather(-1, targets[:, None]).squeeze(-1) - log_total
        log_collision = (2 * logits.detach()).logsumexp(-1) - 2 * log_total.detach() if collision else None
        if not entropy:
            return TokenLogp(logp, None, None, log_collision)
        with torch.set_grad_enabled(entropy_grad and torch.is_grad_enabled()):
            probability = torch.exp(logits - log_total[:, None])
            # 0 · −inf of a banned id is 0, not NaN.
            mean = (probability * (logits if banned is None else logits.index_fill(-1, banned, 0.0))).sum(-1)
            greedy = logits.detach().argmax(-1) == targets
            return TokenLogp(logp, log_total - mean, greedy, log_collision)

    weight: Any = head.project.weight
    vocab = len(weight)
    size = max(1, max_logit_bytes // (4 * vocab))
    if len(targets) <= size:
        return chunk_stats(hidden, targets)
    recompute = torch.is_grad_enabled()
    chunks = [
        checkpoint(chunk_stats, part, target, use_reentrant=False) if recompute else chunk_stats(part, target)
        for part, target in zip(hidden.split(size), targets.split(size), strict=True)
    ]
    return TokenLogp(*(None if parts[0] is None else torch.cat(parts) for parts in zip(*chunks, strict=True)))  # pyright: ignore[reportArgumentType]

"""Hidden states to log-probabilities, in chunks: logits `[B, T, V]` never exist."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from boresight.errors import ModelError

MAX_LOGIT_BYTES = 2**28
"""Most bytes of float32 logits in memory at once. 256 MiB holds 2,048 tokens of a vocabulary of 32,768."""


@runtime_checkable
class LogitSource(Protocol):
    """From what a forward pass returns for each predicted token to logits."""

    @property
    def vocab_size(self) -> int: ...

    def logits(self, hidden: Float[Tensor, "N H"]) -> Float[Tensor, "N V"]:
        """Logits in float32, or float64 of a model in float64."""
        ...


def wide(tensor: Tensor) -> Tensor:
    """A tensor in float32, or in float64 if it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@dataclass(frozen=True, slots=True)
class OwnLogits:
    """Of a forward pass that returns logits itself."""

    vocab_size: int

    def logits(self, hidden: Float[Tensor, "N V"]) -> Float[Tensor, "N V"]:
        return wide(hidden)


@dataclass(frozen=True, slots=True)
class Head:
    """The language-model head: all steps from a hidden state to logits.

    Args:
        project: the output embeddings: tied or not, with or without LoRA.
        scale: multiplies the logits (Cohere, Granite, Inkling).
        soft_cap: limits logits to ±soft_cap by tanh (Gemma 2).
    """

    project: nn.Module
    scale: float = 1.0
    soft_cap: float | None = None

    @classmethod
    @torch.no_grad()
    def of(cls, model: PreTrainedModel) -> Head:
        """The head of a transformers model, as the model's own logits show it.

        No option of a config decides, because classes differ in which they honour: Aya Vision and PaliGemma 2 ignore theirs, and
        HyperCLOVA X multiplies by the value that Granite divides by. A measured scale is rounded to the nearest number of the config.

        Raises:
            ModelError: the model does something else with its logits, or its base model returns no hidden states.
        """
        project: Any = model.get_output_embeddings()
        plain = cls(project)
        hidden, logits = _own_logits(model)
        small, large = seen = list(zip(hidden.chunk(2), logits.chunk(2), strict=True))
        if all(_explains(plain, *pair) for pair in seen):
            return plain
        scale = _nearest(_ratio(plain.logits(small[0]), small[1]), model.config)
        for cap in (None, _nearest(large[1].abs().max().item(), model.config)):
            head = replace(plain, scale=scale, soft_cap=cap)
            if all(_explains(head, *pair) for pair in seen):
                return head
        raise ModelError(f"{type(model).__name__} changes its logits in a way that neither a scale nor a cap explains.")

    @property
    def vocab_size(self) -> int:
        weight: Any = self.project.weight
        return len(weight)

    def logits(self, hidden: Float[Tensor, "N H"]) -> Float[Tensor, "N V"]:
        """Logits in float32, or float64 of a model in float64."""
        logits = wide(self.project(hidden))
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.soft_cap is not None:
            logits = self.soft_cap * torch.tanh(logits / self.soft_cap)
        return logits


@torch.no_grad()
def _own_logits(model: PreTrainedModel) -> tuple[Float[Tensor, "8 H"], Float[Tensor, "8 V"]]:
    """Random hidden states, and the logits that the model's own forward computes from them: four states so small that no cap bends their
    logits, and four so large that nothing but a cap is left of them.

    Raises:
        ModelError: the base model returns no hidden states.
    """
    head: Any = model.get_output_embeddings()
    weight = head.weight
    hidden = torch.randn(8, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(weight)
    hidden = hidden * torch.tensor([1e-3] * 4 + [1e3] * 4).to(hidden)[:, None]
    ids = torch.zeros(1, len(hidden), dtype=torch.long, device=weight.device)
    was_put: list[bool] = []

    def put(base: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
        if getattr(output, "last_hidden_state", None) is not None:
            output.last_hidden_state = hidden[None]
            was_put.append(True)
        return output

    def put_before(head: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        was_put.append(True)
        return (hidden[None], *arguments[1:])

    # Where the base model is the model itself, `own_forward.final_states` takes what its head receives.
    base: Any = model.base_model
    hook = head.register_forward_pre_hook(put_before) if base is model else base.register_forward_hook(put)
    try:
        logits = model(input_ids=ids, use_cache=False).logits[0].float()
    finally:
        hook.remove()
    if not was_put:
        raise ModelError(f"{type(model).__name__} has no base model that returns hidden states.")
    return hidden, logits


def _explains(head: Head, hidden: Tensor, logits: Tensor) -> bool:
    """Whether the head computes these logits, up to the rounding of a bf16 product."""
    return torch.allclose(head.logits(hidden), logits, rtol=1e-2, atol=1e-2 * logits.abs().max().item())


def _ratio(logits: Tensor, own: Tensor) -> float:
    """own / logits, from the largest of them."""
    kept = logits.abs() >= logits.abs().median()
    return (own[kept] / logits[kept]).median().item()


def _nearest(value: float, config: Any) -> float:
    """The number of a config, or the reciprocal of one, that is within 1 % of a measured value; the value itself if there is none.

    Products of two are tried too (a multiplier on top of a scale).
    """
    numbers = {
        float(number)
        for part in (config, config.get_text_config())
        for name, number in part.to_dict().items()
        if isinstance(number, (int, float)) and not isinstance(number, bool) and number and LOGIT_NAME.search(name)
    }
    single = {1.0, *numbers, *(1 / number for number in numbers)}
    known = {first * second for first in single for second in single}
    best = min(known, key=lambda number: abs(number - value))
    return best if abs(best - value) <= 1e-2 * abs(value) else value


LOGIT_NAME = re.compile("logit|multiplier|mup|cap|scale|scaling")
"""Names of config fields that may hold a head's scale or cap."""


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
    head: LogitSource,
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
        head: turns what follows into logits.
        hidden: final hidden states, or logits (`OwnLogits`).
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

    size = max(1, max_logit_bytes // (4 * head.vocab_size))
    if len(targets) <= size:
        return chunk_stats(hidden, targets)
    recompute = torch.is_grad_enabled()
    chunks = [
        checkpoint(chunk_stats, part, target, use_reentrant=False) if recompute else chunk_stats(part, target)
        for part, target in zip(hidden.split(size), targets.split(size), strict=True)
    ]
    return TokenLogp(*(None if parts[0] is None else torch.cat(parts) for parts in zip(*chunks, strict=True)))  # pyright: ignore[reportArgumentType]

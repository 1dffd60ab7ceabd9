"""Seconds and price of a GRPO step, simulated from stated rates of operations and bytes.

Every number is an estimate: operations over a utilised peak, bytes over a utilised bandwidth. `benchmarks/planner.py` compares the update
with a measured step on a CPU, at that CPU's measured rate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from boresight.doctor.size import Size
from boresight.errors import ConfigError

BFLOAT16, FLOAT32 = 2, 4
GPUS_OF_A_MACHINE = 8


@dataclass(frozen=True, slots=True)
class Card:
    """Peak rates of a GPU, as its data sheet has them."""

    memory: float
    """Bytes."""
    flops: float
    """bf16 operations per second, dense."""
    bandwidth: float
    """Bytes per second of its memory."""
    link: float
    """Bytes per second to a GPU of the same machine, each way."""
    network: float
    """Bytes per second to a GPU of another machine, each way: 400 Gbit/s for each GPU unless noted."""


CARDS: Mapping[str, Card] = {
    "a100": Card(80e9, 312e12, 2.0e12, 300e9, 25e9),  # 200 Gbit/s
    "h100": Card(80e9, 989e12, 3.35e12, 450e9, 50e9),
    "h200": Card(141e9, 989e12, 4.8e12, 450e9, 50e9),
    "b200": Card(180e9, 2250e12, 8.0e12, 900e9, 50e9),
    "l40s": Card(48e9, 362e12, 0.864e12, 32e9, 12.5e9),  # PCIe 4.0 × 16, 100 Gbit/s
}
"""Name → rates, from NVIDIA's data sheets of the SXM cards and of the L40S."""


@dataclass(frozen=True, slots=True)
class Rates:
    """A card at work."""

    card: Card = CARDS["h100"]
    utilisation: float = 0.4
    """Share of the peak operations per second that an update or a prefill reaches."""
    bandwidth_share: float = 0.6
    """Share of the memory's and the links' bandwidth that is reached."""
    price: float = 3.0
    """Of a GPU for an hour, in any currency."""

    @property
    def flops(self) -> float:
        return self.card.flops * self.utilisation

    @property
    def bandwidth(self) -> float:
        return self.card.bandwidth * self.bandwidth_share

    def link(self, num_gpus: int) -> float:
        """Bytes per second between the GPUs of a run."""
        peak = self.card.link if num_gpus <= GPUS_OF_A_MACHINE else self.card.network
        return peak * self.bandwidth_share


@dataclass(frozen=True, slots=True)
class Work:
    """What one optimizer step learns from, over all GPUs."""

    prompts: int = 64
    completions: int = 8
    """Of each prompt."""
    prompt_tokens: int = 1024
    """With those of its images."""
    image_tokens: int = 768
    completion_tokens: int = 512

    def __post_init__(self) -> None:
        if min(self.prompts, self.completions, self.prompt_tokens, self.completion_tokens) < 1 or self.image_tokens < 0:
            raise ConfigError(f"{self}: counts must be above 0, and image_tokens not below.")
        if self.image_tokens > self.prompt_tokens:
            raise ConfigError(
                f"image_tokens={self.image_tokens} are among prompt_tokens={self.prompt_tokens}: they cannot be more."
            )

    @property
    def group_tokens(self) -> int:
        """Tokens of a prompt, read once, and of its completions."""
        return self.prompt_tokens + self.completions * self.completion_tokens

    @property
    def image_share(self) -> float:
        """Of a group's tokens."""
        return self.image_tokens / self.group_tokens

    @property
    def num_completions(self) -> int:
        return self.prompts * self.completions


@dataclass(frozen=True, slots=True)
class Flops:
    """Floating-point operations of a forward pass."""

    language: float
    vision: float

    @property
    def total(self) -> float:
        return self.language + self.vision


def forward_flops(size: Size, work: Work) -> Flops:
    """Operations of a forward pass over a step's groups: two per weight and token, and attention's products.

    The tower's attention is left out, since most towers attend in windows.
    """
    prompt, answers = work.prompt_tokens, work.completions * work.completion_tokens
    attended = prompt * prompt / 2 + answers * (prompt + work.completion_tokens / 2)
    attention = 4 * size.language.num_layers * size.language.width * attended
    language = 2 * size.num_active * (prompt + answers) + 2 * size.num_head * answers + attention
    vision = 2 * work.image_tokens * (size.patches_per_token * size.weights["vision"] + size.weights["projector"])
    return Flops(work.prompts * language, work.prompts * vision)


def update_flops(size: Size, work: Work, *, adapter: bool, checkpointing: bool = True) -> float:
    """Operations of an update: a forward pass, one more for checkpointing, and a backward pass of twice as many.

    Args:
        adapter: the language model's weights and the tower are frozen: no gradients of weights, and only one pass of the tower.
    """
    forward = forward_flops(size, work)
    again = int(checkpointing)
    if adapter:
        return (2 + again) * forward.language + forward.vision
    return (3 + again) * forward.total


@dataclass(frozen=True, slots=True)
class Seconds:
    """Of the phases of a step, one after another."""

    sample: float
    update: float
    exchange: float
    """Of gathering weights, and summing gradients over GPUs."""
    optimizer: float
    sync: float
    """Of sending weights to the engine."""

    @property
    def total(self) -> float:
        return self.sample + self.update + self.exchange + self.optimizer + self.sync


def sample_seconds(size: Size, work: Work, rates: Rates, num_gpus: int) -> float | None:
    """Seconds to sample: prompts are read once, and every decoding step reads the weights in bf16, and the keys and values so far.

    The engine has 90 % of every GPU (the trainer's memory is free, or it is elsewhere). A model that does not fit is divided over GPUs.

    Returns:
        None if the engine's weights do not fit on all GPUs together.
    """
    weights = BFLOAT16 * size.num_weights
    usable = 0.9 * rates.card.memory
    divided = 1
    while divided < num_gpus and weights / divided > 0.8 * usable:
        divided *= 2
    if weights >= usable * min(divided, num_gpus):
        return None
    copies = max(1, num_gpus // divided)
    kv_bytes = 2 * BFLOAT16 * size.language.num_layers * size.language.kv_width
    completions = work.num_completions / copies
    kept = kv_bytes * (
        completions * work.completion_tokens + completions / work.completions * work.prompt_tokens
    )  # at the end of all
    waves = math.ceil(kept / (divided * usable - weights))
    lengths = completions * (work.prompt_tokens + work.completion_tokens / 2)
    read = work.completion_tokens * (waves * weights + kv_bytes * lengths)
    return forward_flops(size, work).total / (rates.flops * num_gpus) + read / (divided * rates.bandwidth)


def step_seconds(
    size: Size,
    work: Work,
    rates: Rates,
    num_gpus: int,
    *,
    adapter_weights: float,
    sharded: bool,
    held_bytes: float,
    layer_passes: int = 0,
) -> Seconds | None:
    """Seconds of a GRPO step without a reference, sampled anew in every step.

    Args:
        adapter_weights: trained weights of an adapter; 0: all weights are trained.
        sharded: whether FSDP2 divides the weights: gathered once in bf16, and their gradients scattered once in float32.
        held_bytes: of trained weights, gradients and optimizer state on each GPU, which an optimizer step reads and writes.
        layer_passes: micro-batches of a step on a GPU, where FSDP2 gathers each layer in the forward and in the backward pass of each,
            and scatters its gradients; 0: it gathers layers as all other weights.

    Returns:
        None if sampling does not fit.
    """
    sample = sample_seconds(size, work, rates, num_gpus)
    if sample is None:
        return None
    trained = adapter_weights or size.num_weights
    ring = (num_gpus - 1) / num_gpus
    by_layers = size.num_in_layers if layer_passes else 0
    exchanged = ring * (trained - by_layers) * ((BFLOAT16 + FLOAT32) if sharded else 2 * FLOAT32)
    exchanged += ring * by_layers * layer_passes * (2 * BFLOAT16 + FLOAT32)
    update = update_flops(size, work, adapter=bool(adapter_weights)) / (rates.flops * num_gpus)
    return Seconds(
        sample=sample,
        update=update,
        exchange=exchanged / rates.link(num_gpus),
        optimizer=2 * held_bytes / rates.bandwidth,
        sync=BFLOAT16 * trained / rates.link(num_gpus),
    )


def price(seconds: float, rates: Rates, num_gpus: int) -> float:
    """Of so many seconds on all GPUs."""
    return seconds * num_gpus * rates.price / 3600

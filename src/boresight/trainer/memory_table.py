"""Bytes of memory per parameter of every way to hold weights, gradients and optimizer states: the one source of such figures.

The table of parts, `boresight doctor --plan` and docs/how-to/memory.md use them; `benchmarks/memory.py` compares them with what tensors
take. Activations are not counted here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

FLOAT32, BFLOAT16 = 4.0, 2.0
FOUR_BIT = 0.5 + 4 / 64
"""bitsandbytes' nf4 and fp4: half a byte, and a float32 scale for each block of 64."""
NESTED_FOUR_BIT = 0.5 + 1 / 64 + 4 / (64 * 256)
"""With `bnb_4bit_use_double_quant`: the scales in 8 bits, and a float32 for each 256 of them."""
EIGHT_BIT = 1.0
"""LLM.int8(): a byte. Its float32 scale of a row is 4 bytes by the row's width, below 0.01."""
BLOCK = 256
"""Values of an 8-bit or 4-bit optimizer state that share a float32 scale, in bitsandbytes and torchao as transformers calls them."""
MOMENTS = (("ademamix", 3), ("adamw", 2), ("lion", 1), ("rmsprop", 1), ("adagrad", 1), ("sgd", 0))
"""The word in an optimizer's name → states per weight."""


def state_bytes(optim: str, weight: float = FLOAT32) -> float | None:
    """Bytes of optimizer state per trained weight, by the optimizer's name in transformers; None if it is not known.

    Tensors below 4,096 weights keep states of 32 bits in any case.

    Args:
        weight: bytes of a trained weight; states that are not quantised have its dtype, but bitsandbytes' are float32.
    """
    name = str(getattr(optim, "value", optim)).rpartition(".")[2].lower()
    moments = next((count for word, count in MOMENTS if word in name), None)
    if moments is None or "galore" in name or "apollo" in name:
        return None
    if "8bit" in name or "4bit" in name:
        return moments * ((1 if "8bit" in name else 0.5) + 4 / BLOCK)
    return moments * (FLOAT32 if "32bit" in name or "bnb" in name or "paged" in name else weight)


@dataclass(frozen=True, slots=True)
class Choice:
    """Bytes per parameter of the base, and per trained weight."""

    base: float
    """Of a weight that is frozen; 0 where every weight is trained."""
    weight: float
    """Of a trained weight."""
    gradient: float
    optimizer: float

    @property
    def trained(self) -> float:
        """Bytes per trained weight, with its gradient and its optimizer state."""
        return self.weight + self.gradient + self.optimizer


ADAM, ADAM_8BIT = 2 * FLOAT32, 2 * (1 + 4 / BLOCK)

CHOICES: Mapping[str, Choice] = {
    "full": Choice(0, FLOAT32, FLOAT32, ADAM),
    "full, 8-bit optimizer": Choice(0, FLOAT32, FLOAT32, ADAM_8BIT),
    "full, bf16 with stochastic rounding": Choice(0, BFLOAT16, BFLOAT16, 2 * BFLOAT16),
    "full, bf16 with stochastic rounding, 8-bit optimizer": Choice(0, BFLOAT16, BFLOAT16, ADAM_8BIT),
    "LoRA": Choice(BFLOAT16, FLOAT32, FLOAT32, ADAM),
    "LoRA, 8-bit base": Choice(EIGHT_BIT, FLOAT32, FLOAT32, ADAM),
    "LoRA, 4-bit base": Choice(FOUR_BIT, FLOAT32, FLOAT32, ADAM),
}
"""What a user may choose → its bytes."""

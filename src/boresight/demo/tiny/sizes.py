"""How large a tiny model is, and the recipe that a family makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerFast, ProcessorMixin

from boresight.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large a tiny model is. The defaults suit tests; the demo and the benchmarks ask for more."""

    hidden_size: int = 64
    intermediate_size: int | None = None
    """Twice the hidden size when None."""
    num_layers: int = 2
    """Of the language model."""
    num_heads: int = 4
    num_kv_heads: int = 2
    vocab_size: int = 1024
    """Rows of the embedding; the tokenizer fills as many of them as its small corpus yields."""
    max_position_embeddings: int = 4096
    vision_hidden_size: int = 32
    vision_depth: int = 2
    vision_heads: int = 2
    patch_size: int = 8
    """Pixels along a patch. An image token covers 2×2 patches (in the LLaVA line: one patch of twice the size)."""
    tile_size: int = 32
    """Pixels along a tile, in families that cut an image into tiles or resize it to one."""
    max_pixels: int = 128 * 128
    """The pixel budget of an image, in the Qwen families."""
    tie_word_embeddings: bool | None = None
    """As the family's published checkpoints when None."""
    initializer_range: float | None = None
    """Standard deviation of every weight matrix. None scales each by its fan-in, which makes a small model learn faster
    and its random logits differ enough for tests to bite; transformers would use 0.02."""

    def __post_init__(self) -> None:
        for name, value, unit, reason in (
            ("hidden_size", self.hidden_size, 4 * self.num_heads, "a head needs four rotary dimensions at least"),
            ("num_heads", self.num_heads, self.num_kv_heads, "heads share keys and values in equal parts"),
            (
                "vision_hidden_size",
                self.vision_hidden_size,
                4 * self.vision_heads,
                "the vision tower rotates two axes in pairs",
            ),
            ("tile_size", self.tile_size, self.token_size, "a tile holds whole image tokens"),
        ):
            if value % unit:
                raise ConfigError(f"{name}={value} must be a multiple of {unit}: {reason}.")

    @property
    def token_size(self) -> int:
        """Pixels along an image token."""
        return 2 * self.patch_size

    @property
    def tokens_per_tile(self) -> int:
        return (self.tile_size // self.token_size) ** 2

    @property
    def half_head_dim(self) -> int:
        """Rotary frequencies of a head of the language model."""
        return self.hidden_size // self.num_heads // 2

    def text(self, tokenizer: PreTrainedTokenizerFast, *, tied: bool) -> dict[str, Any]:
        """The settings of every family's text configuration."""
        return {
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size or 2 * self.hidden_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "max_position_embeddings": self.max_position_embeddings,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "tie_word_embeddings": self.tied(tied),
        }

    def vision(self) -> dict[str, Any]:
        """The settings of every ViT-like vision tower."""
        return {
            "hidden_size": self.vision_hidden_size,
            "intermediate_size": 2 * self.vision_hidden_size,
            "num_hidden_layers": self.vision_depth,
            "num_attention_heads": self.vision_heads,
        }

    def qwen_vision(self) -> dict[str, Any]:
        """The same under the names of Qwen's vision towers."""
        return {
            "depth": self.vision_depth,
            "num_heads": self.vision_heads,
            "patch_size": self.patch_size,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        }

    def tied(self, published: bool) -> bool:
        return published if self.tie_word_embeddings is None else self.tie_word_embeddings


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a family's builder returns: everything but the weights."""

    config: PreTrainedConfig
    processor: ProcessorMixin
    stop_tokens: tuple[str, ...]

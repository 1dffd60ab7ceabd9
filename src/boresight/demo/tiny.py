"""Tiny vision-language models of the real transformers classes, with random weights, built offline in about a second.

`build_tiny("qwen2_5_vl", folder)` writes a checkpoint that plain `from_pretrained` loads: configuration, weights, the
family's real processor, a tokenizer trained on the spot, its chat template and its stop ids. Every family keeps what makes
it itself (window attention, DeepStack, tiles, sliding layers), and as its published checkpoints do it ties the head or not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import torch
import transformers
from transformers import (
    AutoModelForImageTextToText,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)

from boresight.demo import tiny_text
from boresight.errors import ConfigError, nearest


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
    """Pixels along a patch. A picture token covers 2×2 patches (in the LLaVA line: one patch of twice the size)."""
    tile_size: int = 32
    """Pixels along a tile, in families that cut a picture into tiles or resize it to one."""
    max_pixels: int = 128 * 128
    """The pixel budget of a picture, in the Qwen families."""
    tie_word_embeddings: bool | None = None
    """As the family's published checkpoints when None."""
    initializer_range: float | None = None
    """Standard deviation of every weight matrix. None scales each by its fan-in, which makes a small model learn faster
    and its random logits differ enough for tests to bite; transformers would use 0.02."""

    @property
    def token_size(self) -> int:
        """Pixels along a picture token."""
        return 2 * self.patch_size

    @property
    def tokens_per_tile(self) -> int:
        return (self.tile_size // self.token_size) ** 2

    @property
    def half_head_dim(self) -> int:
        """Rotary frequencies of a head of the language model."""
        return self.hidden_size // self.num_heads // 2

    def text(self, tokenizer: PreTrainedTokenizerFast, *, tied: bool) -> dict:
        """The settings that every family's text configuration understands."""
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

    def vision(self) -> dict:
        """The settings that every ViT-like tower understands."""
        return {
            "hidden_size": self.vision_hidden_size,
            "intermediate_size": 2 * self.vision_hidden_size,
            "num_hidden_layers": self.vision_depth,
            "num_attention_heads": self.vision_heads,
        }

    def qwen_vision(self) -> dict:
        """The same under the Qwen towers' names."""
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


def build_tiny(family: str, folder: Path | str, *, seed: int = 0, **sizes: int | float | bool | None) -> Path:
    """Write a tiny model of `family` with random weights to `folder`, and return the folder.

    Args:
        family: a name in `FAMILIES`.
        seed: of the weights; the same seed and sizes write the same weights, and torch's global generator is left alone.
        sizes: fields of `Sizes`.

    Raises:
        ConfigError: an unknown family or size, or sizes that do not fit together.
    """
    if family not in FAMILIES:
        raise ConfigError(f"Unknown family {family!r}; there are {', '.join(FAMILIES)}.{nearest(family, FAMILIES)}")
    known = [field.name for field in fields(Sizes)]
    if unknown := [name for name in sizes if name not in known]:
        raise ConfigError(f"Unknown size {unknown[0]!r}; there are {', '.join(known)}.{nearest(unknown[0], known)}")
    wanted = Sizes(**sizes)  # pyright: ignore[reportArgumentType]
    recipe = FAMILIES[family](wanted)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(recipe.config)
        draw_weights(model, wanted.initializer_range)
    tokenizer = recipe.processor.tokenizer
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.convert_tokens_to_ids(list(recipe.stop_tokens)),
        pad_token_id=tokenizer.pad_token_id,
    )
    folder = Path(folder)
    model.save_pretrained(folder)
    recipe.processor.save_pretrained(folder)
    return folder


@torch.no_grad()
def draw_weights(model: PreTrainedModel, initializer_range: float | None) -> None:
    """Redraw every weight matrix from a normal distribution; biases, gains and other vectors keep their initial values."""
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.normal_(0.0, initializer_range or weight[0].numel() ** -0.5)


QWEN_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


def qwen_tokenizer(sizes: Sizes, chat_template: str) -> PreTrainedTokenizerFast:
    return tiny_text.trained_tokenizer(
        QWEN_TOKENS,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        vocab_size=sizes.vocab_size,
        chat_template=chat_template,
    )


def qwen_recipe(
    sizes: Sizes,
    config_class: type[PreTrainedConfig],
    processor_class: type[ProcessorMixin],
    video_processor_class: type,
    *,
    text: dict,
    vision: dict,
    default_system: str | None,
) -> Recipe:
    """The Qwen-VL line: dynamic resolution, 2×2 patches merged into a picture token, M-RoPE."""
    tokenizer = qwen_tokenizer(sizes, tiny_text.chatml(tiny_text.QWEN_VL, default_system=default_system))
    pixels = {"shortest_edge": (2 * sizes.token_size) ** 2, "longest_edge": sizes.max_pixels}
    patches = {"patch_size": sizes.patch_size, "temporal_patch_size": 2, "merge_size": 2}
    config = config_class(
        text_config=sizes.text(tokenizer, tied=True) | text,
        vision_config=sizes.qwen_vision() | vision,
        tie_word_embeddings=sizes.tied(True),
        **{
            f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{name}{suffix}|>")
            for name, suffix in (("image", "_pad"), ("video", "_pad"), ("vision_start", ""), ("vision_end", ""))
        },
    )
    processor = processor_class(
        image_processor=transformers.Qwen2VLImageProcessor(size=pixels, **patches),
        tokenizer=tokenizer,
        video_processor=video_processor_class(size=pixels, **patches),
        chat_template=tokenizer.chat_template,
    )
    return Recipe(config, processor, ("<|im_end|>", "<|endoftext|>"))


def mrope(sizes: Sizes, spatial: int) -> dict:
    """M-RoPE that gives `spatial` rotary frequencies each to height and width, and the rest to time."""
    sections = [sizes.half_head_dim - 2 * spatial, spatial, spatial]
    return {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": sections}


def qwen2_vl(sizes: Sizes) -> Recipe:
    return qwen_recipe(
        sizes,
        transformers.Qwen2VLConfig,
        transformers.Qwen2VLProcessor,
        transformers.Qwen2VLVideoProcessor,
        text={"rope_parameters": mrope(sizes, 3 * sizes.half_head_dim // 8)},
        vision={"embed_dim": sizes.vision_hidden_size, "hidden_size": sizes.hidden_size, "mlp_ratio": 2},
        default_system="You are a helpful assistant.",
    )


def qwen2_5_vl(sizes: Sizes) -> Recipe:
    """Windows of 2×2 picture tokens in all but the tower's last layer."""
    return qwen_recipe(
        sizes,
        transformers.Qwen2_5_VLConfig,
        transformers.Qwen2_5_VLProcessor,
        transformers.Qwen2VLVideoProcessor,
        text={"rope_parameters": mrope(sizes, 3 * sizes.half_head_dim // 8)},
        vision={
            "hidden_size": sizes.vision_hidden_size,
            "intermediate_size": 2 * sizes.vision_hidden_size,
            "out_hidden_size": sizes.hidden_size,
            "window_size": 2 * sizes.token_size,
            "fullatt_block_indexes": [sizes.vision_depth - 1],
        },
        default_system="You are a helpful assistant.",
    )


SMOLVLM_TOKENS = (
    "<fake_token_around_image>",
    "<image>",
    "<end_of_utterance>",
    "<global-img>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
)


def tiled_idefics(
    sizes: Sizes,
    tokenizer: PreTrainedTokenizerFast,
    config_class: type[PreTrainedConfig],
    image_processor_class: type,
    build_processor: Callable[..., ProcessorMixin],
) -> Recipe:
    """SmolVLM and Idefics 3: a SigLIP tower over up to 2×2 tiles and the whole picture, 2×2 patches shuffled into a token."""
    config = config_class(
        text_config=sizes.text(tokenizer, tied=False) | {"model_type": "llama"},
        vision_config=sizes.vision() | {"image_size": sizes.tile_size, "patch_size": sizes.patch_size},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
        scale_factor=2,
        tie_word_embeddings=sizes.tied(False),
    )
    tile, whole = {"longest_edge": sizes.tile_size}, {"longest_edge": 2 * sizes.tile_size}
    processor = build_processor(
        image_processor=image_processor_class(max_image_size=tile, size=whole),
        tokenizer=tokenizer,
        image_seq_len=sizes.tokens_per_tile,
        chat_template=tokenizer.chat_template,
    )
    return Recipe(config, processor, ("<end_of_utterance>",))


def smolvlm(sizes: Sizes) -> Recipe:
    tokenizer = tiny_text.trained_tokenizer(
        ("<|im_start|>", "<|im_end|>", "<video>", *SMOLVLM_TOKENS),
        eos_token="<end_of_utterance>",
        pad_token="<|im_end|>",
        vocab_size=sizes.vocab_size,
        chat_template=tiny_text.utterances("<|im_start|>"),
    )
    video_processor = transformers.SmolVLMVideoProcessor(
        size={"longest_edge": 2 * sizes.tile_size},
        max_image_size={"longest_edge": sizes.tile_size},
        video_sampling={"fps": 1, "max_frames": 4, "video_size": {"longest_edge": 2 * sizes.tile_size}},
    )
    return tiled_idefics(
        sizes,
        tokenizer,
        transformers.SmolVLMConfig,
        transformers.SmolVLMImageProcessor,
        lambda **parts: transformers.SmolVLMProcessor(video_processor=video_processor, **parts),
    )


Builder = Callable[[Sizes], Recipe]

FAMILIES: dict[str, Builder] = {
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "smolvlm": smolvlm,
}

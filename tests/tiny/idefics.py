"""SmolVLM and Idefics 3: tiles, each announced by its row and column."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers
from transformers import PreTrainedConfig, PreTrainedTokenizerFast, ProcessorMixin

from boresight.demo.tiny.sizes import Recipe, Sizes
from boresight.demo.tiny.tokenizer import token_id, trained_tokenizer
from tests.tiny import chat_templates

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
    config_class: Callable[..., PreTrainedConfig],
    image_processor_class: Callable[..., Any],
    build_processor: Callable[..., ProcessorMixin],
) -> Recipe:
    """A SigLIP tower over up to 2×2 tiles and the whole image, 2×2 patches shuffled into a token, on Llama."""
    config = config_class(
        text_config=sizes.text(tokenizer, tied=False) | {"model_type": "llama"},
        vision_config=sizes.vision() | {"image_size": sizes.tile_size, "patch_size": sizes.patch_size},
        image_token_id=token_id(tokenizer, "<image>"),
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
    tokenizer = trained_tokenizer(
        ("<|im_start|>", "<|im_end|>", "<video>", *SMOLVLM_TOKENS),
        eos_token="<end_of_utterance>",
        pad_token="<|im_end|>",
        vocab_size=sizes.vocab_size,
        chat_template=chat_templates.utterances("<|im_start|>"),
    )
    video_processor = transformers.SmolVLMVideoProcessor(
        size={"longest_edge": 2 * sizes.tile_size},
        max_image_size={"longest_edge": sizes.tile_size},
        num_frames=4,
        fps=1,
    )
    return tiled_idefics(
        sizes,
        tokenizer,
        transformers.SmolVLMConfig,
        transformers.SmolVLMImageProcessor,
        lambda **parts: transformers.SmolVLMProcessor(video_processor=video_processor, **parts),
    )


def idefics3(sizes: Sizes) -> Recipe:
    tokenizer = trained_tokenizer(
        ("<|begin_of_text|>", "<|eot_id|>", *SMOLVLM_TOKENS),
        bos_token="<|begin_of_text|>",
        eos_token="<end_of_utterance>",
        pad_token="<|eot_id|>",
        vocab_size=sizes.vocab_size,
        chat_template=chat_templates.utterances("<|begin_of_text|>"),
    )
    return tiled_idefics(
        sizes,
        tokenizer,
        transformers.Idefics3Config,
        transformers.Idefics3ImageProcessor,
        transformers.Idefics3Processor,
    )

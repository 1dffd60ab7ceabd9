"""LLaVA 1.5, LLaVA-NeXT, LLaVA-OneVision, and their kin."""

from __future__ import annotations

from typing import Any

import transformers
from transformers import PreTrainedTokenizerFast

from boresight.demo.tiny.qwen import chatml
from boresight.demo.tiny.sizes import Recipe, Sizes
from boresight.demo.tiny.tokenizer import token_id, trained_tokenizer
from tests.tiny import chat_templates
from tests.tiny.recipes import ids, recipe, square, tokenizer_of


def llama_tokenizer(sizes: Sizes, chat_template: str) -> PreTrainedTokenizerFast:
    return trained_tokenizer(
        ("<unk>", "<s>", "</s>", "<image>", "<pad>"),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        vocab_size=sizes.vocab_size,
        chat_template=chat_template,
    )


def clip_tower(sizes: Sizes) -> dict[str, Any]:
    return sizes.vision() | {
        "model_type": "clip_vision_model",
        "image_size": sizes.tile_size,
        "patch_size": sizes.token_size,
        "projection_dim": sizes.vision_hidden_size,
    }


def pinpoints(sizes: Sizes) -> list[list[int]]:
    """The canvases, height by width, that an image may be laid on before it is cut into tiles."""
    one, two = sizes.tile_size, 2 * sizes.tile_size
    return [[one, two], [two, one], [two, two]]


def llava(sizes: Sizes) -> Recipe:
    """One square image of fixed size; features of the tower's last layer but one, without its class token."""
    tokenizer = llama_tokenizer(sizes, chat_templates.VICUNA)
    config = transformers.LlavaConfig(
        text_config=sizes.text(tokenizer, tied=False) | {"model_type": "llama"},
        vision_config=clip_tower(sizes),
        image_token_index=token_id(tokenizer, "<image>"),
        image_seq_length=sizes.tokens_per_tile,
        tie_word_embeddings=sizes.tied(False),
    )
    processor = transformers.LlavaProcessor(
        image_processor=transformers.LlavaImageProcessor(
            size={"shortest_edge": sizes.tile_size}, crop_size=square(sizes)
        ),
        tokenizer=tokenizer,
        patch_size=sizes.token_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )
    return Recipe(config, processor, ("</s>",))


def llava_next(sizes: Sizes) -> Recipe:
    """Tiles on the best of several canvases, padding cut off again after the tower, a newline token after every row."""
    tokenizer = llama_tokenizer(sizes, chat_templates.INSTRUCT)
    config = transformers.LlavaNextConfig(
        text_config=sizes.text(tokenizer, tied=False) | {"model_type": "mistral", "sliding_window": None},
        vision_config=clip_tower(sizes),
        image_token_index=token_id(tokenizer, "<image>"),
        image_grid_pinpoints=pinpoints(sizes),
        image_seq_length=sizes.tokens_per_tile,
        tie_word_embeddings=sizes.tied(False),
    )
    processor = transformers.LlavaNextProcessor(
        image_processor=transformers.LlavaNextImageProcessor(
            size={"shortest_edge": sizes.tile_size},
            crop_size={"height": sizes.tile_size, "width": sizes.tile_size},
            image_grid_pinpoints=pinpoints(sizes),
        ),
        tokenizer=tokenizer,
        patch_size=sizes.token_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )
    return Recipe(config, processor, ("</s>",))


def llava_onevision(sizes: Sizes) -> Recipe:
    """A SigLIP tower and Qwen2; tiles for a single image, one tile each where a prompt has several."""
    tokenizer = trained_tokenizer(
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        vocab_size=sizes.vocab_size,
        chat_template=chatml(chat_templates.content_images_first("<image>\n")),
    )
    config = transformers.LlavaOnevisionConfig(
        text_config=sizes.text(tokenizer, tied=True) | {"model_type": "qwen2"},
        vision_config=sizes.vision()
        | {
            "model_type": "siglip_vision_model",
            "image_size": sizes.tile_size,
            "patch_size": sizes.token_size,
            "vision_use_head": False,
        },
        image_token_index=token_id(tokenizer, "<image>"),
        video_token_index=token_id(tokenizer, "<video>"),
        image_grid_pinpoints=pinpoints(sizes),
        vision_aspect_ratio="anyres_max_9",
        tie_word_embeddings=sizes.tied(True),
    )
    processor = transformers.LlavaOnevisionProcessor(
        image_processor=transformers.LlavaOnevisionImageProcessor(
            size=square(sizes), image_grid_pinpoints=pinpoints(sizes)
        ),
        tokenizer=tokenizer,
        video_processor=transformers.LlavaOnevisionVideoProcessor(size=square(sizes)),
        num_image_tokens=sizes.tokens_per_tile,
        vision_feature_select_strategy="full",
        chat_template=tokenizer.chat_template,
    )
    return Recipe(config, processor, ("<|im_end|>", "<|endoftext|>"))


def llava_next_video(sizes: Sizes) -> Recipe:
    tokenizer = tokenizer_of(sizes, "<image>", "<image>", "<video>")
    return recipe(
        sizes,
        tokenizer,
        transformers.LlavaNextVideoConfig,
        transformers.LlavaNextVideoProcessor,
        text={"model_type": "llama"},
        vision=clip_tower(sizes),
        processor={
            "image_processor": transformers.LlavaNextImageProcessor(
                size={"shortest_edge": sizes.tile_size}, crop_size=square(sizes), image_grid_pinpoints=pinpoints(sizes)
            ),
            "video_processor": transformers.LlavaNextVideoVideoProcessor(size=square(sizes)),
            "patch_size": sizes.token_size,
            "vision_feature_select_strategy": "default",
            "num_additional_image_tokens": 1,
        },
        tied=False,
        image_grid_pinpoints=pinpoints(sizes),
        **ids(tokenizer, image_token_index="<image>", video_token_index="<video>"),
    )


def video_llava(sizes: Sizes) -> Recipe:
    tokenizer = tokenizer_of(sizes, "<image>", "<image>", "<video>")
    return recipe(
        sizes,
        tokenizer,
        transformers.VideoLlavaConfig,
        transformers.VideoLlavaProcessor,
        text={"model_type": "llama"},
        vision=clip_tower(sizes),
        processor={
            "image_processor": transformers.VideoLlavaImageProcessor(
                size={"shortest_edge": sizes.tile_size}, crop_size=square(sizes)
            ),
            "video_processor": transformers.VideoLlavaVideoProcessor(size=square(sizes)),
            "patch_size": sizes.token_size,
            "vision_feature_select_strategy": "default",
        },
        tied=False,
        image_seq_length=sizes.tokens_per_tile,
        **ids(tokenizer, image_token_index="<image>", video_token_index="<video>"),
    )


def vipllava(sizes: Sizes) -> Recipe:
    """The features of several layers of the tower side by side."""
    tokenizer = tokenizer_of(sizes, "<image>", "<image>")
    return recipe(
        sizes,
        tokenizer,
        transformers.VipLlavaConfig,
        transformers.LlavaProcessor,
        text={"model_type": "llama"},
        vision=clip_tower(sizes),
        processor={
            "image_processor": transformers.CLIPImageProcessor(
                size={"shortest_edge": sizes.tile_size}, crop_size=square(sizes)
            ),
            "patch_size": sizes.token_size,
            "vision_feature_select_strategy": "default",
            "num_additional_image_tokens": 1,
        },
        tied=False,
        vision_feature_layers=[-2, -1],
        image_seq_length=sizes.tokens_per_tile,
        **ids(tokenizer, image_token_index="<image>"),
    )

"""BLIP-2 and its kin, in which learned queries (a Q-Former) turn an image into a fixed number of tokens, and Florence-2."""

from __future__ import annotations

from typing import Any

import transformers

from boresight.demo.tiny.sizes import Recipe, Sizes
from tests.tiny.recipes import END, PAD, ids, square, tokenizer_of

QUERIES = 4


def opt(sizes: Sizes, tokenizer: transformers.PreTrainedTokenizerFast) -> dict[str, Any]:
    text = sizes.text(tokenizer, tied=True)
    widths = {"ffn_dim": text.pop("intermediate_size"), "word_embed_proj_dim": sizes.hidden_size}
    return {"model_type": "opt", "dropout": 0.1, **widths, **text}


def seq2seq(sizes: Sizes, tokenizer: transformers.PreTrainedTokenizerFast, model_type: str) -> dict[str, Any]:
    """T5 or BART."""
    width, heads = sizes.hidden_size, sizes.num_heads
    names = {
        "t5": {"d_kv": width // heads, "d_ff": 2 * width, "num_layers": sizes.num_layers, "num_heads": heads},
        "bart": {
            f"{part}_{name}": value
            for part in ("encoder", "decoder")
            for name, value in (("layers", sizes.num_layers), ("attention_heads", heads), ("ffn_dim", 2 * width))
        },
    }
    stops = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    shared = {"vocab_size": sizes.vocab_size, "d_model": width, "decoder_start_token_id": tokenizer.pad_token_id}
    return {"model_type": model_type, **names[model_type], **shared, **stops}


def _blip(sizes: Sizes, kind: str, qformer: str, text: str) -> Recipe:
    """Its processor takes no chat template, and puts an image's tokens before the text by itself."""
    tokenizer = tokenizer_of(sizes, "", "<image>", bos="<bos>")
    config = getattr(transformers, f"{kind}Config")(
        text_config=opt(sizes, tokenizer) if text == "opt" else seq2seq(sizes, tokenizer, text),
        vision_config=sizes.vision() | {"image_size": sizes.tile_size, "patch_size": sizes.patch_size},
        qformer_config={
            "model_type": qformer,
            "vocab_size": sizes.vocab_size,
            "hidden_size": sizes.vision_hidden_size,
            "encoder_hidden_size": sizes.vision_hidden_size,
            "num_attention_heads": sizes.vision_heads,
            "intermediate_size": 2 * sizes.vision_hidden_size,
            "num_hidden_layers": 2,
        },
        num_query_tokens=QUERIES,
        **ids(tokenizer, image_token_index="<image>"),
    )
    reads_text = {"qformer_tokenizer": tokenizer_of(sizes, "")} if kind == "InstructBlip" else {}
    processor = getattr(transformers, f"{kind}Processor")(
        image_processor=transformers.BlipImageProcessor(size=square(sizes)),
        tokenizer=tokenizer,
        num_query_tokens=QUERIES,
        **reads_text,
    )
    return Recipe(config, processor, (END, PAD))


def blip2(sizes: Sizes) -> Recipe:
    return _blip(sizes, "Blip2", "blip_2_qformer", "opt")


def blip2_t5(sizes: Sizes) -> Recipe:
    return _blip(sizes, "Blip2", "blip_2_qformer", "t5")


def instructblip(sizes: Sizes) -> Recipe:
    """The Q-Former reads the text too."""
    return _blip(sizes, "InstructBlip", "instructblip_qformer", "opt")


def florence2(sizes: Sizes) -> Recipe:
    tokenizer = tokenizer_of(sizes, "<image>", named={"image_token": "<image>"}, bos="<bos>")
    width = sizes.vision_hidden_size
    config = transformers.Florence2Config(
        text_config=seq2seq(sizes, tokenizer, "bart"),
        vision_config={
            "depths": [1, 1],
            "patch_size": [7, 3],
            "patch_stride": [4, 2],
            "patch_padding": [3, 1],
            "patch_prenorm": [False, True],
            "embed_dim": [width // 2, width],
            "num_heads": [2, 2],
            "num_groups": [2, 2],
            "window_size": 4,
            "projection_dim": sizes.hidden_size,
        },
        **ids(tokenizer, image_token_id="<image>"),
    )
    images = transformers.CLIPImageProcessor(size=square(sizes), crop_size=square(sizes))
    images.image_seq_length = (sizes.tile_size // 8) ** 2 + 1
    return Recipe(config, transformers.Florence2Processor(image_processor=images, tokenizer=tokenizer), (END, PAD))

"""Idefics 2: images of any size, resampled to a fixed number of tokens."""

from __future__ import annotations

import transformers

from boresight.demo.tiny.sizes import Recipe, Sizes
from boresight.demo.tiny.tokenizer import token_id, trained_tokenizer
from tests.tiny import chat_templates


def idefics2(sizes: Sizes, *, splits: bool = False) -> Recipe:
    """A perceiver between tower and Mistral; images are padded to a common size in their batch.

    Args:
        splits: cut an image into four crops and the whole.
    """
    special = ("<s>", "</s>", "<unk>", "<fake_token_around_image>", "<image>", "<end_of_utterance>")
    tokenizer = trained_tokenizer(
        special,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<unk>",
        vocab_size=sizes.vocab_size,
        chat_template=chat_templates.utterances(""),
    )
    config = transformers.Idefics2Config(
        text_config=sizes.text(tokenizer, tied=False) | {"model_type": "mistral", "sliding_window": None},
        vision_config=sizes.vision() | {"image_size": 4 * sizes.tile_size, "patch_size": sizes.token_size},
        perceiver_config={
            "hidden_size": sizes.hidden_size,
            "resampler_n_latents": 4,
            "resampler_depth": 1,
            "resampler_n_heads": 2,
            "resampler_head_dim": 8,
            "num_key_value_heads": 1,
        },
        image_token_id=token_id(tokenizer, "<image>"),
        tie_word_embeddings=sizes.tied(False),
    )
    processor = transformers.Idefics2Processor(
        image_processor=transformers.Idefics2ImageProcessor(
            size={"shortest_edge": sizes.tile_size, "longest_edge": 3 * sizes.tile_size}, do_image_splitting=splits
        ),
        tokenizer=tokenizer,
        image_seq_len=4,
        chat_template=tokenizer.chat_template,
    )
    return Recipe(config, processor, ("<end_of_utterance>", "</s>"))


def idefics2_split(sizes: Sizes) -> Recipe:
    return idefics2(sizes, splits=True)

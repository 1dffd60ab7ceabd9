"""A tokenizer trained on the spot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from boresight.errors import ConfigError

# Every word below becomes one token, with and without a space before it where both forms occur here: an answer to
# easy-VQA is a handful of tokens. All other text falls back to shorter pieces and, at worst, to bytes.
CORPUS = """
what color is the shape? what is the color of the shape? what color is the circle? what is the color of the rectangle?
what color is the triangle? what shape is present? what shape is in the image? what shape does the image contain?
what is the blue shape? is there a red shape? is there not a green circle in the image? is a teal triangle present?
is no black rectangle present? does the image contain a brown shape? does the image not contain a gray shape? yellow
circle
rectangle
triangle
black
blue
brown
gray
green
red
teal
yellow
yes
no
shape
color
a black circle a blue rectangle a brown triangle a gray shape a green red teal yellow yes no
You are a helpful assistant.
system user assistant model User: Assistant: USER: ASSISTANT: System
Describe the image. Which image shows the larger shape? The first image shows one thing, the second another.
The answer is A, B, C or D. If angle APO is 25.0 degrees, then angle AOB is 130 degrees, since 180 - 2 * 25 = 130.
Look at the image and answer the question with one word. Think step by step, then give the final answer.
I think that this is right because it has three sides and four corners; that one is round and has none.
0 1 2 3 4 5 6 7 8 9 10 100
"""

FORMAT_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
"""One token each, and kept when special tokens are skipped in decoding, as Qwen3 keeps `<think>`."""


def token_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """The id of a token that is in the vocabulary."""
    return tokenizer.get_vocab()[token]


def trained_tokenizer(
    special_tokens: Sequence[str],
    *,
    eos_token: str,
    pad_token: str,
    bos_token: str | None = None,
    named_tokens: Mapping[str, str] | None = None,
    vocab_size: int,
    chat_template: str,
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with at most `vocab_size` tokens, trained on `CORPUS` on the spot.

    Args:
        special_tokens: never split, dropped by `skip_special_tokens`; they must include all tokens named below.
        bos_token: put before every text when given, as Llama's and Gemma's tokenizers do.
        named_tokens: further tokens that a processor reads as attributes of its tokenizer (`boi_token`, …).

    Raises:
        ConfigError: `vocab_size` has no room for the bytes and the special tokens.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    smallest = len(alphabet) + len(special_tokens) + len(FORMAT_TAGS)
    if vocab_size < smallest:
        raise ConfigError(f"vocab_size={vocab_size} is too small: bytes and special tokens alone take {smallest}.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        CORPUS.strip().splitlines(),
        trainers.BpeTrainer(
            vocab_size=vocab_size - len(FORMAT_TAGS),
            special_tokens=[AddedToken(token, special=True) for token in special_tokens],
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    tokenizer.add_tokens([AddedToken(tag, special=False) for tag in FORMAT_TAGS])
    if bos_token is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos_token} $A",
            pair=f"{bos_token} $A {bos_token} $B",
            special_tokens=[(bos_token, tokenizer.token_to_id(bos_token))],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=eos_token,
        pad_token=pad_token,
        bos_token=bos_token,
        extra_special_tokens=dict(named_tokens or {}),
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
    )

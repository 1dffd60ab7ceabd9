"""Tokenizers and chat templates of the tiny models.

Each template renders as its family's published one does, quirks that trainers trip over included: a default system turn
(Qwen2-VL, Qwen2.5-VL), a begin token that both tokenizer and template add (Gemma 3, Idefics 3), pictures moved before the
text (the LLaVA line), roles renamed (Gemma's `model`), a line break that closes every turn or none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from boresight.errors import ConfigError

# Every word below becomes one token (with and without the space before it where both forms stand here), so that an answer
# to easy-VQA is a handful of tokens; all other text falls back to shorter pieces and, at worst, to bytes.
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
Describe the picture. Which picture shows the larger shape? The first picture shows one thing, the second another.
The answer is A, B, C or D. If angle APO is 25.0 degrees, then angle AOB is 130 degrees, since 180 - 2 * 25 = 130.
Look at the image and answer the question with one word. Think step by step, then give the final answer.
I think that this is right because it has three sides and four corners; that one is round and has none.
0 1 2 3 4 5 6 7 8 9 10 100
"""

FORMAT_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
"""One token each, and kept when special tokens are skipped in decoding, as Qwen3 keeps `<think>`."""


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
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
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


def content(image: str, video: str = "<video>") -> str:
    """Jinja that renders `message['content']`, a string or parts in their order."""
    return (
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        "{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}" + image + "{% elif part['type'] == 'video' %}" + video + "{% else %}"
        "{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    )


def content_pictures_first(image: str) -> str:
    """As `content`, with every picture moved before the text."""
    return (
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        "{% for part in message['content'] if part['type'] == 'image' %}" + image + "{% endfor %}"
        "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %}"
    )


def chatml(content: str, *, default_system: str | None = None) -> str:
    """`<|im_start|>role … <|im_end|>`, with a system turn put first when the conversation has none."""
    system = (
        "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n" + default_system + "<|im_end|>\n{% endif %}"
        if default_system
        else ""
    )
    return (
        "{% for message in messages %}" + system + "<|im_start|>{{ message['role'] }}\n" + content + "<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


def utterances(begin: str) -> str:
    """SmolVLM and Idefics 3: `User:<image>text<end_of_utterance>`, no space where a picture opens the turn."""
    return (
        begin + "{% for message in messages %}{{ message['role'] | capitalize }}"
        "{% if message['content'][0]['type'] == 'image' %}:{% else %}: {% endif %}"
        + content("<image>")
        + "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
    )


QWEN_VL = content(
    "<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|><|video_pad|><|vision_end|>"
)

INSTRUCT = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}<<SYS>>\n" + content_pictures_first("<image>\n") + "\n<</SYS>>\n\n"
    "{% elif message['role'] == 'user' %}[INST] " + content_pictures_first("<image>\n") + " [/INST]"
    "{% else %} " + content_pictures_first("<image>\n") + "</s>{% endif %}{% endfor %}"
)
"""LLaVA-NeXT on Mistral. A generation prompt adds nothing: `[/INST]` already asks."""

VICUNA = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}ASSISTANT: " + content_pictures_first("<image>\n") + "</s>"
    "{% else %}{% if message['role'] == 'user' %}USER: {% endif %}" + content_pictures_first("<image>\n") + " {% endif %}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
"""LLaVA 1.5."""

GEMMA = (
    "{{ bos_token }}{% set turns = messages %}{% set system = '' %}"
    "{% if messages[0]['role'] == 'system' %}{% set turns = messages[1:] %}"
    "{% set system = (messages[0]['content'] if messages[0]['content'] is string else messages[0]['content'][0]['text'])"
    " + '\n\n' %}{% endif %}"
    "{% for message in turns %}<start_of_turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{% if loop.first %}{{ system }}{% endif %}"
    + content("<start_of_image>")
    + "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
"""The system turn becomes the head of the first user turn."""

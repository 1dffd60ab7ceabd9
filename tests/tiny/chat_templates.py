"""Chat templates of the tiny models.

Each renders as its family's published one does, with the quirks that break trainers: a begin token that both tokenizer and template add
(Gemma 3, Idefics 3), images moved before the text (the LLaVA line), renamed roles (Gemma's `model`), and turns that end with or without
a line break. Qwen's templates, with a default system turn, are in `boresight.demo.tiny.qwen`.
"""

from __future__ import annotations

from boresight.demo.tiny.qwen import content


def content_images_first(image: str) -> str:
    """As `content`, with every image moved before the text."""
    return (
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        "{% for part in message['content'] if part['type'] == 'image' %}" + image + "{% endfor %}"
        "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %}"
    )


def utterances(begin: str) -> str:
    """SmolVLM and Idefics 3: `User:<image>text<end_of_utterance>`, no space where an image opens the turn."""
    return (
        begin + "{% for message in messages %}{{ message['role'] | capitalize }}"
        "{% if message['content'][0]['type'] == 'image' %}:{% else %}: {% endif %}"
        + content("<image>")
        + "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
    )


INSTRUCT = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}<<SYS>>\n" + content_images_first("<image>\n") + "\n<</SYS>>\n\n"
    "{% elif message['role'] == 'user' %}[INST] " + content_images_first("<image>\n") + " [/INST]"
    "{% else %} " + content_images_first("<image>\n") + "</s>{% endif %}{% endfor %}"
)
"""LLaVA-NeXT on Mistral. A generation prompt adds nothing: `[/INST]` already asks."""

VICUNA = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}ASSISTANT: " + content_images_first("<image>\n") + "</s>"
    "{% else %}{% if message['role'] == 'user' %}USER: {% endif %}" + content_images_first("<image>\n") + " {% endif %}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
"""LLaVA 1.5."""

GEMMA = (
    "{{ bos_token }}{% set turns = messages %}{% set system = '' %}"
    "{% if messages[0]['role'] == 'system' %}{% set turns = messages[1:] %}"
    "{% set content = messages[0]['content'] %}"
    "{% set system = (content if content is string else content[0]['text']) + '\n\n' %}{% endif %}"
    "{% for message in turns %}<start_of_turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{% if loop.first %}{{ system }}{% endif %}"
    + content("<start_of_image>")
    + "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
"""The system turn becomes the head of the first user turn."""

"""A tiny Qwen2.5-VL: dynamic resolution, 2×2 patches merged into an image token, M-RoPE, windows in the vision tower."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers
from transformers import PreTrainedConfig, PreTrainedTokenizerFast, ProcessorMixin

from boresight.demo.tiny.sizes import Recipe, Sizes
from boresight.demo.tiny.tokenizer import token_id, trained_tokenizer

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


def content(image: str, video: str = "<video>") -> str:
    """Jinja that renders `message['content']`, a string or parts in their order."""
    return (
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        "{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}" + image + "{% elif part['type'] == 'video' %}" + video + "{% else %}"
        "{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    )


def chatml(content: str, *, default_system: str | None = None) -> str:
    """`<|im_start|>role … <|im_end|>`, with a system turn put first when the conversation has none."""
    system = (
        "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
        + default_system
        + "<|im_end|>\n{% endif %}"
        if default_system
        else ""
    )
    return (
        "{% for message in messages %}" + system + "<|im_start|>{{ message['role'] }}\n" + content + "<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


def chatml_with_tools(content: str, *, describes: bool = True) -> str:
    """As `chatml`, with tools, calls and results in Qwen3-VL's form: descriptions in a system turn, results in a user's turn.

    Args:
        describes: False leaves the descriptions of tools out.
    """
    newline = "{{ '\\n' }}"  # templates drop a line break that follows a block
    described = "tools" if describes else "false"
    return (
        "{% if " + described + " %}<|im_start|>system\n# Tools\n<tools>{% for tool in tools %}" + newline
        + "{{ tool | tojson }}{% endfor %}"
        + newline + "</tools><|im_end|>\n{% endif %}{% for message in messages %}{% if message['role'] == 'tool' %}"
        "{% if loop.first or messages[loop.index0 - 1]['role'] != 'tool' %}<|im_start|>user{% endif %}" + newline + "<tool_response>\n"
        + content
        + newline + "</tool_response>{% if loop.last or messages[loop.index0 + 1]['role'] != 'tool' %}<|im_end|>" + newline
        + "{% endif %}{% else %}<|im_start|>{{ message['role'] }}\n" + content
        + "{% for call in message['tool_calls'] or [] %}"
        "{% if not loop.first or (message['content'] and message['content'][0]['text'] != '') %}" + newline
        + "{% endif %}<tool_call>\n"
        '{"name": "{{ call["function"]["name"] }}", "arguments": {{ call["function"]["arguments"] | tojson }}}\n</tool_call>{% endfor %}'
        "<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )  # fmt: skip


CONTENT = content("<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|><|video_pad|><|vision_end|>")


def qwen_tokenizer(sizes: Sizes, chat_template: str) -> PreTrainedTokenizerFast:
    return trained_tokenizer(
        QWEN_TOKENS,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        vocab_size=sizes.vocab_size,
        chat_template=chat_template,
    )


def qwen_recipe(
    sizes: Sizes,
    config_class: Callable[..., PreTrainedConfig],
    processor_class: Callable[..., ProcessorMixin],
    video_processor_class: Callable[..., Any],
    *,
    text: dict[str, Any],
    vision: dict[str, Any],
    default_system: str | None,
) -> Recipe:
    """Any model of the Qwen-VL line, by what sets it apart from the others."""
    tokenizer = qwen_tokenizer(sizes, chatml(CONTENT, default_system=default_system))
    pixels: dict[str, Any] = {"shortest_edge": (2 * sizes.token_size) ** 2, "longest_edge": sizes.max_pixels}
    patches: dict[str, Any] = {"patch_size": sizes.patch_size, "temporal_patch_size": 2, "merge_size": 2}
    config = config_class(
        text_config=sizes.text(tokenizer, tied=True) | text,
        vision_config=sizes.qwen_vision() | vision,
        tie_word_embeddings=sizes.tied(True),
        **{
            f"{name}_token_id": token_id(tokenizer, f"<|{name}{suffix}|>")
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


def mrope(sizes: Sizes, spatial: int) -> dict[str, Any]:
    """M-RoPE that gives `spatial` rotary frequencies each to height and width, and the rest to time."""
    sections = [sizes.half_head_dim - 2 * spatial, spatial, spatial]
    return {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": sections}


def qwen2_5_vl(sizes: Sizes) -> Recipe:
    """Windows of 2×2 image tokens in all but the vision tower's last layer."""
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

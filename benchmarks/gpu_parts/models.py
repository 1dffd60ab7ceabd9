"""Models of published sizes with random weights, built on the device, and a group for them. Nothing is fetched.

The processors and tokenizers are the tiny models'; only patch sizes and ids must fit. Sizes are those of the published `config.json`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from boresight.data.encode import Encoder
from boresight.data.schema import read_row
from boresight.demo.tiny.qwen import qwen2_5_vl
from boresight.demo.tiny.sizes import Sizes
from boresight.model.load import model_facts
from boresight.types import Completion, Group, ModelFacts
from gpu_parts.rows import Setting

sys.path.append(str(Path(__file__).parents[2]))
from tests.tiny.qwen import qwen3_vl  # the builders of further families live with the tests

QWEN2_5_VL_3B: dict[str, Any] = {
    "text": {
        "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
        "num_key_value_heads": 2, "vocab_size": 151936, "max_position_embeddings": 128000, "layer_types": ["full_attention"] * 36,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    },
    "vision": {
        "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 2048, "patch_size": 14,
        "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31],
    },
}  # fmt: skip
QWEN3_VL_4B: dict[str, Any] = {
    "text": {
        "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "max_position_embeddings": 262144,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20], "mrope_interleaved": True},
    },
    "vision": {
        "depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16, "out_hidden_size": 2560, "patch_size": 16,
        "num_position_embeddings": 2304, "deepstack_visual_indexes": [5, 11, 17],
    },
}  # fmt: skip
MODELS = {"Qwen2.5-VL-3B": (qwen2_5_vl, QWEN2_5_VL_3B), "Qwen3-VL-4B": (qwen3_vl, QWEN3_VL_4B)}

IMAGE_TOKENS_ALONG = {False: 32, True: 4}
"""Of an image that is a square: 1,024 tokens, 16 in tiny runs."""
TEXT_WORDS = {False: 250, True: 5}


@dataclass(frozen=True, slots=True)
class Built:
    """A model on the device, in evaluation mode."""

    model: Any
    processor: Any
    facts: ModelFacts
    image: Image.Image
    question: str

    def group(self, num_completions: int, completion_tokens: int) -> Group:
        """One image, a question, and completions of random ordinary ids."""
        encoder = Encoder(self.processor, facts=self.facts)
        content = [{"type": "image", "image": self.image}, {"type": "text", "text": self.question}]
        prompt = encoder.prompt(read_row({"prompt": [{"role": "user", "content": content}]}, 0))
        return Group(prompt, tuple(completion(ids) for ids in self.ids(num_completions, completion_tokens)))

    def ids(self, rows: int, tokens: int) -> torch.Tensor:
        """[rows, tokens] random ids of plain text."""
        tokenizer = self.processor.tokenizer
        special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
        plain = torch.tensor([id for id in range(len(tokenizer)) if id not in special])
        return plain[torch.randint(len(plain), (rows, tokens), generator=torch.Generator().manual_seed(0))]


def completion(ids: torch.Tensor) -> Completion:
    return Completion(ids, torch.ones(len(ids), dtype=torch.bool), "")


def build(name: str, setting: Setting) -> Built:
    """A model of `MODELS` (its tiny form in tiny runs), every weight trained, in the setting's dtype."""
    family, published = MODELS[name]
    patch = 8 if setting.tiny else published["vision"]["patch_size"]
    recipe = family(Sizes(patch_size=patch, tile_size=2 * patch, max_pixels=(80 * patch) ** 2, vocab_size=512))
    config = recipe.config
    if not setting.tiny:
        config = _published(config, published)
    config._attn_implementation = "sdpa"
    with torch.device(setting.device):
        torch.manual_seed(0)
        model: Any = AutoModelForImageTextToText.from_config(config, dtype=setting.dtype).eval()
    edge = 2 * patch * IMAGE_TOKENS_ALONG[setting.tiny]
    noise = torch.randint(0, 256, (edge, edge, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    facts = model_facts(model, recipe.processor)
    question = " ".join(["a"] * TEXT_WORDS[setting.tiny])
    return Built(model, recipe.processor, facts, Image.fromarray(noise.numpy()), question)


def _published(tiny: Any, published: dict[str, Any]) -> Any:
    """A configuration of published sizes with the ids of the tiny model's tokenizer."""
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    ids = {name: getattr(tiny, name) for name in names}
    text = {name: getattr(tiny.text_config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return type(tiny)(
        text_config=text | published["text"] | {"tie_word_embeddings": True},
        vision_config=published["vision"],
        tie_word_embeddings=True,
        **ids,
    )


def attention_flops(config: Any, group: Group) -> int:
    """FLOPs of the language model's attention on a shared row, forward and backward (twice the forward), each pair once.

    Only pairs that see each other count. The vision tower's attention is left out, so utilisation is underestimated.
    """
    text = config.get_text_config()
    prompt = len(group.prompt.ids)
    lengths = [len(each.ids) for each in group.completions]
    pairs = _triangle(prompt) + sum(prompt * length + _triangle(length) for length in lengths)
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return 3 * 4 * pairs * size * text.num_attention_heads * text.num_hidden_layers


def _triangle(length: int) -> int:
    return length * (length + 1) // 2


def tokens_of(groups: Sequence[Group]) -> int:
    """Completion tokens that are trained."""
    return sum(group.num_completion_tokens for group in groups)

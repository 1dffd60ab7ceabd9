"""The model and the data that both sides are given."""

from __future__ import annotations

import io
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from cases import Case
from datasets import Dataset, Features, Image, Value
from peft import LoraConfig
from PIL import Image as PILImage
from torch import Tensor
from transformers import AutoConfig, AutoProcessor

from boresight.demo.easy_vqa import load_easy_vqa
from boresight.demo.tiny import build_tiny
from boresight.demo.tiny.qwen import CONTENT, chatml_with_tools

# The builders of further families live with the tests.
sys.path.append(str(Path(__file__).parents[1]))
from tests.tiny.hybrid import qwen3_5, qwen3_5_moe

HYBRID = {"qwen3_5": qwen3_5, "qwen3_5_moe": qwen3_5_moe}

TOKEN_SIZE = 16
"""Pixels along an image token: two patches of 8."""

NUM_ROWS = 16
"""Rows of the data set. Every step of a run sees other images than the last."""

LEARNING_RATE = 1e-6


def build_model(folder: Path, family: str = "qwen2_5_vl", *, small: bool = False) -> Path:
    """A model of 256 wide, 6 layers (8 of Qwen3.5) and a vision tower of 6 layers, with random weights.

    Its vocabulary is in proportion: head and layers share the work as in a 3B model. Qwen2.5-VL's windows are 4×4 image tokens, and three
    of four layers of Qwen3.5 are Gated DeltaNet, as published.

    Args:
        folder: where it is saved.
        small: 128 wide with 2 layers each (4 of Qwen3.5), to see that something runs.
    """
    sizes: dict[str, Any] = {"hidden_size": 256, "num_layers": 6, "vision_hidden_size": 256, "vision_depth": 6}
    sizes |= {"num_heads": 8, "num_kv_heads": 4, "vision_heads": 8, "vocab_size": 2048, "max_pixels": 512 * 512}
    if small:
        # vLLM's kernels on a CPU want heads of 32 at least.
        sizes |= {"hidden_size": 128, "num_layers": 2, "vision_hidden_size": 64, "vision_depth": 2}
        sizes |= {"num_heads": 4, "num_kv_heads": 2, "vocab_size": 576}
    if family != "qwen2_5_vl":
        sizes["num_layers"] = 4 if small else 8
        layer_types = ["linear_attention", "linear_attention", "linear_attention", "full_attention"] * (
            1 if small else 2
        )
        return build_tiny(partial(HYBRID[family], layer_types=layer_types), folder, **sizes)
    build_tiny("qwen2_5_vl", folder, **sizes)
    config = AutoConfig.from_pretrained(folder)
    config.vision_config.window_size = 4 * TOKEN_SIZE
    config.save_pretrained(folder)
    return folder


def dataset(case: Case, folder: Path) -> Dataset:
    """Rows as trainers take them: `prompt`, `image`, `solution`, and for pairs `chosen` and `rejected`.

    Images are easy-VQA's, enlarged until they have `case.image_tokens`.
    """
    edge = TOKEN_SIZE * round(case.image_tokens**0.5)
    question = question_of_length(case.prompt_tokens, edge, processor_of(case, folder))
    pair = {"chosen": "blue " * case.completion_tokens, "rejected": "a red shape " * case.completion_tokens}
    rows: list[dict[str, Any]] = []
    row: Any
    for row in load_easy_vqa("train", num_rows=NUM_ROWS):
        image = PILImage.open(io.BytesIO(row["image"]["bytes"])).convert("RGB").resize((edge, edge))
        encoded = io.BytesIO()
        image.save(encoded, "png")
        prompt = [{"role": "user", "content": question}]
        rows.append(
            {"prompt": prompt, "image": {"bytes": encoded.getvalue(), "path": None}, "solution": row["solution"]}
        )
        if case.kind == "pairs":
            rows[-1] |= {name: [{"role": "assistant", "content": text}] for name, text in pair.items()}
    message = [{"role": Value("string"), "content": Value("string")}]
    features = {"prompt": message, "image": Image(), "solution": Value("string")}
    if case.kind == "pairs":
        features |= {"chosen": message, "rejected": message}
    return Dataset.from_list(rows, features=Features(features))


def processor_of(case: Case, folder: Path) -> Any:
    """The model's processor; where tools are called, with a chat template that renders calls and results."""
    processor: Any = AutoProcessor.from_pretrained(folder)
    if case.turn_image_tokens:
        processor.chat_template = processor.tokenizer.chat_template = chatml_with_tools(CONTENT, describes=False)
        # TRL wants to know how calls are parsed, and both sides are given them.
        processor.tokenizer.response_schema = {"type": "object", "properties": {}}
    return processor


def turn_images(case: Case) -> list[PILImage.Image]:
    """What a tool returns in each completion, one after the other."""
    if not case.turn_image_tokens:
        return []
    edge = TOKEN_SIZE * round(case.turn_image_tokens**0.5)
    return [PILImage.new("RGB", (edge, edge), (10 * number % 256, 90, 160)) for number in range(case.num_rows)]


def question_of_length(tokens: int, edge: int, processor: Any) -> str:
    """A question that makes a prompt of `tokens` tokens with one image of edge × edge pixels."""
    image = PILImage.new("RGB", (edge, edge))
    question = "what color is the shape?"
    while (length := _prompt_length(processor, question, image)) < tokens:
        question += " a"
    if length != tokens:
        raise ValueError(f"no question makes a prompt of {tokens} tokens: the next is {length}")
    return question


def _prompt_length(processor: Any, question: str, image: PILImage.Image) -> int:
    content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    message = [{"role": "user", "content": content}]
    encoded = processor.apply_chat_template(message, tokenize=True, return_dict=True, add_generation_prompt=True)
    return len(encoded["input_ids"][0])


def completion_ids(case: Case, folder: Path) -> Tensor:
    """[prompts, K, C] random ids of plain text: the same completions for both sides."""
    tokenizer: Any = AutoProcessor.from_pretrained(folder).tokenizer
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    plain = torch.tensor([id for id in range(len(tokenizer)) if id not in special])
    generator = torch.Generator().manual_seed(0)
    shape = (case.num_prompts, case.num_completions, case.completion_tokens)
    return plain[torch.randint(len(plain), shape, generator=generator)]


def adapter(case: Case) -> LoraConfig | None:
    """What is trained instead of the weights, or None."""
    return LoraConfig(target_modules="all-linear", exclude_modules=r".*visual.*", r=16) if case.lora else None


def advantages(case: Case) -> Tensor:
    """[prompts × K] asymmetric, none of them 0."""
    return torch.linspace(-1.0, 1.5, case.num_rows)


def reward(completions: list[Any], **columns: Any) -> list[float | None]:
    """A trivial reward that still differs within a group."""
    return [float(number % 5) for number, _ in enumerate(completions)]


def no_stop_ids() -> tuple[int, ...]:
    """Stop ids that no model draws: every completion runs to its limit."""
    return (-1,)

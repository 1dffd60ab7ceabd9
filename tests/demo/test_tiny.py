"""Every family: built, loaded by plain transformers, run through its own processor, and looking at its images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from boresight.demo.tiny import Sizes
from boresight.demo.tiny.tokenizer import FORMAT_TAGS, trained_tokenizer
from boresight.errors import ConfigError
from tests.tiny import FAMILIES, build_tiny

SIZES_OF_IMAGES = ((64, 64), (100, 50))
TIED = {
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "qwen3_5",
    "qwen3_5_moe",
    "lfm2_vl",
    "llava_onevision",
    "internvl",
    "gemma3",
}
MODEL_CLASSES = {
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
    "qwen3_5": "Qwen3_5ForConditionalGeneration",
    "qwen3_5_moe": "Qwen3_5MoeForConditionalGeneration",
    "lfm2_vl": "Lfm2VlForConditionalGeneration",
    "smolvlm": "SmolVLMForConditionalGeneration",
    "idefics3": "Idefics3ForConditionalGeneration",
    "llava": "LlavaForConditionalGeneration",
    "llava_next": "LlavaNextForConditionalGeneration",
    "llava_onevision": "LlavaOnevisionForConditionalGeneration",
    "internvl": "InternVLForConditionalGeneration",
    "gemma3": "Gemma3ForConditionalGeneration",
}
# What one 64×64 image costs, with everything the processor writes around its placeholders left out.
IMAGE_TOKENS = {
    "qwen2_vl": 16,
    "qwen2_5_vl": 16,
    "qwen3_vl": 16,
    "qwen3_5": 16,
    "qwen3_5_moe": 16,
    "lfm2_vl": 20,
    "smolvlm": 20,  # four tiles and the whole image, four tokens each
    "idefics3": 20,
    "llava": 4,
    "llava_next": 24,  # four tiles in rows of four tokens, a newline after each row, and the whole image
    "llava_onevision": 24,
    "internvl": 20,
    "gemma3": 4,
}


def images(count: int, seed: int = 0) -> list[Image.Image]:
    noise = np.random.default_rng(seed)
    return [
        Image.fromarray(noise.integers(0, 255, (height, width, 3), dtype=np.uint8))
        for width, height in SIZES_OF_IMAGES[:count]
    ]


def conversation(num_images: int) -> list[dict[str, Any]]:
    parts = [{"type": "image"}] * num_images + [{"type": "text", "text": "what color is the shape?"}]
    return [{"role": "user", "content": parts}]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tiny")
    return {family: build_tiny(family, folder / family) for family in FAMILIES}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(checkpoints: dict[str, Path], family: str) -> Any:
    return AutoModelForImageTextToText.from_pretrained(checkpoints[family]).eval()


@pytest.fixture
def processor(checkpoints: dict[str, Path], family: str) -> Any:
    return AutoProcessor.from_pretrained(checkpoints[family])


def inputs_of(processor: Any, images: list[Image.Image]) -> Any:
    text = processor.apply_chat_template(conversation(len(images)), add_generation_prompt=True, tokenize=False)
    return processor(text=[text], images=images or None, return_tensors="pt")


def test_every_family_has_an_expected_class() -> None:
    assert FAMILIES.keys() == MODEL_CLASSES.keys() == IMAGE_TOKENS.keys()


@pytest.mark.parametrize("num_images", [0, 1, 2])
def test_plain_transformers_loads_and_runs_it(model: Any, processor: Any, family: str, num_images: int) -> None:
    inputs = inputs_of(processor, images(num_images))
    with torch.no_grad():
        logits = model(**inputs).logits
    assert type(model).__name__ == MODEL_CLASSES[family]
    assert logits.shape[1] == inputs["input_ids"].shape[1]
    assert logits.isfinite().all()
    image_id = model.config.image_token_id
    assert (inputs["input_ids"] == image_id).sum() >= 4 * num_images
    assert num_images or not (inputs["input_ids"] == image_id).any()


def test_an_image_costs_few_tokens(model: Any, processor: Any, family: str) -> None:
    ids = inputs_of(processor, images(1))["input_ids"]
    assert (ids == model.config.image_token_id).sum() == IMAGE_TOKENS[family]


def test_the_image_changes_what_is_predicted(model: Any, processor: Any) -> None:
    seen, other = inputs_of(processor, images(1, seed=0)), inputs_of(processor, images(1, seed=1))
    assert torch.equal(seen["input_ids"], other["input_ids"])
    with torch.no_grad():
        change = (model(**seen).logits - model(**other).logits)[0, -1].abs().max()
    assert change > 0.05


def test_it_generates(model: Any, processor: Any) -> None:
    inputs = inputs_of(processor, images(2))
    ids = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert 1 <= ids.shape[1] - inputs["input_ids"].shape[1] <= 4


def test_stop_and_pad_ids_are_the_checkpoints_own(model: Any, processor: Any, family: str) -> None:
    tokenizer = processor.tokenizer
    assert tokenizer.eos_token_id in model.generation_config.eos_token_id
    assert len(model.generation_config.eos_token_id) == (
        1 if family in {"smolvlm", "idefics3", "lfm2_vl"} or "</s>" in tokenizer.get_vocab() else 2
    )
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id


def test_heads_are_tied_as_published(model: Any, family: str) -> None:
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert tied == (family in TIED)


def test_the_saved_tokenizer_reads_as_the_trained_one(
    checkpoints: dict[str, Path], processor: Any, family: str
) -> None:
    text = "<think>a red circle</think><answer>130 degrees, naïve</answer>"
    trained = FAMILIES[family](Sizes()).processor.tokenizer  # pyright: ignore[reportAttributeAccessIssue]
    ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids == trained(text, add_special_tokens=False)["input_ids"]
    assert processor.tokenizer.decode(ids, skip_special_tokens=True) == text


def test_an_answer_is_a_handful_of_tokens(processor: Any) -> None:
    text = "<think>a red circle</think><answer>red</answer>"
    tokens = processor.tokenizer.tokenize(text)
    assert len(tokens) == 8
    assert set(FORMAT_TAGS) < set(tokens)


def test_the_template_renders_a_whole_conversation(processor: Any) -> None:
    """The generation prompt is a prefix of the answered turn, whether content comes as a string or as parts."""
    asked = [{"role": "system", "content": "Look."}, *conversation(1)]
    answer = "<think>a red circle</think><answer>red</answer>"
    prompt = processor.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    as_string, as_parts = (
        processor.apply_chat_template([*asked, {"role": "assistant", "content": content}], tokenize=False)
        for content in (answer, [{"type": "text", "text": answer}])
    )
    assert "Look." in prompt
    assert as_string.replace(": <", ":<") == as_parts.replace(": <", ":<")
    assert as_string.startswith(prompt)
    assert answer in as_string.removeprefix(prompt)


def test_gemma_slides_in_all_but_its_last_layer(checkpoints: dict[str, Path]) -> None:
    text = json.loads((checkpoints["gemma3"] / "config.json").read_text())["text_config"]
    assert text["layer_types"] == ["sliding_attention", "full_attention"]
    assert text["sliding_window"] == 16


@pytest.mark.parametrize("family", ["qwen2_5_vl"], indirect=False)
def test_resolution_is_dynamic_within_the_budget(checkpoints: dict[str, Path], family: str) -> None:
    processor = AutoProcessor.from_pretrained(checkpoints[family])
    grids = processor.image_processor(
        images=[Image.new("RGB", size) for size in ((20, 20), (64, 96), (900, 300))], return_tensors="pt"
    )["image_grid_thw"]
    tokens = (grids.prod(1) // 4).tolist()
    assert tokens == [4, 24, 52]
    assert max(tokens) * Sizes().token_size ** 2 <= Sizes().max_pixels


def test_the_same_seed_builds_the_same_weights(tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    weights = [
        (build_tiny("smolvlm", tmp_path / str(copy), seed=seed) / "model.safetensors").read_bytes()
        for copy, seed in enumerate((3, 3, 4))
    ]
    assert weights[0] == weights[1] != weights[2]
    assert torch.equal(state, torch.random.get_rng_state())


def test_sizes_are_obeyed(tmp_path: Path) -> None:
    folder = build_tiny(
        "qwen2_5_vl",
        tmp_path,
        hidden_size=96,
        num_layers=3,
        num_heads=6,
        num_kv_heads=3,
        vocab_size=600,
        vision_depth=1,
        patch_size=4,
        max_pixels=32 * 32,
        tie_word_embeddings=False,
        initializer_range=0.02,
    )
    model = AutoModelForImageTextToText.from_pretrained(folder)
    text = model.config.text_config
    assert (text.hidden_size, text.num_hidden_layers, text.num_attention_heads, text.num_key_value_heads) == (
        96,
        3,
        6,
        3,
    )
    assert len(model.model.visual.blocks) == 1
    assert model.lm_head.weight.shape == (600, 96)
    assert model.lm_head.weight is not model.get_input_embeddings().weight
    assert model.lm_head.weight.std().item() == pytest.approx(0.02, rel=0.05)
    ids = inputs_of(AutoProcessor.from_pretrained(folder), images(1))["input_ids"]
    assert (ids == model.config.image_token_id).sum() == 16


def test_fan_in_is_the_default_initialisation(checkpoints: dict[str, Path]) -> None:
    model = AutoModelForImageTextToText.from_pretrained(checkpoints["qwen2_5_vl"])
    down = model.model.language_model.layers[0].mlp.down_proj
    assert down.in_features == 128
    assert down.weight.std().item() == pytest.approx(128**-0.5, rel=0.05)


@pytest.mark.parametrize(
    ("family", "sizes", "message"),
    [
        ("qwen25_vl", {}, "Did you mean 'qwen2_5_vl'"),
        ("gemma3", {"num_layer": 3}, "Did you mean 'num_layers'"),
        ("gemma3", {"hidden_size": 60}, "hidden_size=60 must be a multiple of 16"),
        ("gemma3", {"num_kv_heads": 3}, "num_heads=4 must be a multiple of 3"),
        ("gemma3", {"vision_hidden_size": 36}, "vision_hidden_size=36 must be a multiple of 8"),
        ("gemma3", {"tile_size": 40}, "tile_size=40 must be a multiple of 16"),
        ("gemma3", {"vocab_size": 200}, "vocab_size=200 is too small"),
    ],
)
def test_what_cannot_be_built_is_said(tmp_path: Path, family: str, sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_tiny(family, tmp_path, **sizes)


def test_a_tokenizer_puts_its_begin_token_before_text_only_where_it_has_one() -> None:
    specials = ("<s>", "</s>")
    with_begin, without = (
        trained_tokenizer(
            specials, eos_token="</s>", pad_token="</s>", bos_token=begin, vocab_size=400, chat_template=""
        )
        for begin in ("<s>", None)
    )
    assert with_begin("a red circle")["input_ids"] == [0, *without("a red circle")["input_ids"]]

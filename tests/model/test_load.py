from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel
from torch import nn
from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel, ProcessorMixin

from boresight.doctor.size import size_of
from boresight.errors import ConfigError, ModelError
from boresight.model.forward import GroupForward
from boresight.model.load import adapt, load_model, load_processor, model_facts, promote_trainable
from boresight.model.vision import text_parameters
from tests.model.conftest import Subjects
from tests.tiny import FAMILIES, build_tiny

QWEN = {"<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"}
TILES = {f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)}
LFM2 = {"<image>", "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>"} | {
    f"<|img_row_{row}_col_{column}|>" for row in range(1, 5) for column in range(1, 5)
}
IDEFICS = {"<fake_token_around_image>", "<image>", "<global-img>"} | TILES
BANNED: dict[str, set[str]] = {
    "qwen2_vl": QWEN,
    "qwen2_5_vl": QWEN,
    "qwen3_vl": QWEN,
    "qwen3_5": QWEN,
    "qwen3_5_moe": QWEN,
    "lfm2_vl": LFM2,
    "smolvlm": IDEFICS | {"<video>"},
    "idefics3": IDEFICS,
    "llava": {"<image>"},
    "llava_next": {"<image>"},
    "llava_onevision": {"<image>", "<video>"},
    "internvl": {"<img>", "</img>", "<IMG_CONTEXT>", "<video>"},
    "gemma3": {"<start_of_image>", "<end_of_image>", "<image_soft_token>"},
}
CHATML, END, SLASH = {"<|im_end|>", "<|endoftext|>"}, {"<end_of_utterance>"}, {"</s>"}
STOPS: dict[str, set[str]] = {
    "qwen2_vl": CHATML,
    "qwen2_5_vl": CHATML,
    "qwen3_vl": CHATML,
    "qwen3_5": CHATML,
    "qwen3_5_moe": CHATML,
    "lfm2_vl": {"<|im_end|>"},
    "smolvlm": END,
    "idefics3": END,
    "llava": SLASH,
    "llava_next": SLASH,
    "llava_onevision": CHATML,
    "internvl": CHATML,
    "gemma3": {"<eos>", "<end_of_turn>"},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_facts(subject: Subjects, family: str) -> None:
    """Exactly the ids that only a processor may place are banned: no ordinary token, no stop, no word about images."""
    it = subject(family)
    names = it.processor.tokenizer.convert_ids_to_tokens
    facts = model_facts(it.model(), it.processor)
    assert set(names(facts.modality_ids)) == BANNED[family]
    assert set(names(facts.stop_ids)) == STOPS[family]
    assert facts.pad_id == it.processor.tokenizer.pad_token_id
    assert facts.image_token_id in facts.modality_ids
    assert facts.vocab_size == 512
    assert not set(facts.modality_ids) & set(
        it.processor.tokenizer("Look at the image, the vision of a video, audio, img")["input_ids"]
    )


def test_grounding_and_role_tokens_stay_free(subject: Subjects) -> None:
    """A policy may say where an object is; only images are the processor's."""
    it = subject("qwen2_5_vl")
    processor = load_processor(None, it.model(), it.folder)
    processor.tokenizer.add_special_tokens({"pad_token": "<|box_start|>", "unk_token": "<|audio_bos|>"})  # pyright: ignore
    model = it.model()
    model.resize_token_embeddings(516)
    names = processor.tokenizer.convert_ids_to_tokens(model_facts(model, processor).modality_ids)  # pyright: ignore
    assert "<|audio_bos|>" in names
    assert not {"<|box_start|>", "<|im_start|>", "<think>"} & set(names)


def test_ids_beyond_the_head_are_not_banned(subject: Subjects) -> None:
    it = subject("qwen2_5_vl")
    model = it.model()
    model.config.video_token_id = 512
    assert max(model_facts(model, it.processor).modality_ids) < 512


def test_stop_ids_come_from_generation_config_and_tokenizer(subject: Subjects) -> None:
    it = subject("qwen2_5_vl")
    model = it.model()
    end = it.processor.tokenizer.eos_token_id
    for stops, expected in ((7, (end, 7)), ([7, 9], (end, 7, 9)), (None, (end,))):
        model.generation_config = GenerationConfig(eos_token_id=stops)
        assert model_facts(model, it.processor).stop_ids == tuple(sorted(expected))


def test_a_model_without_an_end_is_refused(subject: Subjects) -> None:
    it = subject("qwen2_5_vl")
    model, processor = it.model(), load_processor(None, it.model(), it.folder)
    model.generation_config = GenerationConfig()
    processor.tokenizer.eos_token = None  # pyright: ignore
    with pytest.raises(ModelError, match="completions would never end"):
        model_facts(model, processor)


def test_without_a_pad_token_a_stop_pads(subject: Subjects) -> None:
    it = subject("qwen2_5_vl")
    processor = load_processor(None, it.model(), it.folder)
    processor.tokenizer.pad_token = None  # pyright: ignore
    facts = model_facts(it.model(), processor)
    assert facts.pad_id in facts.stop_ids


# ---- Models --------------------------------------------------------------------------------------------------------------------------


def test_a_model_by_folder_path_and_object(subject: Subjects) -> None:
    folder = subject("qwen2_5_vl").folder
    for source in (folder, str(folder)):
        assert isinstance(load_model(source), PreTrainedModel)
    model = load_model(folder)
    assert load_model(model) is model


@pytest.mark.parametrize(
    ("dtype", "expected"), [("auto", torch.float32), ("bfloat16", torch.bfloat16), (torch.float16, torch.float16)]
)
def test_dtype(subject: Subjects, dtype: Any, expected: torch.dtype) -> None:
    model = load_model(subject("qwen2_5_vl").folder, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {expected}


def test_a_package_that_a_model_needs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = build_tiny("fast_vlm", tmp_path, vocab_size=512)
    assert isinstance(load_model(folder), PreTrainedModel)
    missing = (lambda: False, "\n{0} requires the timm library.\n")
    monkeypatch.setitem(transformers.utils.import_utils.BACKENDS_MAPPING, "timm", missing)
    with pytest.raises(ModelError, match=r"needs a package that is not installed: .* requires the timm library"):
        load_model(folder)


@pytest.mark.parametrize("name", ["Qwen2_5Omni", "Qwen3OmniMoe"])
def test_of_a_whole_qwen_omni_model_the_thinker_is_loaded(
    subject: Subjects, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """A whole one has no head of its own. Its weights are the thinker's, under other names."""
    it = subject({"Qwen2_5Omni": "qwen2_5_omni_thinker", "Qwen3OmniMoe": "qwen3_omni_moe_thinker"}[name])
    thinker = it.model()
    config = getattr(transformers, f"{name}Config")(thinker_config=thinker.config.to_dict(), enable_audio_output=False)
    whole: Any = getattr(transformers, f"{name}ForConditionalGeneration")(config)
    whole.thinker.load_state_dict(thinker.state_dict())
    with pytest.raises(ModelError, match="train the thinker"):
        model_facts(whole, it.processor)
    whole.save_pretrained(tmp_path)
    it.processor.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert type(loaded) is type(thinker) and "only the thinker is loaded" in caplog.text
    weights = dict(thinker.named_parameters())
    assert weights.keys() == dict(loaded.named_parameters()).keys()
    assert all(torch.equal(weight, weights[name]) for name, weight in loaded.named_parameters())
    assert model_facts(loaded, load_processor(None, loaded, tmp_path)).vocab_size == 512
    assert size_of(str(tmp_path)) == size_of(str(it.folder))


def test_a_model_that_is_listed_elsewhere_is_loaded(tmp_path: Path) -> None:
    """Phi-4-multimodal. Its image token stands in the vision tower's config."""
    loaded: Any = load_model(build_tiny("phi4_multimodal", tmp_path, vocab_size=512))
    assert type(loaded).__name__ == "Phi4MultimodalForCausalLM"
    facts = model_facts(loaded, load_processor(None, loaded, tmp_path))
    assert loaded.config.vision_config.image_token_id in facts.modality_ids
    parts = {facts.family.part(name) for name, _ in loaded.named_parameters() if "img_" in name}
    assert parts == {"vision", "projector"}
    assert facts.family.part("model.layers.0.self_attn.qkv_proj.weight") == "language"


def test_what_cannot_be_loaded_says_why(subject: Subjects, tmp_path: Path) -> None:
    folder = subject("qwen2_5_vl").folder
    with pytest.raises(ModelError, match=r"no model at '.*nowhere'"):
        load_model(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelError, match="not a vision-language model"):
        load_model(tmp_path)
    with pytest.raises(ConfigError, match="dtype='float33'"):
        load_model(folder, dtype="float33")
    with pytest.raises(ConfigError, match=r"attn_implementation.* already loaded"):
        load_model(load_model(folder), attn_implementation="sdpa")
    with pytest.raises(ConfigError, match=r"dtype.* already loaded"):
        load_model(load_model(folder), dtype="bfloat16")


# ---- Processors ----------------------------------------------------------------------------------------------------------------------


def test_a_processor_is_kept_and_a_missing_one_loaded(subject: Subjects) -> None:
    it = subject("qwen2_5_vl")
    assert load_processor(it.processor, it.model()) is it.processor
    assert isinstance(load_processor(None, it.model()), ProcessorMixin)  # the model knows where it came from
    assert isinstance(load_processor(None, nn.Module(), it.folder), ProcessorMixin)


def test_a_processor_is_looked_for_where_its_model_was(subject: Subjects, tmp_path: Path) -> None:
    it = subject("qwen2_5_vl")
    shutil.copytree(it.folder, tmp_path / "final")
    options = {"subfolder": "final", "dtype": "float32"}
    assert isinstance(load_processor(None, load_model(tmp_path, **options), tmp_path, **options), ProcessorMixin)
    with pytest.raises(ModelError, match="none could be loaded"):
        load_processor(None, it.model(), tmp_path)


def test_a_bare_tokenizer_gets_its_processor(subject: Subjects) -> None:
    """S3: `processing_class=tokenizer`, with whatever its owner did to it."""
    it = subject("qwen2_5_vl")
    tokenizer = AutoTokenizer.from_pretrained(it.folder)
    tokenizer.pad_token = "<|im_start|>"
    processor = load_processor(tokenizer, it.model())
    assert isinstance(processor, ProcessorMixin)
    assert processor.tokenizer is tokenizer  # pyright: ignore
    assert model_facts(it.model(), processor).pad_id == tokenizer.convert_tokens_to_ids("<|im_start|>")


def test_what_is_no_processor_is_refused(subject: Subjects, tmp_path: Path) -> None:
    it = subject("qwen2_5_vl")
    with pytest.raises(ModelError, match="is a str"):
        load_processor("qwen", it.model())
    nameless = it.model()
    nameless.config._name_or_path = ""
    with pytest.raises(ModelError, match="none could be loaded"):
        load_processor(None, nameless)
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copy(it.folder / name, tmp_path)
    with pytest.raises(ModelError, match="processor"):
        load_processor(None, it.model(), tmp_path)


# ---- Adapters and precision ----------------------------------------------------------------------------------------------------------


def test_adapt(subject: Subjects) -> None:
    model = subject("qwen2_5_vl").model()
    assert adapt(model, None) is model
    adapted = adapt(model, LoraConfig(target_modules=["q_proj"]))
    assert isinstance(adapted, PeftModel)
    with pytest.raises(ConfigError, match="adapter already"):
        adapt(adapted, LoraConfig(target_modules=["v_proj"]))


def test_trainable_weights_become_float32_and_frozen_ones_stay(subject: Subjects) -> None:
    it = subject("qwen2_5_vl")
    model = it.model(dtype=torch.bfloat16)
    promote_trainable(model, keep=True)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    text = text_parameters(model)
    for parameter in model.parameters():
        parameter.requires_grad_(parameter in text)
    promote_trainable(model)
    assert {parameter.dtype for parameter in text} == {torch.float32}
    assert {parameter.dtype for parameter in model.parameters() if not parameter.requires_grad} == {torch.bfloat16}
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


@pytest.mark.parametrize("layout", ["shared", "rows"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_frozen_bf16_tower_serves_a_float32_language_model(subject: Subjects, family: str, layout: str) -> None:
    it = subject(family)
    model = it.model(dtype=torch.bfloat16)
    text = text_parameters(model)
    for parameter in model.parameters():
        parameter.requires_grad_(parameter in text)
    promote_trainable(model)
    stats = GroupForward(model, it.facts, layout=layout)([it.group(it.prompt(1), (3, 4))])
    stats.logp.sum().backward()
    assert stats.logp.dtype == torch.float32
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in text)


@pytest.mark.parametrize("source", ["./gone", "/nowhere/gone", "runs/gone"])
def test_a_path_of_no_model_fails_without_asking_a_hub(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"There is no model at '.*gone' \(looked in /"):
        load_model(source)

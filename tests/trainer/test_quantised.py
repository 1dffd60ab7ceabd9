"""Adapters beside a base in 4 or 8 bits (QLoRA): trained, saved, merged and loaded anew by plain libraries."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, prepare_model_for_kbit_training
from transformers import AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig, Trainer

from boresight import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
from boresight.errors import ConfigError
from boresight.export.job import export, source_of
from boresight.export.verify import log_probs, make_probes
from boresight.trainer.sharding import refuse_other_engines
from boresight.trainer.stochastic_rounding import uncompiled_on_cpu

from .conftest import QUIET, demonstrations, records, vowel_share

pytest.importorskip("bitsandbytes", reason="an extra, which is not installed here")

SKIPPED = ["model.visual", "lm_head"]
FOUR = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "llm_int8_skip_modules": SKIPPED}
EIGHT = {"load_in_8bit": True, "llm_int8_skip_modules": SKIPPED}
CONFIGS = {"4": FOUR, "8": EIGHT}


def options(folder: Path, config: Any, **further: Any) -> dict[str, Any]:
    kwargs = {"quantization_config": config}
    plain = {"output_dir": str(folder), "max_steps": 2, "use_cpu": True, "model_init_kwargs": kwargs}
    return {**QUIET, "learning_rate": 1e-2, "train": "language=lora", **plain, **further}


def run(method: str, model: Any, folder: Path, config: Any, **further: Any) -> Any:
    given = options(folder, config, **further)
    if method == "sft":
        return SFTTrainer(str(model), SFTConfig(**given), demonstrations(8))
    if method == "dpo":
        pairs = [
            {
                "prompt": row["prompt"],
                "image": row["image"],
                "chosen": row["completion"],
                "rejected": [{"role": "assistant", "content": "no"}],
            }
            for row in demonstrations(8)
        ]
        return DPOTrainer(str(model), args=DPOConfig(**given), train_dataset=pairs)
    sampled = {"num_generations": 4, "max_completion_length": 5, "beta": 0.1, "gold_check": "off"}
    return GRPOTrainer(str(model), vowel_share, args=GRPOConfig(**given, **sampled), train_dataset=records(8))


@pytest.mark.parametrize("bits", ["4", "8"])
@pytest.mark.parametrize("method", ["sft", "dpo", "grpo"])
def test_methods_train_beside_a_quantised_base(model_folder: Path, tmp_path: Path, method: str, bits: str) -> None:
    trainer = run(method, model_folder, tmp_path, CONFIGS[bits], gradient_checkpointing=method == "grpo")
    before = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    moved = {name for name, weight in trainer.model.named_parameters() if not torch.equal(weight, before[name])}
    assert moved and all("lora_" in name and ".language_model." in name for name in moved)
    assert trainer.policy.layout == "shared"
    if method == "dpo":  # the reference is the policy with its adapter off, which starts at zero
        assert trainer.state.log_history[0]["loss"] == pytest.approx(math.log(2), abs=1e-6 if bits == "4" else 0.01)
        assert trainer.ref_model is None


@pytest.mark.parametrize(
    ("further", "message"),
    [
        ({}, r"would merge the adapter into quantised weights \(4-bit\) at every sync. Set vllm_lora_sync='adapter'"),
        ({"vllm_lora_sync": "adapter", "train": "projector=full,language=lora"}, r"is trained as well"),
    ],
)
def test_what_an_engine_cannot_be_sent_is_refused_before_rows_are_read(
    model_folder: Path, tmp_path: Path, further: dict[str, Any], message: str
) -> None:
    given = options(tmp_path, FOUR, use_vllm=True, vllm_mode="server", **further)
    with pytest.raises(ConfigError, match=message):
        GRPOTrainer(str(model_folder), vowel_share, args=GRPOConfig(**given), train_dataset=[{"no": "prompt"}])


@pytest.mark.parametrize("bits", ["4", "8"])
def test_saved_reloaded_and_merged(model_folder: Path, tmp_path: Path, bits: str) -> None:
    trainer = run("sft", model_folder, tmp_path / "run", CONFIGS[bits], max_steps=3)
    trainer.train()
    trainer.save_model(str(tmp_path / "run"))
    processor = AutoProcessor.from_pretrained(tmp_path / "run")
    inputs = make_probes(trainer.model, processor)
    trained = log_probs(trainer.model, inputs)

    quantised = AutoModelForImageTextToText.from_pretrained(
        model_folder, quantization_config=BitsAndBytesConfig(**CONFIGS[bits])
    )
    plain = log_probs(PeftModel.from_pretrained(quantised, str(tmp_path / "run")), inputs)
    # Plain transformers packs 4-bit weights for evaluation on some CPUs, with scales in bfloat16.
    assert furthest(plain, trained) < 0.05

    exported = export(source_of(tmp_path / "run"), tmp_path / "merged", merge=True)
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    assert not isinstance(merged, PeftModel) and "quantization_config" not in merged.config.to_dict()
    error = furthest(log_probs(merged, inputs), trained)
    assert error < (1e-4 if bits == "4" else 0.25)
    assert f"by {error:.1e} nats at most" in exported.lines[1]
    assert f"load_in_{bits}bit=True" in (tmp_path / "merged" / "README.md").read_text().replace("\\", "")
    # Negative control: the same adapter merged into the base as it was is another model.
    original = AutoModelForImageTextToText.from_pretrained(model_folder)
    other = PeftModel.from_pretrained(original, str(tmp_path / "run")).merge_and_unload()
    assert furthest(log_probs(other, inputs), trained) > (1e-2 if bits == "4" else 1e-4)

    exported = export(source_of(tmp_path / "run"), tmp_path / "adapter", merge=False)
    assert (tmp_path / "adapter" / "adapter_config.json").exists()
    assert f"BitsAndBytesConfig(load_in_{bits}bit=True" in exported.lines[1]


def furthest(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    return max(float((left - right).abs().max()) for left, right in zip(one, other, strict=True))


def test_a_resumed_run_is_the_same(model_folder: Path, tmp_path: Path) -> None:
    further = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 2}
    whole = run("sft", model_folder, tmp_path / "a", FOUR, **further)
    whole.train()
    again = run("sft", model_folder, tmp_path / "a", BitsAndBytesConfig(**FOUR), **further)
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-1"))
    for one, other in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_full_training_is_refused(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"quantised \(4-bit\), so its weights cannot be trained in full.*--train language=lora"
    ):
        run("sft", model_folder, tmp_path, FOUR, train=None)
    with pytest.raises(ConfigError, match=r"train: .* is quantised .* write lora for its part"):
        run("sft", model_folder, tmp_path, FOUR, train="language=full")
    with pytest.raises(ConfigError, match="cannot be trained in full"):
        run("sft", model_folder, tmp_path, FOUR, train="vision=full")


def test_a_part_that_is_not_quantised_may_be_trained_in_full(model_folder: Path, tmp_path: Path) -> None:
    trainer = run("sft", model_folder, tmp_path, FOUR, train="projector=full,language=lora")
    before = trainer.model.get_submodule("base_model.model.model.visual.merger.mlp.0").weight.detach().clone()
    trainer.train()
    assert not torch.equal(before, trainer.model.get_submodule("base_model.model.model.visual.merger.mlp.0").weight)


def test_trl_s_argument(model_folder: Path, tmp_path: Path) -> None:
    config, lora = BitsAndBytesConfig(**FOUR), LoraConfig(r=2, target_modules=["q_proj"])
    given = options(tmp_path, None, train=None)
    args = SFTConfig(**{**given, "model_init_kwargs": None})
    trainer = SFTTrainer(str(model_folder), args, demonstrations(4), peft_config=lora, quantization_config=config)
    assert trainer.model.get_base_model().is_loaded_in_4bit and args.model_init_kwargs is None
    json.dumps(trainer.identity)
    with pytest.raises(ConfigError, match="set both here and in model_init_kwargs"):
        SFTTrainer(
            str(model_folder), SFTConfig(**options(tmp_path, FOUR)), demonstrations(4), quantization_config=config
        )


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_model_prepared_by_peft(model_folder: Path, tmp_path: Path, checkpointing: bool) -> None:
    """`prepare_model_for_kbit_training` makes embeddings ask for gradients by hooks, the vision tower's patches included."""
    model = AutoModelForImageTextToText.from_pretrained(model_folder, quantization_config=BitsAndBytesConfig(**FOUR))
    model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=checkpointing)
    args = SFTConfig(
        **{**options(tmp_path, None, gradient_checkpointing=checkpointing, max_steps=1), "model_init_kwargs": None}
    )
    processor = AutoProcessor.from_pretrained(model_folder)
    trainer = SFTTrainer(model, args, demonstrations(4), processing_class=processor)
    trainer.train()
    assert trainer.policy.layout == "shared"


def test_fsdp_is_refused(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("boresight.trainer.sharding.is_set", lambda name: name == "ACCELERATE_USE_FSDP")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(ConfigError, match="cannot be divided by FSDP2: start with --accelerate_config multi_gpu"):
        run("sft", model_folder, tmp_path, FOUR)


RUNS_ON_CPU = (
    "adamw_bnb_8bit", "adamw_8bit", "lion_8bit", "rmsprop_bnb_8bit", "ademamix_8bit", "paged_adamw_8bit", "paged_adamw_32bit",
    "paged_lion_8bit", "adamw_torch_8bit", "adamw_torch_4bit",
)  # fmt: skip


@pytest.mark.parametrize("optim", RUNS_ON_CPU)
def test_optimizers_of_8_bits_and_paged_ones_step_on_a_cpu(optim: str) -> None:
    if "torch" in optim:
        pytest.importorskip("torchao")
    config = SFTConfig(optim=optim, use_cpu=True, report_to="none")
    cls, given = Trainer.get_optimizer_cls_and_kwargs(config)
    weight = torch.nn.Parameter(torch.ones(64, 128))
    optimizer = uncompiled_on_cpu(cls([weight], **given))
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert bool((weight < 1).all())
    state = [
        each for each in optimizer.state[weight].values() if isinstance(each, torch.Tensor) and each.numel() >= 8192
    ]
    assert len(state) >= 1
    if "8bit" in optim and "torch" not in optim:
        assert {each.dtype for each in state} == {torch.uint8}


def test_a_run_with_an_8_bit_optimizer(model_folder: Path, tmp_path: Path) -> None:
    trainer = run("sft", model_folder, tmp_path, FOUR, optim="adamw_bnb_8bit")
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses[-1] < losses[0]


def test_offloading_from_a_cpu_is_refused(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ACCELERATE_USE_FSDP", "FSDP_OFFLOAD_PARAMS"):
        monkeypatch.setenv(name, "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(
        ConfigError, match="this run is on CPUs, where they are already: start with --accelerate_config fsdp2"
    ):
        refuse_other_engines(SFTConfig(use_cpu=True, report_to="none"))

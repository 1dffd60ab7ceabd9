"""Three optimizer steps of every kind of run, through the trainers, with a tiny model: what runs at all on this device."""

from __future__ import annotations

import importlib.util
import math
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from PIL import Image

from boresight import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
from boresight.demo.tiny import build_tiny
from gpu_parts.rows import BoundError, Case, Figures, LackingError, Setting

STEPS = 3


def run(setting: Setting) -> Iterator[Case]:
    yield "SFT", partial(train, setting, "sft")
    yield "DPO", partial(train, setting, "dpo")
    yield "GRPO", partial(train, setting, "grpo")
    yield "GRPO, LoRA", partial(train, setting, "grpo", lora=True)
    yield "SFT, LoRA on 4-bit weights", partial(four_bit, setting)


def rows(method: str) -> list[dict[str, Any]]:
    """Rows with an image of noise each."""
    found = []
    for number in range(8):
        draw = torch.Generator().manual_seed(number)
        image = Image.fromarray(torch.randint(0, 256, (48, 64, 3), dtype=torch.uint8, generator=draw).numpy())
        row: dict[str, Any] = {"prompt": [{"role": "user", "content": "what color is the shape?"}], "image": image}
        if method == "sft":
            row["completion"] = [{"role": "assistant", "content": "it is red"}]
        if method == "dpo":
            row["chosen"] = [{"role": "assistant", "content": "it is blue"}]
            row["rejected"] = [{"role": "assistant", "content": "a red shape"}]
        found.append(row)
    return found


def reward(completions: list[Any], **columns: Any) -> list[float]:
    return [float(len(completion[0]["content"]) % 7) for completion in completions]


def trainer_of(setting: Setting, method: str, model: Any, scratch: str, *, lora: bool, **options: Any) -> Any:
    """The trainer of three steps."""
    config, trainer = {
        "sft": (SFTConfig, SFTTrainer),
        "dpo": (DPOConfig, DPOTrainer),
        "grpo": (GRPOConfig, GRPOTrainer),
    }[method]
    if method == "grpo":
        options = {"num_generations": 4, "max_completion_length": 8, "beta": 0.04} | options
    args = config(
        output_dir=scratch, max_steps=STEPS, per_device_train_batch_size=4, gradient_accumulation_steps=1, logging_steps=1,
        report_to="none", disable_tqdm=True, save_strategy="no", use_cpu=not setting.cuda, bf16=setting.cuda, **options,
    )  # fmt: skip
    extra: dict[str, Any] = {"reward_funcs": reward} if method == "grpo" else {}
    adapter = LoraConfig(target_modules=["q_proj", "v_proj"], r=4) if lora else None
    return trainer(model, args=args, train_dataset=rows(method), peft_config=adapter, **extra)


def train(setting: Setting, method: str, *, lora: bool = False, **options: Any) -> Figures:
    """Losses and gradient norms of three steps; each must be a number."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = build_tiny("qwen2_5_vl", Path(scratch) / "model", vocab_size=512)
        return finished(trainer_of(setting, method, str(folder), scratch, lora=lora, **options))


def finished(trainer: Any) -> Figures:
    result = trainer.train()
    logs = [log for log in trainer.state.log_history if "grad_norm" in log]
    figures: Figures = {
        "seconds": result.metrics["train_runtime"],
        "losses": " ".join(f"{log['loss']:.3g}" for log in logs),
        "gradient norms": " ".join(f"{float(log['grad_norm']):.3g}" for log in logs),
    }
    if len(logs) != STEPS or not all(math.isfinite(log["loss"]) and math.isfinite(log["grad_norm"]) for log in logs):
        raise BoundError("not three steps with finite losses and gradients", figures)
    return figures


def four_bit(setting: Setting) -> Figures:
    if not setting.cuda or importlib.util.find_spec("bitsandbytes") is None:
        raise LackingError("needs CUDA and bitsandbytes")
    from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

    with tempfile.TemporaryDirectory() as scratch:
        folder = build_tiny("qwen2_5_vl", Path(scratch) / "model", vocab_size=512)
        bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16, bnb_4bit_quant_type="nf4")
        model = AutoModelForImageTextToText.from_pretrained(folder, quantization_config=bits, device_map={"": 0})
        # A loaded model comes without its folder, which has the processor.
        model.config._name_or_path = model.name_or_path = str(folder)
        return finished(trainer_of(setting, "sft", model, scratch, lora=True))

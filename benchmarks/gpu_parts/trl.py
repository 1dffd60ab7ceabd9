"""The update of `update.py` by TRL's own GRPO trainer, on the same card and model, beside boresight's."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import torch

from boresight.model.forward import GroupForward
from gpu_parts.clock import peak_gib, seconds
from gpu_parts.models import Built, build
from gpu_parts.rows import Case, Figures, LackingError, Setting
from gpu_parts.update import K, switch, update

GOALS: Figures = {"its goal": 4.0, "memory goal": 1 / 3}


def run(setting: Setting) -> Iterator[Case]:
    one = cache(partial(build, setting=setting))
    for checkpointing in (True, False):
        name = "Qwen2.5-VL-3B, checkpointing" if checkpointing else "Qwen2.5-VL-3B"
        yield name, partial(compare, setting, one, checkpointing)


def compare(setting: Setting, build_once: Callable[[str], Built], checkpointing: bool) -> Figures:
    """Seconds and peak memory of both, TRL's over boresight's."""
    if importlib.util.find_spec("trl") is None:
        raise LackingError("TRL is not installed; `make gpu-wheels` gathers it")
    built, tokens = build_once("Qwen2.5-VL-3B"), 4 if setting.tiny else 256
    group = built.group(K, tokens)
    switch(built, checkpointing)
    ours = partial(update, GroupForward(built.model, built.facts, layout="shared"), group)
    figures: Figures = {"boresight, seconds": seconds(setting, ours), "boresight, peak GiB": peak_gib(setting, ours)}
    built.model.zero_grad(set_to_none=True)
    with tempfile.TemporaryDirectory() as scratch:
        theirs = trl_update(setting, built, tokens, checkpointing, scratch)
        figures |= {"TRL, seconds": seconds(setting, theirs), "TRL, peak GiB": peak_gib(setting, theirs)}
    built.model.zero_grad(set_to_none=True)
    figures["speed-up"] = float(figures["TRL, seconds"] or 0) / float(figures["boresight, seconds"] or 1)
    if figures["TRL, peak GiB"]:
        figures["memory, boresight / TRL"] = float(figures["boresight, peak GiB"] or 0) / float(
            figures["TRL, peak GiB"]
        )
    return figures | GOALS


def trl_update(setting: Setting, built: Built, tokens: int, checkpointing: bool, scratch: str) -> Callable[[], object]:
    """TRL's own batch of the same prompt and completions, and its training step."""
    from datasets import Dataset, Features, Image, Value
    from trl import GRPOConfig, GRPOTrainer

    message = [{"role": Value("string"), "content": Value("string")}]
    rows = Dataset.from_list(
        [{"prompt": [{"role": "user", "content": built.question}], "image": built.image}] * K,
        features=Features({"prompt": message, "image": Image()}),
    )
    args: Any = GRPOConfig(
        output_dir=scratch, per_device_train_batch_size=K, num_generations=K, gradient_accumulation_steps=1, beta=0.0,
        max_completion_length=tokens, gradient_checkpointing=checkpointing, bf16=setting.cuda, use_cpu=not setting.cuda,
        report_to="none", disable_tqdm=True,
    )  # fmt: skip
    trainer: Any = GRPOTrainer(
        built.model, reward_funcs=_reward, args=args, train_dataset=rows, processing_class=built.processor
    )
    trainer.current_gradient_accumulation_steps = 1
    trainer._generate_single_turn = lambda *_, **__: (built.ids(K, tokens).tolist(), None)
    batch = trainer._generate_and_score_completions([dict(row) for row in rows])
    batch["advantages"] = torch.linspace(-1.0, 1.5, K, device=setting.device)
    trainer._prepare_inputs = lambda inputs: inputs

    def step() -> None:
        trainer.model.zero_grad(set_to_none=False)
        trainer.training_step(trainer.model, dict(batch), None)

    return step


def _reward(completions: list[Any], **columns: Any) -> list[float | None]:
    return [float(number % 5) for number, _ in enumerate(completions)]

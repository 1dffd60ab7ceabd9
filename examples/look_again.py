"""A tiny model learns to look again: where a mark is, and that `zoom` shows it. A twin without the tool learns from the same rows.

    python examples/look_again.py --seed 0

Both are taught by a few demonstrations first (SFT), so that they know the form of an answer, or of a call; then both improve by GRPO, for
as many steps. The marks are too small for the whole image to say the answer (`boresight.demo.small_marks`), so the twin can get one in two
right at best. About eight CPU minutes.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoProcessor

from boresight import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
from boresight.demo.small_marks import SCALE, MarkTools, demonstrations, load_small_marks
from boresight.demo.tiny import build_tiny
from boresight.demo.tiny.qwen import CONTENT, chatml_with_tools
from boresight.rewards import completion_text

SIZE = 448
"""Pixels of an image's side; the model sees `SIZE // SCALE`."""

WORDS = (
    '<tool_call>\n{"name": "zoom", "arguments": {"left": ',
    ', "top": ',
    ', "right": ',
    ', "bottom": ',
    "}}\n</tool_call>",
    "250",
    "500",
    "750",
    "1000",
    "<tool_response>\n",
    "\n</tool_response>",
)
"""Parts of a call that are one token each, as `<tool_call>` is in published tokenizers: a call is nine tokens."""


def build_model(folder: Path, seed: int) -> Path:
    """A tiny Qwen2.5-VL whose template renders calls and results. It leaves out descriptions of tools: a model of this size learns the form
    of a call from demonstrations."""
    build_tiny(
        "qwen2_5_vl", folder, seed=seed, hidden_size=128, num_layers=3, vocab_size=576, vision_hidden_size=64, vision_heads=4,
        max_pixels=(SIZE // SCALE) ** 2,
    )  # fmt: skip
    processor = AutoProcessor.from_pretrained(folder)
    processor.tokenizer.add_tokens(list(WORDS))
    processor.chat_template = processor.tokenizer.chat_template = chatml_with_tools(CONTENT, describes=False)
    processor.save_pretrained(folder)
    return folder


def right(completions: Sequence[Any], solution: Sequence[str], **columns: Any) -> list[float]:
    """1 for the right colour."""
    return [
        float(completion_text(completion).strip() == color)
        for completion, color in zip(completions, solution, strict=True)
    ]


def learn(folder: Path, model: Path, *, zooms: bool, options: argparse.Namespace) -> dict[str, float]:
    """Teach one policy, and return how often it is right on held-out questions after each stage."""
    common = {"overwrite_output_dir": True, "gradient_checkpointing": False, "save_strategy": "no", "report_to": "none"}
    begun = time.process_time()
    taught = SFTTrainer(
        str(model),
        SFTConfig(
            str(folder / "sft"), max_steps=options.sft_steps, per_device_train_batch_size=16, learning_rate=1e-3,
            lr_scheduler_type="constant_with_warmup", warmup_steps=10, assistant_only_loss=True, logging_steps=20, seed=options.seed,
            **common,
        ),
        demonstrations(options.demonstrations, seed=options.seed, size=SIZE, zooms=zooms),
    )  # fmt: skip
    taught.train()
    taught.save_model(str(folder / "sft" / "model"))
    trainer = GRPOTrainer(
        str(folder / "sft" / "model"),
        right,
        GRPOConfig(
            str(folder / "grpo"), max_steps=options.grpo_steps, num_prompts_per_step=options.prompts, num_generations=8,
            per_device_train_batch_size=8 * options.prompts, num_generations_eval=1, per_device_eval_batch_size=100,
            max_completion_length=96, max_tool_calling_iterations=2, learning_rate=options.learning_rate,
            lr_scheduler_type="constant_with_warmup", warmup_steps=5, logging_steps=10, seed=options.seed,
            gold_template="{solution}", **common,
        ),
        load_small_marks("train", num_rows=2000, seed=options.seed, size=SIZE),
        load_small_marks("test", num_rows=options.test_rows, size=SIZE),
        environment_factory=MarkTools if zooms else None,
    )  # fmt: skip
    found = {"sft": trainer.evaluate()["eval_rewards/right/mean"]}
    trainer.train()
    found |= {"grpo": trainer.evaluate()["eval_rewards/right/mean"], "cpu_minutes": (time.process_time() - begun) / 60}
    trainer.save_model(str(folder / "grpo" / "model"))
    return {name: round(value, 3) for name, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/look_again"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--demonstrations", type=int, default=1024)
    parser.add_argument("--sft_steps", type=int, default=240)
    parser.add_argument("--grpo_steps", type=int, default=20)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--learning_rate", type=float, default=3e-4)
    parser.add_argument("--test_rows", type=int, default=200)
    parser.add_argument("--only", choices=("with", "without"))
    options = parser.parse_args()
    model = build_model(options.output_dir / "start", options.seed)
    found = {}
    for name in ("with", "without"):
        if options.only in (None, name):
            found[name] = learn(options.output_dir / name, model, zooms=name == "with", options=options)
            print(f"{name} zoom: {found[name]}", flush=True)
    (options.output_dir / "summary.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

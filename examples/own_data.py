"""Own data: SFT, then GRPO, on a folder of images and a table.

    python examples/own_data.py shapes       # shapes/train.csv has the columns image, question, answer

The commands do the same with flags (`boresight sft --prompt_column question --completion_column answer`). This script is
for data that needs more than renamed columns. MODEL sets another model, STEPS another number of steps.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from boresight import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
from boresight.data import load_rows

MODEL = os.environ.get("MODEL", "Qwen/Qwen2.5-VL-3B-Instruct")
STEPS = int(os.environ.get("STEPS", "200"))
FORM = "Answer with one word between <answer> and </answer>, after your reasoning between <think> and </think>."


def main(folder: str) -> None:
    # Paths are relative to the table. The images stay files; the trainer decodes them when it needs them.
    table: Any = load_rows(f"{folder}/train.csv")

    # The questions. Without an image part in the text, the image comes before the question.
    rows = [
        {
            "prompt": [{"role": "user", "content": f"{row['question']} {FORM}"}],
            "image": row["image"],
            "solution": row["answer"],
        }
        for row in table
    ]

    # First the form: SFT imitates a complete answer. A few steps are enough.
    demonstrations = [
        {
            "prompt": row["prompt"],
            "image": row["image"],
            "completion": [{"role": "assistant", "content": f"<think>I look at it.</think><answer>{row['solution']}</answer>"}],
        }
        for row in rows
    ]  # fmt: skip
    sft = SFTTrainer(MODEL, SFTConfig(output_dir="runs/own_data/sft", max_steps=STEPS // 2), demonstrations)
    sft.train()
    sft.save_model("runs/own_data/sft")

    # Then the answers: GRPO samples eight, and learns from the right ones.
    grpo = GRPOTrainer(
        "runs/own_data/sft",
        ["exact_answer_reward", "answer_format_reward"],
        GRPOConfig(output_dir="runs/own_data/grpo", max_steps=STEPS, max_completion_length=64, num_prompts_per_step=8),
        rows,
    )
    grpo.train()
    grpo.save_model("runs/own_data/grpo")


if __name__ == "__main__":
    main(sys.argv[1])

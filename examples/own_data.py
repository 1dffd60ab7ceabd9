"""Own data: a folder of images and a table, first imitated (SFT), then improved on (GRPO).

    python examples/own_data.py shapes       # shapes/train.csv has the columns image, question, answer

The commands do the same by flags (`boresight sft --prompt_column question --completion_column answer`). This is for data
that needs more than new names. MODEL names another model, STEPS another length.
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
    # A path in the table starts at the table. The images stay files; the trainer decodes them when it needs them.
    table: Any = load_rows(f"{folder}/train.csv")

    # What is asked. Without a place for it in the text, the image stands before the question.
    rows = [
        {
            "prompt": [{"role": "user", "content": f"{row['question']} {FORM}"}],
            "image": row["image"],
            "solution": row["answer"],
        }
        for row in table
    ]

    # First the form: imitate an answer written out. A little is enough.
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

    # Then the answers: sample eight, and learn from which of them were right.
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

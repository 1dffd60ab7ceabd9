"""DPO: the model learns which of two answers about an image people (or a judge) preferred.

    python examples/scripts/dpo_vlm.py --model_name_or_path Qwen/Qwen2.5-VL-3B-Instruct --output_dir runs/dpo --use_peft

The flags are those of `boresight dpo`; --help lists them.
"""

from __future__ import annotations

import sys

from boresight import DPOTrainer
from boresight.cli import exit_code, load_datasets, peft_config, read_command, train


def main() -> None:
    # RLAIF-V: two answers to one question about an image; the second mentions more that is not in the image.
    command = read_command("dpo", dataset_name="HuggingFaceH4/rlaif-v_formatted")
    train_dataset, eval_dataset = load_datasets(command)

    # Every pair is a group of two: one image and one prompt, with two answers branching off. The reference is
    # the model before training; with --use_peft it is the model without its adapter, and costs no memory.
    trainer = DPOTrainer(
        model=command.model.model_name_or_path,
        args=command.training,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        peft_config=peft_config(command),
    )

    # Trains, saves, and says what to type next. Ctrl-C saves a checkpoint first.
    train(command, trainer)


if __name__ == "__main__":
    sys.exit(exit_code(main))

"""SFT: a vision-language model learns to follow instructions about images from demonstrations.

    python examples/scripts/sft_vlm.py --model_name_or_path Qwen/Qwen2.5-VL-3B-Instruct --output_dir runs/sft

The flags are those of `boresight sft`; --help lists them.
"""

from __future__ import annotations

import sys

from boresight import SFTTrainer
from boresight.cli import exit_code, load_datasets, peft_config, read_command, train


def main() -> None:
    # Conversations about images, written by a larger model. For your own rows: --dataset_name FOLDER.
    command = read_command("sft", dataset_name="HuggingFaceH4/llava-instruct-mix-vsft")
    train_dataset, eval_dataset = load_datasets(command)

    # Every row is a group of one: its images pass the vision tower once. With --assistant_only_loss, only the
    # assistant's tokens count.
    trainer = SFTTrainer(
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

"""MPO: DPO with two more losses, for the quality of each answer and for generating the better one.

    python examples/scripts/mpo_vlm.py --model_name_or_path Qwen/Qwen2.5-VL-3B-Instruct --output_dir runs/mpo --use_peft

The flags are those of `boresight mpo`; --help lists them.
"""

from __future__ import annotations

import sys

from boresight import DPOTrainer
from boresight.cli import exit_code, load_datasets, peft_config, read_command, train


def main() -> None:
    # The same pairs as for DPO. The command prints the three losses and their weights, with their paper.
    command = read_command("mpo", dataset_name="HuggingFaceH4/rlaif-v_formatted")
    train_dataset, eval_dataset = load_datasets(command)

    # DPO alone lowers the worse answer and often the better one with it, until the model repeats itself. The
    # quality loss (bco_pair) judges each answer alone, and the generation loss (sft) keeps the better one likely.
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

"""GSPO: GRPO that weights and clips whole answers, not single tokens, and stays stable over several optimizer steps.

    python examples/scripts/gspo_vlm.py --model_name_or_path Qwen/Qwen2.5-VL-3B-Instruct --output_dir runs/gspo \
        --learning_rate 1e-5 --max_completion_length 1024 --use_peft --log_completions

The flags are those of `boresight gspo`; --help lists them.
"""

from __future__ import annotations

import sys

from boresight import GRPOTrainer
from boresight.cli import exit_code, load_datasets, peft_config, read_command, train

SYSTEM_PROMPT = (
    "The user asks a question about an image. First think it through between <think> and </think>, then give the "
    "answer alone between <answer> and </answer>: <think>\nyour reasoning\n</think>\n<answer>\nyour answer\n</answer>"
)


def main() -> None:
    # Mathematics with images. The command prints the values that GSPO sets, with the paper; flags override them.
    command = read_command(
        "gspo",
        dataset_name="lmms-lab/multimodal-open-r1-8k-verified",
        prompt_column="problem",
        system_prompt=SYSTEM_PROMPT,
        # Half of the reward is for the form, so rewards differ before the first right answer.
        reward_funcs=["think_format_reward", "accuracy_reward"],
    )
    train_dataset, eval_dataset = load_datasets(command)

    # Every question is a group: its image is encoded once, its prompt read once, and all answers branch off it.
    trainer = GRPOTrainer(
        model=command.model.model_name_or_path,
        reward_funcs=command.rewards.reward_funcs,
        args=command.training,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        peft_config=peft_config(command),
    )

    # Trains, saves, and says what to type next. Ctrl-C saves a checkpoint first.
    train(command, trainer)


if __name__ == "__main__":
    sys.exit(exit_code(main))

"""Own reward: the model counts dots, and the reward is how close its count is.

    python examples/own_reward.py

On the command line, the same function is `--reward_funcs own_reward.closeness`, run in the folder of this file. MODEL
sets another model, STEPS another number of steps.
"""

from __future__ import annotations

import os
import random
import re
from typing import Any

from drawings import dots

from boresight import GRPOConfig, GRPOTrainer
from boresight.rewards import think_format_reward

MODEL = os.environ.get("MODEL", "Qwen/Qwen2.5-VL-3B-Instruct")
STEPS = int(os.environ.get("STEPS", "200"))


def closeness(completions: list[Any], number: list[int], log_metric: Any, **columns: Any) -> list[float | None]:
    """1 for the right number, less with its distance, 0 without a number.

    Every column of the data set is a parameter of that name, with one entry per completion: here `number`. `log_metric`
    adds a number to the log. A reward may return None where it does not apply; only the other rewards then count. Where it
    raises, the completion is unscored, never 0.
    """
    # The prompt is a conversation, so each completion is one too; the answer is the last number.
    found = [re.findall(r"\d+", completion[0]["content"]) for completion in completions]
    said = [int(numbers[-1]) if numbers else None for numbers in found]
    log_metric("exactly_right", sum(one == right for one, right in zip(said, number, strict=True)) / len(said))
    return [0.0 if one is None else 1 / (1 + abs(one - right)) for one, right in zip(said, number, strict=True)]


def main() -> None:
    chooser = random.Random(0)
    question = "How many dots are there? Think between <think> and </think>, then give the number."
    rows = [
        {"prompt": [{"role": "user", "content": question}], "image": dots(number, chooser), "number": number}
        for number in (chooser.randrange(1, 10) for _ in range(512))
    ]
    trainer = GRPOTrainer(
        MODEL,
        [closeness, think_format_reward],
        GRPOConfig(
            output_dir="runs/own_reward",
            max_steps=STEPS,
            num_prompts_per_step=8,
            max_completion_length=64,
            reward_weights=[1.0, 0.2],  # the right number weighs more than the form
            logging_steps=1,
        ),
        rows,
    )
    trainer.train()
    trainer.save_model("runs/own_reward")


if __name__ == "__main__":
    main()

"""Several images in a prompt: which of three has the most dots?

    python examples/multi_image.py

MODEL sets another model, STEPS another number of steps.
"""

from __future__ import annotations

import os
import random
from typing import Any

from drawings import dots

from boresight import GRPOConfig, GRPOTrainer

MODEL = os.environ.get("MODEL", "Qwen/Qwen2.5-VL-3B-Instruct")
STEPS = int(os.environ.get("STEPS", "200"))


def row(chooser: random.Random) -> dict[str, Any]:
    """One question. The image parts take the images of the column `images` in order."""
    numbers = chooser.sample(range(1, 10), 3)
    parts: list[dict[str, str]] = []
    for letter in "ABC":
        parts += [{"type": "text", "text": f"{letter}:"}, {"type": "image"}]
    parts.append({"type": "text", "text": "Which has the most dots? Write <answer>A</answer>, B or C."})
    return {
        "prompt": [{"role": "user", "content": parts}],
        "images": [dots(number, chooser) for number in numbers],
        "solution": "ABC"[numbers.index(max(numbers))],
    }


def main() -> None:
    chooser = random.Random(0)
    trainer = GRPOTrainer(
        MODEL,
        "choice_letter_reward",
        # All three images are encoded once for the eight completions of a question, not once for each.
        GRPOConfig(
            output_dir="runs/multi_image",
            max_steps=STEPS,
            num_prompts_per_step=8,
            max_completion_length=32,
            logging_steps=1,
        ),
        [row(chooser) for _ in range(512)],
    )
    trainer.train()
    trainer.save_model("runs/multi_image")


if __name__ == "__main__":
    main()

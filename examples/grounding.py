"""Grounding: the model locates an object, and the reward is how well its box fits.

    python examples/grounding.py

COORDINATES is the form in which a family writes coordinates: `model` for Qwen2.5-VL (pixels of the image as the model
sees it), `thousand` for Qwen3-VL and InternVL (thousandths of its sides), `original` for pixels of the file. The right box
is always in pixels of the file. MODEL sets another model, STEPS another number of steps.
"""

from __future__ import annotations

import os
import random
from typing import Any, cast

from drawings import box

from boresight import GRPOConfig, GRPOTrainer
from boresight.rewards import get_iou_reward, get_point_in_box_reward
from boresight.rewards.grounding import Coordinates

MODEL = os.environ.get("MODEL", "Qwen/Qwen2.5-VL-3B-Instruct")
STEPS = int(os.environ.get("STEPS", "200"))
COORDINATES = cast("Coordinates", os.environ.get("COORDINATES", "model"))


def row(chooser: random.Random) -> dict[str, Any]:
    """One question, and the right box in the column that the rewards read."""
    color = chooser.choice(["red", "green", "blue"])
    image, where = box(color, chooser)
    question = f"Where is the {color} box? Write <answer>[x1, y1, x2, y2]</answer>."
    return {"prompt": [{"role": "user", "content": question}], "image": image, "bbox": list(where)}


def main() -> None:
    chooser = random.Random(0)
    trainer = GRPOTrainer(
        MODEL,
        # The IoU of a box that does not overlap the right one is 0 at any distance, so a centre inside is rewarded as well.
        [get_iou_reward(COORDINATES), get_point_in_box_reward(COORDINATES)],
        GRPOConfig(
            output_dir="runs/grounding",
            max_steps=STEPS,
            num_prompts_per_step=8,
            max_completion_length=48,
            reward_weights=[1.0, 0.5],
            logging_steps=1,
        ),
        [row(chooser) for _ in range(512)],
    )
    trainer.train()
    trainer.save_model("runs/grounding")


if __name__ == "__main__":
    main()

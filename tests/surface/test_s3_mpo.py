"""S2 and S3: the article's MPO sample as printed but for the import, and plain DPO of pairs with images."""

from __future__ import annotations

from collections.abc import Callable

import pytest

DATA = """
import os
import tempfile

from boresight.demo.easy_vqa import load_easy_vqa
from transformers import AutoTokenizer

tmp_dir = tempfile.mkdtemp()
model_id = os.environ["MODEL"]
tokenizer = AutoTokenizer.from_pretrained(model_id)

def pair(row):
    said = {"chosen": row["solution"], "rejected": "nothing"}
    return {name: [{"role": "assistant", "content": [{"type": "text", "text": text}]}] for name, text in said.items()}

dataset = load_easy_vqa("train", num_rows=8).map(pair)
"""

MPO = """
from boresight import DPOConfig, DPOTrainer

mpo_config = DPOConfig(
    output_dir=tmp_dir,
    per_device_train_batch_size=2,
    learning_rate=9e-1,
    loss_type=["sigmoid", "bco_pair", "sft"],  # Loss types to combine, as used in the MPO paper
    loss_weights=[0.8, 0.2, 1.0],  # Corresponding weights, as used in the MPO paper
    report_to="none",
    bf16=False,
    fp16=False,
    use_cpu=True,
    max_steps=1,
)
mpo_trainer = DPOTrainer(
    model=MODEL,
    args=mpo_config,
    processing_class=tokenizer,
    train_dataset=dataset,
)
mpo_trainer.train()
print("steps", mpo_trainer.state.global_step, "pairs in the shift", mpo_trainer.shift.num_pairs)
"""


@pytest.mark.parametrize("loaded", [False, True], ids=["by folder", "loaded"])
def test_the_mpo_sample(run_script: Callable[[str], str], loaded: bool) -> None:
    """A bare tokenizer, and images all the same: the processor is found in the model's folder."""
    model = "AutoModelForImageTextToText.from_pretrained(model_id)" if loaded else "model_id"
    source = DATA + "from transformers import AutoModelForImageTextToText\n" + MPO.replace("MODEL", model)
    printed = run_script(source)
    assert "steps 1 pairs in the shift 2.0" in printed


def test_dpo_of_pairs_with_images(run_script: Callable[[str], str]) -> None:
    """Two pairs, two images, each encoded once by the policy and once by the reference; and plain transformers loads what was saved."""
    printed = run_script(
        DATA
        + """
from boresight import DPOConfig, DPOTrainer
from transformers import AutoModelForImageTextToText

config = DPOConfig(output_dir=tmp_dir, per_device_train_batch_size=2, max_steps=2, logging_steps=1, report_to="none")
trainer = DPOTrainer(model_id, args=config, train_dataset=dataset)
trainer.train()
trainer.save_model(tmp_dir + "/saved")
AutoModelForImageTextToText.from_pretrained(tmp_dir + "/saved")
print("encodes", trainer.state.log_history[0]["work/vision_encodes"])
"""
    )
    assert "encodes 4" in printed

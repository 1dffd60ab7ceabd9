"""The accuracy of a demo's final model with plain transformers; nothing here imports boresight.

    .venv/bin/python examples/plain_accuracy.py runs/demo

The script reads the demo's questions from `test_questions.jsonl`, answers them greedily, one at a time, and compares with `summary.json`.
"""

import json
import re
import sys
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

run = Path(sys.argv[1])
summary = json.loads((run / "summary.json").read_text())
folder = run / summary["method"] / "model"
model = AutoModelForImageTextToText.from_pretrained(folder).eval()
processor = AutoProcessor.from_pretrained(folder)

questions = [json.loads(line) for line in (run / "test_questions.jsonl").read_text().splitlines()]
right = 0
for number, item in enumerate(questions, 1):
    image = Image.open(run / item["image"]).convert("RGB")
    parts = [{"type": "image", "image": image}, {"type": "text", "text": item["question"]}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": parts}],
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        output = model.generate(**inputs, do_sample=False, max_new_tokens=16)  # pyright: ignore[reportAttributeAccessIssue]
    text = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    answers = re.findall(r"<answer>(.*?)</answer>", text)
    right += answers == [item["solution"]]
    if number % 100 == 0:
        print(f"{number} asked, {right} right", flush=True)

share = right / len(questions)
print(f"plain transformers: {share:.4f}   summary.json: {summary['accuracy']['final']:.4f}")
sys.exit(share != summary["accuracy"]["final"])

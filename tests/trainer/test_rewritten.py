"""SFT on conversations whose chat template drops earlier thinking: values and gradients of plain transformers on each turn as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from boresight import SFTConfig, SFTTrainer
from tests.data.test_rewritten import BLUE, FORGETFUL, RED, TALK, said

from .conftest import QUIET, Gradients, furthest

ROWS: list[dict[str, Any]] = [
    {"messages": TALK, "images": [RED, BLUE]},
    {"messages": [said("user", "why?"), said("assistant", "<think>so</think>because")], "images": []},
]
ANSWERS = [
    (0, 2, ["<think>I look</think>red"]),
    (0, 6, ["<think>again</think>blue", "<think>closer</think>dark blue"]),
    (0, 8, ["<think>hm</think>yes"]),
    (1, 2, ["<think>so</think>because"]),
]
"""Row, messages, and what counts of them."""


def test_branches_are_learned_as_conversations_of_their_own(model_folder: Path, tmp_path: Path, capsys: Any) -> None:
    processor = AutoProcessor.from_pretrained(model_folder)
    processor.chat_template = processor.tokenizer.chat_template = FORGETFUL
    gradients = Gradients()
    config = SFTConfig(
        str(tmp_path), **QUIET, assistant_only_loss=True, max_steps=1, per_device_train_batch_size=2, max_grad_norm=1e9
    )  # pyright: ignore[reportArgumentType]
    trainer = SFTTrainer(str(model_folder), config, ROWS, processing_class=processor, callbacks=[gradients])
    assert "1 of 2 rows (0): the chat template rewrites earlier turns" in capsys.readouterr().out
    trainer.train()
    model = AutoModelForImageTextToText.from_pretrained(model_folder, dtype=torch.float32)
    total, lost = 0, torch.zeros(())
    for row, place, answers in ANSWERS:
        nats, count = by_hand(model, processor, ROWS[row], place, answers)
        lost, total = lost - nats, total + count
    (lost / total).backward()
    assert trainer.state.log_history[0]["num_tokens"] > total
    torch.testing.assert_close(trainer.state.log_history[0]["loss"], float(lost.detach()) / total, rtol=1e-4, atol=1e-4)
    expected = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    assert furthest(gradients.steps[0], expected) < 1e-4  # pyright: ignore[reportArgumentType]


def by_hand(
    model: Any, processor: Any, row: dict[str, Any], place: int, answers: list[str]
) -> tuple[torch.Tensor, int]:
    """The log-probability of answers, end tokens included, after the messages before them as they are rendered then."""
    messages = row["messages"][:place]
    text = processor.apply_chat_template(messages, tokenize=False)
    num_images = text.count(processor.image_token)
    inputs = processor(
        text=[text], images=[row["images"][:num_images]] if num_images else None, return_tensors="pt",
        return_mm_token_type_ids=True, return_offsets_mapping=True, return_text_replacement_offsets=True,
    )  # fmt: skip
    offsets = inputs.pop("offset_mapping")[0].tolist()
    inputs.pop("text_replacement_offsets", None)
    expanded = processor.tokenizer.decode(inputs["input_ids"][0])
    logp = model(**inputs).logits[0, :-1].log_softmax(-1)
    logp = logp.gather(-1, inputs["input_ids"][0, 1:, None])[:, 0]
    nats, count = torch.zeros(()), 0
    for answer in answers:
        start = expanded.index(answer + "<|im_end|>")
        end = start + len(answer) + len("<|im_end|>")
        chosen = [number for number, (left, right) in enumerate(offsets) if start <= left and right <= end]
        nats, count = nats + logp[[number - 1 for number in chosen]].sum(), count + len(chosen)
    return nats, count

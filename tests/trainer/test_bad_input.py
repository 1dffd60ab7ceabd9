"""Bad input is an error that names the row or the setting, before the first step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from boresight import GRPOConfig, GRPOTrainer
from boresight.errors import UserError

from .conftest import QUIET, records, vowel_share

GOOD = records(12)


def changed(index: int, **columns: Any) -> list[dict[str, Any]]:
    return [{**row, **columns} if place == index else row for place, row in enumerate(GOOD)]


def two_placeholders() -> list[dict[str, Any]]:
    parts = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "what is it?"}]
    return changed(4, prompt=[{"role": "user", "content": parts}])


CASES: list[tuple[str, Any, str]] = [
    ("missing image", changed(5, image="nowhere.png"), r"row 5, image: .*'nowhere.png'"),
    ("broken image", changed(4, image=b"not an image"), r"row 4, image: the image is broken"),
    (
        "image that ends early",
        changed(4, image={"bytes": GOOD[4]["image"]["bytes"][:60]}),
        r"row 4.*: the image cannot be decoded",
    ),
    (
        "wrong column",
        [{"promt": row["prompt"], "image": row["image"]} for row in GOOD],
        r"row 0 .*\n?.*Did you mean 'prompt'",
    ),
    ("placeholders", two_placeholders(), r"row 4: 1 image.* but 2 image part"),
    (
        "literal placeholder",
        changed(2, prompt=[{"role": "user", "content": "<|image_pad|> what?"}]),
        r"row 2: .*image_pad",
    ),
    ("no rows", [], r"no rows"),
]


@pytest.mark.parametrize(("rows", "message"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_rows(model_folder: Path, tmp_path: Path, rows: Any, message: str) -> None:
    config = GRPOConfig(
        **QUIET, output_dir=str(tmp_path), num_generations=4, num_prompts_per_step=2, max_completion_length=4
    )
    with pytest.raises(UserError, match=message):
        trainer = GRPOTrainer(str(model_folder), vowel_share, config, rows)
        trainer.training_step = lambda *_: pytest.fail("a step was taken")
        trainer.train()


def test_no_such_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no model at"):
        GRPOTrainer(str(tmp_path / "none"), vowel_share, GRPOConfig(**QUIET, output_dir=str(tmp_path)), GOOD)


def test_no_such_reward(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exact_answer_reward"):
        GRPOTrainer(str(model_folder), "exact_anser_reward", GRPOConfig(**QUIET, output_dir=str(tmp_path)), GOOD)

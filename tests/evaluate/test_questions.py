"""A benchmark's messages as a row: with its images, blind, and under another system message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from boresight.data.images import decode
from boresight.errors import ConfigError, DataError
from boresight.evaluate.questions import row_of


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def asked(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "system", "content": "Be kind."}, {"role": "user", "content": list(parts)}]


RED, BLUE = Image.new("RGB", (40, 30), "red"), Image.new("RGB", (8, 9), "blue")


def test_parts_keep_their_order(tmp_path: Path) -> None:
    BLUE.save(tmp_path / "blue.png")
    parts = (
        text("this?"),
        {"type": "image", "url": RED},
        text("or"),
        {"type": "image", "url": str(tmp_path / "blue.png")},
    )
    row = row_of(asked(*parts), 7, "own")
    assert row.index == 7 and row.completions == ()
    assert row.prompt == [
        {"role": "system", "content": [text("Be kind.")]},
        {"role": "user", "content": [text("this?"), {"type": "image"}, text("or"), {"type": "image"}]},
    ]
    assert [decode(image).getpixel((0, 0)) for image in row.images] == [(255, 0, 0), (0, 0, 255)]


def test_a_blind_question_keeps_all_but_what_its_images_show() -> None:
    parts = ({"type": "image", "url": RED}, text("which?"), {"type": "image", "url": BLUE})
    seeing, blind = (row_of(asked(*parts), 0, "own", blind=blind) for blind in (False, True))
    assert blind.prompt == seeing.prompt
    assert [image.size for image in blind.images] == [image.size for image in seeing.images] == [(40, 30), (8, 9)]
    for image in blind.images:
        assert decode(image).getcolors() == [(image.size[0] * image.size[1], (128, 128, 128))]


def test_the_system_message_of_training_takes_the_place_of_the_tasks() -> None:
    (system, user) = row_of(asked(text("which?")), 0, "own", system_prompt="Think.").prompt
    assert system == {"role": "system", "content": [text("Think.")]} and user["content"] == [text("which?")]
    alone = row_of([{"role": "user", "content": "which?"}], 0, "own", system_prompt="Think.")
    assert alone.prompt == [system, user]


@pytest.mark.parametrize("kind", ["video", "audio"])
def test_no_videos(kind: str) -> None:
    with pytest.raises(ConfigError, match=f"task own, question 3 has {kind}, .*: leave the task out of --tasks"):
        row_of(asked({"type": kind, "url": "a.mp4"}), 3, "own")


def test_a_question_that_cannot_be_read_is_named() -> None:
    with pytest.raises(DataError, match="task own, question 3: there is no message"):
        row_of([], 3, "own")
    with pytest.raises(DataError, match=r"task own, question 3, image 1: .*missing"):
        row_of(asked({"type": "image", "url": RED}, {"type": "image", "url": None}), 3, "own")

from __future__ import annotations

import torch

from boresight.report.turns import shown_turns, transcript
from boresight.types import Completion, EncodedImage, ImageSet

IMAGE = EncodedImage(b"", "abc", (8, 8))
NAMES = {"abc": "abc.png"}


def completion(*messages: dict[str, object], num_images: int = 0) -> Completion:
    nothing = torch.empty(0, dtype=torch.long)
    sets = (ImageSet((IMAGE,) * num_images, {}),) if num_images else ()
    return Completion(nothing, nothing.bool(), "", image_sets=sets, messages=messages)


CALL = {"type": "function", "function": {"name": "zoom", "arguments": {"x": 3, "word": "é"}}}
LOOKS = {"role": "assistant", "content": "I look.", "tool_calls": [CALL]}
SHOWS = {"role": "tool", "name": "zoom", "content": [{"type": "text", "text": "here"}, {"type": "image"}]}


def test_turns_with_calls_and_images_in_place() -> None:
    turns = shown_turns(completion(LOOKS, SHOWS, {"role": "assistant", "content": "red"}, num_images=1), NAMES)
    assert turns == [
        {"role": "assistant", "name": "", "text": "I look.", "calls": ['zoom(x=3, word="é")'], "images": []},
        {"role": "tool", "name": "zoom", "text": "here<image>", "calls": [], "images": ["abc.png"]},
        {"role": "assistant", "name": "", "text": "red", "calls": [], "images": []},
    ]
    assert transcript(turns) == 'I look.\n→ zoom(x=3, word="é")\n← zoom: here<image>\nred'


def test_one_turn_has_no_turns_to_show() -> None:
    assert shown_turns(completion({"role": "assistant", "content": "red"}), NAMES) is None
    assert shown_turns(completion(), NAMES) is None
    assert shown_turns(completion(LOOKS), NAMES) is not None

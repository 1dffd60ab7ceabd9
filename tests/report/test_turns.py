from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from boresight.report import CompletionStore, read_completions
from boresight.report.page import write_report
from boresight.report.terminal import print_completions
from boresight.report.turns import shown_turns, transcript
from boresight.types import Completion, EncodedImage, Group, ImageSet, Prompt, Row
from tests.browser import opened
from tests.report.runs import image

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


def test_the_page_shows_calls_results_and_images_in_place(tmp_path: Path, chromium: Any) -> None:
    attack = "<img src=x onerror=\"document.title='owned'\">"
    red, blue = image("red"), image("blue", 32)
    ids = torch.tensor([1, 2, 3])
    results = {
        "role": "tool",
        "name": "zoom",
        "content": [{"type": "image"}, {"type": "text", "text": f"see {attack}"}, {"type": "image"}],
    }
    turns = Completion(
        ids, torch.tensor([True, False, True]), "red", torch.zeros(3), image_sets=(ImageSet((red, blue), {}),),
        messages=(LOOKS, results, {"role": "assistant", "content": "red"}),
    )  # fmt: skip
    alone = Completion(ids, ids > 0, "at once", torch.zeros(3), messages=({"role": "assistant", "content": "at once"},))
    prompt = Prompt(
        Row(0, [{"role": "user", "content": [{"type": "text", "text": "what?"}]}], (), (), {}), ids, ids, {}, ids
    )
    values = torch.tensor([1.0, 0.0])
    CompletionStore(tmp_path).add(1, [Group(prompt, (turns, alone))], rewards={"right": values}, reward=values)
    stored = read_completions(tmp_path)["completion"].to_pylist()
    assert stored == [f'I look.\n→ zoom(x=3, word="é")\n← zoom: <image>see {attack}<image>\nred', "at once"]
    with opened(chromium, write_report(tmp_path)) as seen:
        seen.page.locator("#list[aria-busy=false]").wait_for()
        seen.page.locator(".list .title").first.click()
        first = seen.page.locator(".completion").first
        assert first.locator(".turn").count() == 3
        assert first.locator(".turn.tool img").count() == 2
        assert first.locator(".call").all_inner_texts() == ['zoom(x=3, word="é")']
        assert attack in first.locator(".turn.tool").inner_text()
        assert seen.page.locator(".completion .said").all_inner_texts() == ["at once"]
        assert "null" not in seen.page.locator("#detail").inner_text()
        assert seen.page.title() != "owned"
        assert seen.is_quiet, seen.complaints


def test_the_terminal_shortens_each_turn_by_itself(tmp_path: Path) -> None:
    """So that no long result hides a call."""
    ids = torch.tensor([1, 2, 3])
    long = {"role": "tool", "name": "zoom", "content": [{"type": "text", "text": "so " * 500}]}
    turns = Completion(
        ids, torch.tensor([True, False, True]), "red", torch.zeros(3),
        messages=(LOOKS, long, LOOKS, long, {"role": "assistant", "content": "red"}),
    )  # fmt: skip
    prompt = Prompt(Row(0, "what?", (), (), {}), ids, ids, {}, ids)
    values = torch.tensor([1.0])
    rows = CompletionStore(tmp_path).add(1, [Group(prompt, (turns,))], rewards={"right": values}, reward=values)
    file = io.StringIO()
    print_completions(rows, console=Console(width=100, file=file))
    printed = file.getvalue()
    assert printed.count("→ zoom(x=3") == printed.count("characters] …") == 2
    assert printed.count("← zoom: so so") == 2

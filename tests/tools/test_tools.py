from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
from PIL import Image

from boresight.errors import ConfigError, DataError
from boresight.tools import ImageTools, PixelImageTools, RelativeImageTools, calculator
from boresight.tools.environments import Environments, tool_schema
from boresight.tools.parsing import ToolCall, parsed_text
from boresight.tools.results import Limits, result_of
from boresight.tools.running import Outcome, run_calls
from boresight.types import EncodedImage

# ---- Calls in texts ------------------------------------------------------------------------------------------------------------------

CALL = '<tool_call>\n{"name": "zoom", "arguments": {"x": 3}}\n</tool_call>'
SCHEMA = {
    "function": {
        "name": "zoom",
        "parameters": {"properties": {"x": {"type": "integer"}, "word": {"type": "string"}}},
    }
}


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ("a plain answer", "a plain answer", []),
        (CALL, "", [("zoom", {"x": 3})]),
        (f"I look.\n{CALL}", "I look.", [("zoom", {"x": 3})]),
        (CALL + CALL.replace("3", "4"), "", [("zoom", {"x": 3}), ("zoom", {"x": 4})]),
        ('<tool_call>{"name": "zoom", "arguments": "{\\"x\\": 3}"}</tool_call>', "", [("zoom", {"x": 3})]),
        ('<tool_call>{"name": "look"}</tool_call>', "", [("look", {})]),
        (
            "<tool_call>\n<function=zoom>\n<parameter=x>\n7\n</parameter>\n<parameter=word>\n7\n</parameter>\n</function>\n</tool_call>",
            "",
            [("zoom", {"x": 7, "word": "7"})],
        ),
    ],
)
def test_calls_of_each_form(text: str, content: str, calls: list[Any]) -> None:
    parsed = parsed_text(text, [SCHEMA])
    assert parsed.content == content
    assert [(call.name, call.arguments, call.error) for call in parsed.calls] == [(*call, None) for call in calls]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('<tool_call>{"name": "zoom", </tool_call>', "not valid JSON"),
        ('<tool_call>{"name": "zoom"}', "not closed"),
        ("<tool_call>[1, 2]</tool_call>", "a call is"),
        ('<tool_call>{"name": "zoom", "arguments": [3]}</tool_call>', "no object"),
        ('<tool_call>{"name": "zoom", "arguments": "x=3"}</tool_call>', "arguments of zoom are not valid JSON"),
        ("<tool_call>" + "[" * 100_000 + "</tool_call>", "not valid JSON"),
    ],
)
def test_what_cannot_be_read_is_a_call_with_an_error(text: str, reason: str) -> None:
    (call,) = parsed_text(text).calls
    assert call.name == "unknown"
    assert reason in str(call.error)
    assert "tool_calls" not in parsed_text(text).message


# ---- Running them --------------------------------------------------------------------------------------------------------------------


def fails() -> str:
    raise KeyError("no")


def leaves() -> str:
    raise SystemExit(3)


def hangs() -> str:
    time.sleep(30)
    return "late"


async def sleeps() -> str:
    await asyncio.sleep(30)
    return "late"


async def answers(word: str) -> str:
    return word * 2


def test_every_fault_ends_by_its_rule_and_holds_nobody_up() -> None:
    tools = {tool.__name__: tool for tool in (calculator, fails, leaves, hangs, sleeps, answers)}
    wanted: list[tuple[list[ToolCall], str, str]] = [
        ([ToolCall("calculator", {"expression": "2 * 3"})], "ok", "6"),
        ([ToolCall("answers", {"word": "ab"})], "ok", "abab"),
        ([ToolCall("fails", {})], "raised", "KeyError: 'no'"),
        ([ToolCall("leaves", {})], "raised", "SystemExit: 3"),
        ([ToolCall("hangs", {})], "timed_out", "took longer than 0.5 s"),
        ([ToolCall("sleeps", {})], "timed_out", "took longer than 0.5 s"),
        ([ToolCall("nothing", {})], "unknown_tool", "there is no tool 'nothing'"),
        ([ToolCall("calculator", {"x": 3})], "raised", "TypeError: missing a required argument: 'expression'"),
        ([ToolCall("unknown", {}, error="not JSON")], "unreadable", "not JSON"),
    ]
    start = time.monotonic()
    found = run_calls([(calls, tools) for calls, _, _ in wanted], 0.5)
    assert time.monotonic() - start < 10
    for (outcome,), (_, kind, value) in zip(found, wanted, strict=True):
        assert (outcome.kind, str(outcome.value).startswith(value)) == (kind, True), outcome


def test_after_a_call_that_hangs_the_turn_runs_no_other() -> None:
    ((first, second),) = run_calls(
        [
            (
                [ToolCall("hangs", {}), ToolCall("calculator", {"expression": "1"})],
                {"hangs": hangs, "calculator": calculator},
            )
        ],
        0.2,
    )
    assert (first.kind, second.kind) == ("timed_out", "timed_out")
    assert "not run" in second.value


# ---- Results -------------------------------------------------------------------------------------------------------------------------

IMAGE = Image.new("RGB", (8, 8))


def load(value: Any) -> EncodedImage:
    if not isinstance(value, Image.Image):
        raise ValueError("no image")
    return EncodedImage(b"", f"{value.size}", value.size)


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("unprintable")


@pytest.mark.parametrize(
    ("value", "kind", "text", "num_images"),
    [
        ("6", "ok", "6", 0),
        (None, "ok", "None", 0),
        ([1, 2], "ok", "[1, 2]", 0),
        ([], "ok", "[]", 0),
        (IMAGE, "ok", "", 1),
        ([{"type": "image", "image": IMAGE}, {"type": "text", "text": "here"}], "ok", "here", 1),
        ([{"type": "image", "image": IMAGE}] * 10, "refused", "the result has 10 images, and there is room for 2", 0),
        ([{"type": "image", "image": b"broken"}], "refused", "no image", 0),
        ([{"type": "image"}], "refused", "no image", 0),
        ("x" * 10_000_000, "refused", "the result has 10,000,000 characters, and 100 are allowed", 0),
        (Unprintable(), "refused", "unprintable", 0),
    ],
)
def test_results_are_texts_and_images_or_an_error(value: Any, kind: str, text: str, num_images: int) -> None:
    result = result_of(Outcome(ToolCall("zoom", {}), "ok", value), load, Limits(100, 2))
    assert result.outcome.kind == kind
    assert len(result.images) == num_images
    assert text in "".join(part.get("text", "") for part in result.parts)
    assert sum(part["type"] == "image" for part in result.parts) == num_images
    assert json.dumps(result.message)


# ---- Environments --------------------------------------------------------------------------------------------------------------------


class Counter:
    """Counts."""

    made = 0

    def __init__(self) -> None:
        Counter.made += 1
        self.count = 0

    def reset(self, start: int = 0, **columns: Any) -> str:
        self.count = start
        return f"It starts at {start}."

    def add(self, amount: int) -> str:
        """Add to the count.

        Args:
            amount: How much.
        """
        self.count += amount
        return str(self.count)

    def get_reward(self) -> float:
        return float(self.count)

    def _hidden(self) -> None: ...


def test_methods_are_tools_and_instances_are_reused() -> None:
    before = Counter.made
    supply = Environments([calculator], Counter)
    assert [schema["function"]["name"] for schema in supply.schemas[None]] == ["calculator", "add"]
    first, second = supply.take({}, 0), supply.take({}, 0)
    assert first is not second
    supply.give_back([first, second], [{}, {}])
    assert {id(supply.take({}, 0)), id(supply.take({}, 0))} == {id(first), id(second)}
    assert Counter.made - before == 2
    first.reset(start=4)
    assert supply.tools_of(first)["add"](3) == "7"
    (reward,) = supply.rewards
    assert reward.__name__ == "Counter"
    assert reward(environments=[first, object()]) == [7.0, None]


def test_rows_choose_among_several_environments() -> None:
    supply = Environments(None, {"counter": Counter, "image": ImageTools})
    assert type(supply.take({"environment": "image"}, 3)) is ImageTools
    with pytest.raises(DataError, match="row 3: environment='chess' is not one of 'counter', 'image'"):
        supply.take({"environment": "chess"}, 3)


def test_what_is_no_tool_is_refused() -> None:
    def bare(x):
        return x

    with pytest.raises(ConfigError, match="'bare' cannot be described"):
        Environments([bare], None)
    with pytest.raises(ConfigError, match="no method reset"):
        Environments(None, object)


# ---- Ready tools ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "box"),
    [(ImageTools, (500, 0, 1000, 500)), (PixelImageTools, (50, 0, 100, 20)), (RelativeImageTools, (0.5, 0, 1, 0.5))],
)
def test_zoom_shows_the_same_region_in_every_unit(kind: type[ImageTools], box: tuple[float, ...]) -> None:
    image = Image.new("RGB", (100, 40), "white")
    image.paste((0, 0, 255), (50, 0, 100, 20))
    tools = kind()
    tools.reset(images=[image])
    (part,) = tools.zoom(*box)
    assert part["image"].getcolors() == [(part["image"].width * part["image"].height, (0, 0, 255))]
    assert min(part["image"].size) == 224
    (part,) = tools.mark(*box)
    assert part["image"].size == (100, 40)
    assert part["image"].getpixel((50, 0)) == (255, 0, 0)
    assert image.getpixel((50, 0)) == (0, 0, 255)
    with pytest.raises(ValueError, match="there is no image 2"):
        tools.zoom(*box, image=2)
    with pytest.raises(ValueError, match="the region is empty"):
        tools.zoom(box[2], box[1], box[0], box[3])
    assert tool_schema(tools.zoom)["function"]["parameters"]["required"] == ["left", "top", "right", "bottom"]


@pytest.mark.parametrize(
    ("expression", "value"),
    [("2 * (3 + 4)", "14"), ("-7 // 2", "-4"), ("2 ** 0.5", "1.41421356237"), ("sqrt(16) + 1", "5"), ("1e3 % 7", "6")],
)
def test_calculator(expression: str, value: str) -> None:
    assert calculator(expression) == value


@pytest.mark.parametrize(
    "expression",
    ["9 ** 9 ** 9", "__import__('os')", "(-1) ** 0.5", "'a' * 9", "1 / 0", "x", "sqrt(1, 2)", "1" * 501, "2 +"],
)
def test_calculator_refuses(expression: str) -> None:
    with pytest.raises((ValueError, ArithmeticError, SyntaxError)):
        calculator(expression)

"""Feeds the row reader and the image opener with damaged rows and images, and lists what is raised and does not name its row.

    make fuzz                                  # 20 minutes of both
    python -m tests.data.fuzz --minutes 20 --seed 0
    python -m tests.data.fuzz --case rows/0/12345   # one case again

A case follows from its number and the seed alone. What is allowed: the row is read, or a `DataError` that begins with its name. What is
found: any other exception, an image that takes more than `SLOW_S` seconds, and an end of the process (the last case is in the log).
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from types import FrameType
from typing import Any

from PIL import Image

from boresight.data import read_row
from boresight.data.images import decode, load_image
from boresight.errors import DataError
from tests.data.messages import IMAGE, assistant, text, user

WHERE = 7
"""The number of every row."""
SLOW_S = 10


class SlowError(Exception):
    """A case that does not end in time."""


# ---- Rows ----------------------------------------------------------------------------------------------------------------------------


def _png(size: tuple[int, int] = (8, 6)) -> bytes:
    stream = BytesIO()
    Image.new("RGB", size, (10, 200, 30)).save(stream, "PNG")
    return stream.getvalue()


ASK, BLUE, RED = [user("what color?")], [assistant("blue")], [assistant("red")]
CALL = {"type": "function", "function": {"name": "crop", "arguments": {"x": 1}}}
WHOLE_ROWS: list[dict[str, Any]] = [
    {"prompt": ASK, "image": _png(), "solution": "4"},
    {"prompt": [user([IMAGE, text("what?"), IMAGE])], "images": [_png(), _png((3, 9))], "completion": BLUE},
    {"messages": [{"role": "system", "content": "be short"}, *ASK, *BLUE], "image": None},
    {"prompt": ASK, "chosen": BLUE, "rejected": RED, "image": {"bytes": _png(), "path": None}},
    {"chosen": ASK + BLUE, "rejected": ASK + RED},
    {"prompt": "what <image>?", "completion": "blue", "images": [_png()]},
    {"text": "all of it"},
    {"conversations": [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "blue"}], "image": _png()},
    {"texts": [{"user": "what?", "assistant": "blue", "source": "x"}], "images": [_png()]},
    {"problem": "what?", "solution": "<answer> 4 </answer>", "image": _png()},
    {"question": "what?", "chosen": "blue", "rejected": "red", "image": _png(), "idx": 3},
    {"messages": [user([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]), *BLUE]},
    {"messages": [*ASK, {"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "tool", "content": "1"}, *BLUE],
     "tools": json.dumps([CALL]), "chat_template_kwargs": {"enable_thinking": False}},
    {"prompt": json.dumps(ASK), "completion": json.dumps(BLUE), "images": json.dumps(["a.png"])},
]  # fmt: skip
NAMES = (
    "prompt", "completion", "chosen", "rejected", "messages", "text", "texts", "image", "images", "conversations", "tools", "videos",
    "chat_template_kwargs", "role", "content", "type", "from", "value", "solution", "problem", "question", "url", "image_url", "bytes",
    "path", "index", "name", "arguments", "tool_calls", "function", "", "\ud800", "a\0b",
)  # fmt: skip

ODD_TEXTS = (
    "", " ", "\0", "\ud800", "x" * 5000, "<image>", "<video>", "user", "[]", "{}", '[{"role": 1}]', "null", "NaN", "é\u202e", "[" * 2000,
    "file:///etc/passwd", "http://x/a.png", "/dev/zero", "~nobody/x", "data:image/png;base64,!",
)  # fmt: skip


def odd_value(chance: random.Random, depth: int = 0) -> Any:
    """A value that a table may hold and no row expects."""
    leaves: list[Callable[[], Any]] = [
        lambda: None, lambda: chance.choice([True, False]), lambda: chance.choice([0, -1, 7, 10**30, 2**63]),
        lambda: chance.choice([0.5, float("nan"), float("inf"), -0.0]),
        lambda: chance.choice(ODD_TEXTS),
        lambda: chance.choice([b"", b"\x89PNG\r\n\x1a\n", _png(), bytes(50)]),
        lambda: Image.new(chance.choice(["RGB", "L", "P", "F", "I;16", "CMYK"]), chance.choice([(1, 1), (0, 3), (1, 900)])),
        lambda: object(), lambda: {1, 2}, lambda: range(3), lambda: Path("x.png"),
    ]  # fmt: skip
    if depth > 3 or chance.random() < 0.7:
        return chance.choice(leaves)()
    if chance.random() < 0.5:
        return [odd_value(chance, depth + 1) for _ in range(chance.randint(0, 3))]
    keys: list[Any] = [*NAMES, 1, None, (1, 2)]
    return {chance.choice(keys): odd_value(chance, depth + 1) for _ in range(chance.randint(0, 3))}


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside a record."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


def damaged_row(chance: random.Random) -> Any:
    """A row with one to four changes: a value replaced, dropped, doubled, moved under another name, or added."""
    record: Any = copy.deepcopy(chance.choice(WHOLE_ROWS))
    for _ in range(chance.randint(1, 4)):
        found = [*places(record)]
        if not found:
            break
        *way, last = chance.choice(found)
        holder = record
        for key in way:
            holder = holder[key]
        match chance.randint(0, 5):
            case 0 | 1:
                holder[last] = odd_value(chance)
            case 2:
                del holder[last]
            case 3 if isinstance(holder, list):
                holder.insert(0, copy.deepcopy(holder[last]))
            case 3 | 4 if isinstance(holder, dict):
                holder[chance.choice(NAMES)] = holder.pop(last)
            case _:
                record[chance.choice(NAMES)] = odd_value(chance)
    return record


def try_row(chance: random.Random) -> None:
    read_row(damaged_row(chance), WHERE)


# ---- Images --------------------------------------------------------------------------------------------------------------------------


def whole_images() -> dict[str, bytes]:
    """A small image in every format that Pillow can write here."""
    Image.init()
    noise = Image.effect_noise((24, 18), 60)
    found: dict[str, bytes] = {}
    for name in sorted(Image.SAVE):
        for mode in ("RGB", "L", "P", "1", "RGBA", "CMYK", "I;16", "F"):
            stream = BytesIO()
            try:
                noise.convert(mode).save(stream, name)
            except Exception:  # a format that does not have this mode, or that another program writes
                continue
            found[f"{name} {mode}"] = stream.getvalue()
    return {name: data for name, data in found.items() if data}


def damaged_image(chance: random.Random, whole: list[bytes]) -> bytes:
    """Bytes of an image with some of them flipped, zeroed, cut out, repeated, moved, or put behind another's header."""
    data = bytearray(chance.choice(whole))
    for _ in range(chance.randint(1, 6)):
        if not data:
            break
        # The header decides more than the pixels do.
        at = chance.randrange(len(data)) if chance.random() < 0.5 else chance.randrange(min(len(data), 128))
        size = chance.choice([1, 1, 2, 4, 8, 64])
        match chance.randint(0, 6):
            case 0 | 1:
                data[at : at + size] = bytes(chance.randrange(256) for _ in range(min(size, len(data) - at)))
            case 2:
                data[at : at + size] = bytes([chance.choice([0, 255, 127])]) * min(size, len(data) - at)
            case 3:
                del data[at : at + size]
            case 4:
                data[at:at] = data[at : at + size] * chance.choice([1, 3, 50])
            case 5:
                del data[at:]
            case _:
                other = chance.choice(whole)
                data[: size * 2] = other[: size * 2]
    return bytes(data)


def try_image(chance: random.Random, whole: list[bytes]) -> None:
    where = f"row {WHERE}, image 0"
    decode(load_image(damaged_image(chance, whole), where=where), where=where)


# ---- Cases ---------------------------------------------------------------------------------------------------------------------------


def unnamed(attempt: Callable[[random.Random], None], name: str) -> str | None:
    """What a case raised that does not name its row; None if it was read, or refused by name."""
    try:
        attempt(random.Random(name))
    except DataError as error:
        return None if str(error).startswith(f"row {WHERE}") else f"DataError without its row: {error}"[:300]
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {str(error)[:200]} ({Path(last.filename).name}:{last.lineno})"
    return None


def targets() -> dict[str, Callable[[random.Random], None]]:
    images = [*whole_images().values()]
    return {"rows": try_row, "images": lambda chance: try_image(chance, images)}


def run(minutes: float, seed: int, log: Path | None = None) -> tuple[Counter[str], dict[str, str]]:
    """As many cases of both targets as fit in the time: their counts, and the case of every finding."""
    counts: Counter[str] = Counter()
    found: dict[str, str] = {}
    tried, until, number = targets(), time.monotonic() + 60 * minutes, 0
    while time.monotonic() < until:
        number += 1
        for target, attempt in tried.items():
            name = f"{target}/{seed}/{number}"
            if log is not None:
                log.write_text(name)  # what a crash of the process leaves
            signal.alarm(SLOW_S)
            wrong = unnamed(attempt, name)
            signal.alarm(0)
            counts[target] += 1
            if wrong is not None and found.setdefault(wrong, name) == name:
                print(f"{name}: {wrong}", flush=True)
    return counts, found


def stop_slow(number: int, frame: FrameType | None) -> None:
    raise SlowError(f"takes more than {SLOW_S} s")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, help="a file that holds the name of the case under way")
    parser.add_argument("--case", help="run one case again, with its traceback")
    options = parser.parse_args()
    signal.signal(signal.SIGALRM, stop_slow)
    if options.case:
        targets()[options.case.partition("/")[0]](random.Random(options.case))
        return 0
    counts, found = run(options.minutes, options.seed, options.log)
    print(f"{dict(counts)}: {len(found)} kinds of error without their row")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

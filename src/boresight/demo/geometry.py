"""Geometry: figures of two tangents with questions about their angles, made on the spot, with exact answers.

From P outside a circle two tangents touch it at A and B. All angles follow from one, APO: a tangent is at right angles to the radius
at its point, so AOP = 90° − APO, and both halves of the figure are alike, so APB and AOB are twice APO and AOP.

Questions come in *blocks* of four with the same words and the same four options: each option is the answer to one of them. Of every
option its usual slip is an option too (180° less it, or 90° less it, as when a half or a supplement is forgotten). So neither the
letters nor the numbers favour an answer: who does not look gets one in four.
"""

from __future__ import annotations

import io
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from datasets import Dataset, Features, Image, Value

from boresight.demo.easy_vqa import MESSAGES, Split
from boresight.demo.geometry_figure import SEGMENTS, draw, tangent_figure
from boresight.errors import DataError

ANGLES = {"APO": (0, 1), "AOP": (90, -1), "APB": (0, 2), "AOB": (180, -2), "OAB": (0, 1), "PAB": (90, -1)}
"""Each angle in degrees is the first number plus the second times APO. OAP is left out: it is always 90°."""

BASES = {"APO": "APO", "APB": "APO", "OAB": "APO", "AOP": "AOP", "AOB": "AOP", "PAB": "AOP"}
"""The angle of the right triangle OAP that each follows from: its double, or the same."""
DOUBLES = ("APB", "AOB")

KINDS = (
    ("APO", "AOB"),
    ("AOB", "APO"),
    ("APB", "AOB"),
    ("AOB", "APB"),
    ("APO", "AOP"),
    ("AOP", "APB"),
    ("APB", "OAB"),
    ("OAB", "AOB"),
    ("AOB", "PAB"),
)
"""The angle that is given, and the one that is asked for."""

LETTERS = "ABCD"
HALF_ANGLES = range(20, 43)
"""Values of APO that a block draws two from, and 90° less either: below 20° the circle becomes small, beside 45° options lie too close."""
LEAST_APART = 4

FEATURES = Features(
    {
        "prompt": MESSAGES,
        "image": Image(decode=False),
        "solution": Value("string"),
        "kind": Value("string"),
        "working": Value("string"),
    }
)


@dataclass(frozen=True, slots=True)
class Problem:
    """One question about one figure."""

    given: str
    asked: str
    half_angle: int
    """APO in degrees."""
    options: tuple[int, ...]
    """In the order of their letters, in degrees."""
    turn: float
    """The direction from O to P in degrees."""

    def degrees(self, angle: str) -> int:
        """The true size of an angle."""
        return degrees(angle, self.half_angle)

    @property
    def letter(self) -> str:
        return LETTERS[self.options.index(self.degrees(self.asked))]

    @property
    def working(self) -> str:
        """How the answer follows."""
        have, want = BASES[self.given], BASES[self.asked]
        steps = [f"{self.given} = {self.degrees(self.given)}°"]
        if self.given != have:
            relation = "half of it" if self.given in DOUBLES else "the same"
            steps.append(f"{have} is {relation}, {self.degrees(have)}°")
        if have != want:
            steps.append(f"OAP is a right angle, so {want} = 90° − {self.degrees(have)}° = {self.degrees(want)}°")
        if self.asked != want:
            relation = "twice that" if self.asked in DOUBLES else "the same"
            steps.append(f"{self.asked} is {relation}, {self.degrees(self.asked)}°")
        return "; ".join(steps)

    def question(self, *, in_figure: bool) -> str:
        """As it is put to a model, with the given angle in words or left to the figure."""
        given = "" if in_figure else f"angle {self.given} is {self.degrees(self.given)}°. "
        return _question(f"{given[:1].upper()}{given[1:]}What is angle {self.asked}?", self.options)

    def png(self, size: int, *, in_figure: bool) -> bytes:
        """The figure, with the given angle written at its vertex or not."""
        marked = (self.given, f"{self.degrees(self.given)}°") if in_figure else None
        return figure_png(self.half_angle, size, self.turn, (self.given, self.asked), marked)


def load_geometry(
    split: Split = "train",
    *,
    num_rows: int = 1000,
    seed: int = 0,
    given: Literal["figure", "text"] = "figure",
    size: int = 224,
) -> Dataset:
    """Questions about tangents with four options, as rows that trainers take.

    The kinds of `KINDS` take turns. Whole blocks of four make every letter the answer equally often; where `num_rows` is no multiple of
    four, the last block is there in part.

    Args:
        split: train and test figures come from separate random generators.
        num_rows: how many.
        seed: of all random choices.
        given: where the given angle is written. In the figure, it has to be read from the image: the four questions of a block have the
            same words, so `blind_accuracy` is a quarter. In the text, as in school books, the sum can be done without the figure.
        size: the square images' side in pixels.

    Returns:
        Columns `prompt` (a conversation of one turn, the image before the question), `image` (PNG bytes, not decoded),
        `solution` (the letter), `kind` (such as ``APO → AOB``) and `working` (how the answer follows).

    Raises:
        DataError: fewer rows than one, or images too small to read.
    """
    if num_rows < 1:
        raise DataError(f"num_rows={num_rows}: it must be at least 1.")
    if size < 96:
        raise DataError(f"size={size}: letters cannot be read below 96 pixels.")
    chooser = random.Random(f"geometry {split} {seed}")
    in_figure = given == "figure"
    chosen = problems(num_rows, chooser)
    return Dataset.from_list(
        [
            row(
                problem.question(in_figure=in_figure),
                problem.png(size, in_figure=in_figure),
                name=f"{split}/{place}.png",
                solution=problem.letter,
                kind=f"{problem.given} → {problem.asked}",
                working=problem.working,
            )
            for place, problem in enumerate(chosen)
        ],
        features=FEATURES,
    )


def problems(num_rows: int, chooser: random.Random) -> list[Problem]:
    """Whole blocks, the kinds in turn, and a part of one more where that is needed; in random order."""
    blocks = endless_blocks(chooser)
    chosen: list[Problem] = []
    while len(chosen) < num_rows:
        chosen += next(blocks)[: num_rows - len(chosen)]
    chooser.shuffle(chosen)
    return chosen


def endless_blocks(chooser: random.Random) -> Iterator[list[Problem]]:
    """Blocks of four: one wording, each of whose options is the answer once."""
    while True:
        for given, asked in chooser.sample(KINDS, len(KINDS)):
            one, other = 0, 0
            while abs(one - other) < LEAST_APART:
                one, other = chooser.choices(HALF_ANGLES, k=2)
            half_angles = [one, 90 - one, other, 90 - other]
            chooser.shuffle(half_angles)
            options = tuple(degrees(asked, half_angle) for half_angle in half_angles)
            block = [
                Problem(given, asked, half_angle, options, turn=chooser.uniform(0, 360)) for half_angle in half_angles
            ]
            chooser.shuffle(block)  # where only a part is taken, no letter comes first
            yield block


def degrees(angle: str, half_angle: int) -> int:
    """The size of an angle where APO is `half_angle`."""
    start, times = ANGLES[angle]
    return start + times * half_angle


def sample_question() -> Dataset:
    """One question as a school book puts it: "if angle APO is 25.0°, what is angle AOB?" """
    return Dataset.from_list(
        [
            row(
                _question("If angle APO is 25.0°, what is angle AOB?", (140, 130, 120, 110)),
                figure_png(25, 448, 0, ("APO", "AOB")),
                name="tangents.png",
                solution="B",
                kind="APO → AOB",
                working="APO = 25°; OAP is a right angle, so AOP = 90° − 25° = 65°; AOB is twice that, 130°",
            )
        ],
        features=FEATURES,
    )


def demonstrations(dataset: Dataset) -> Dataset:
    """The rows with a `completion` for SFT: the working, and then the letter."""

    def demonstrated(row: dict[str, Any]) -> dict[str, Any]:
        text = f"<think>{row['working']}</think><answer>{row['solution']}</answer>"
        return {"completion": [{"role": "assistant", "content": [{"type": "text", "text": text}]}]}

    return dataset.map(demonstrated, features=Features(dataset.features | {"completion": MESSAGES}))


def row(question: str, png: bytes, *, name: str, **columns: str) -> dict[str, Any]:
    """A record of the data set."""
    content = [{"type": "image"}, {"type": "text", "text": question}]
    return {"prompt": [{"role": "user", "content": content}], "image": {"bytes": png, "path": name}, **columns}


def figure_png(
    half_angle: float, size: int, turn: float, angles: Sequence[str], marked: tuple[str, str] | None = None
) -> bytes:
    """The figure as a PNG, with the sides of the angles that a question names."""
    sides = {frozenset(angle[start : start + 2]) for angle in angles for start in (0, 1)}
    # Radii and tangents belong to the figure; OP and AB only where an angle has them as a side.
    lines = tuple(line for line in SEGMENTS if line not in ("OP", "AB") or frozenset(line) in sides)
    stream = io.BytesIO()
    draw(tangent_figure(half_angle, size=size, turn=turn, lines=lines, marked=marked)).save(
        stream, "PNG", optimize=True
    )
    return stream.getvalue()


def _question(asked: str, options: Sequence[int]) -> str:
    listed = "  ".join(f"{letter}: {option}°" for letter, option in zip(LETTERS, options, strict=True))
    return f"PA and PB touch the circle with centre O at A and B. {asked}\n{listed}\nAnswer with the letter."

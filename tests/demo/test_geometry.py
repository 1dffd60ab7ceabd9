"""Figures that are true, questions whose answers are right, and sets in which only looking helps."""

from __future__ import annotations

import io
import math
import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from boresight.data.sources import RowDataset, check_rows, load_rows
from boresight.demo.easy_vqa import blind_accuracy, question_text
from boresight.demo.geometry import (
    ANGLES,
    KINDS,
    LETTERS,
    demonstrations,
    endless_blocks,
    load_geometry,
    problems,
    sample_question,
)
from boresight.demo.geometry_figure import SEGMENTS, Figure, draw, tangent_figure
from boresight.errors import DataError
from boresight.rewards import answer_format_reward, choice_letter_reward

SAMPLE = Path(__file__).parents[2] / "examples" / "data" / "geometry"
CASES = [(half, turn) for half in (20, 25, 41, 47, 70) for turn in (0, 77, 199.5, 310)]


def darkness(figure: Figure, points: list[tuple[float, float]]) -> np.ndarray:
    """The darkest pixel within one pixel of each point, 0 white and 1 black."""
    pixels = 1 - np.asarray(draw(figure).convert("L"), dtype=float) / 255
    near = [(dx, dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1)]
    return np.array([max(pixels[round(y) + dy, round(x) + dx] for dx, dy in near) for x, y in points])


def between(figure: Figure, line: str) -> list[tuple[float, float]]:
    """Points along a segment."""
    (ax, ay), (bx, by) = figure.points[line[0]], figure.points[line[1]]
    return [(ax + t * (bx - ax), ay + t * (by - ay)) for t in np.linspace(0.3, 0.7, 9)]


@pytest.mark.parametrize(("half_angle", "turn"), CASES)
def test_points_satisfy_every_angle(half_angle: float, turn: float) -> None:
    """Also once they are rounded to pixels, to within what a pixel can turn the shortest side."""
    figure = tangent_figure(half_angle, size=224, turn=turn)
    assert figure.angle("OAP") == pytest.approx(90)
    assert figure.angle("PBO") == pytest.approx(90)
    for name, (start, times) in ANGLES.items():
        assert figure.angle(name) == pytest.approx(start + times * half_angle), name
    rounded = Figure(224, figure.radius, {name: (round(x), round(y)) for name, (x, y) in figure.points.items()}, ())
    shortest = min(math.dist(figure.points[one], figure.points[other]) for one, other in SEGMENTS)
    for name, (start, times) in ANGLES.items():
        assert abs(rounded.angle(name) - start - times * half_angle) <= 2 * math.degrees(1 / shortest), name
    assert all(0.1 * 224 < x < 0.9 * 224 and 0.1 * 224 < y < 0.9 * 224 for x, y in figure.points.values())


@pytest.mark.parametrize(("half_angle", "turn"), CASES)
def test_the_image_shows_the_points(half_angle: float, turn: float) -> None:
    """Ink along the lines and the circle, and paper beside them: a figure turned by a few degrees would fail."""
    figure = tangent_figure(half_angle, size=224, turn=turn, lines=SEGMENTS)
    for line in SEGMENTS:
        assert (darkness(figure, between(figure, line)) > 0.6).all(), line
    ox, oy = figure.points["O"]
    around = [
        (ox + figure.radius * math.cos(t), oy + figure.radius * math.sin(t)) for t in np.linspace(0, 2 * math.pi, 90)
    ]
    assert (darkness(figure, around) > 0.6).all()
    bare = tangent_figure(half_angle, size=224, turn=turn)
    for point in "AB":
        direction = math.atan2(bare.points[point][1] - oy, bare.points[point][0] - ox) + math.radians(15)
        beside = (ox + bare.radius * math.cos(direction), oy + bare.radius * math.sin(direction))
        off = Figure(224, bare.radius, {**bare.points, point: beside}, bare.lines)
        assert (darkness(bare, between(bare, f"O{point}")) > 0.6).all()
        assert (darkness(bare, between(off, f"O{point}")) < 0.4).mean() > 0.7


def test_only_sides_of_the_angles_in_question_are_drawn() -> None:
    """OP would give away where the middle is; it stands where a given or asked angle has it as a side."""
    figure = tangent_figure(30, size=224, turn=40)
    assert (darkness(figure, between(figure, "OP"))[:3] < 0.3).all()
    assert (darkness(tangent_figure(30, size=224, turn=40, lines=SEGMENTS), between(figure, "OP"))[:3] > 0.6).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_answer_follows_from_what_is_given(kind: tuple[str, str]) -> None:
    """Worked a second way: from the given angle back to APO, and on to the asked one by the figure itself."""
    given, asked = kind
    for problem in problems(400, random.Random(3)):
        if (problem.given, problem.asked) != kind:
            continue
        start, times = ANGLES[given]
        half_angle = (problem.degrees(given) - start) / times
        figure = tangent_figure(half_angle, size=300, turn=problem.turn)
        right = problem.options[LETTERS.index(problem.letter)]
        assert figure.angle(asked) == pytest.approx(right)
        assert len(set(problem.options)) == 4 and all(0 < option < 180 for option in problem.options)
        whole = 180 if asked in ("AOB", "APB") else 90
        assert {whole - option for option in problem.options} == set(problem.options)  # each with its usual slip
        assert problem.working.endswith(f"{right}°")
        assert f"{given} = {problem.degrees(given)}°" in problem.working


def test_a_block_answers_each_of_its_options_once() -> None:
    blocks = endless_blocks(random.Random(7))
    kinds: Counter[tuple[str, str]] = Counter()
    for _, block in zip(range(18), blocks, strict=False):
        assert sorted(problem.letter for problem in block) == list(LETTERS)
        assert len({problem.question(in_figure=True) for problem in block}) == 1
        assert len({problem.question(in_figure=False) for problem in block}) == 4
        kinds[block[0].given, block[0].asked] += 1
    assert kinds == dict.fromkeys(KINDS, 2)


def test_who_does_not_look_is_right_one_time_in_four() -> None:
    """Neither the letters nor the wordings favour an answer, though whoever guesses may know the whole set by heart."""
    rows = load_geometry("test", num_rows=72, seed=2, size=96)
    assert Counter(rows["solution"]) == dict.fromkeys(LETTERS, 18)
    assert blind_accuracy(rows) == 0.25
    assert set(Counter(rows["kind"]).values()) == {8}
    assert len({image["bytes"] for image in rows["image"]}) == 72
    assert not any(re.search(r"is \d+", question_text(prompt)) for prompt in rows["prompt"])


def test_in_the_text_who_can_do_the_sum_needs_no_figure() -> None:
    rows = load_geometry("test", num_rows=8, seed=2, size=96, given="text")
    assert blind_accuracy(rows) == 1.0
    assert all(re.search(r"[AOPB]{3} is \d+°\. What is angle", question_text(prompt)) for prompt in rows["prompt"])


@pytest.mark.parametrize("num_rows", [1, 3, 4, 10])
def test_num_rows_is_exact_and_letters_stay_even(num_rows: int) -> None:
    letters = Counter(load_geometry(num_rows=num_rows, size=96)["solution"])
    assert letters.total() == num_rows
    assert max(letters.values()) - min(letters[letter] for letter in LETTERS) <= 1


def test_the_seed_draws_and_splits_share_no_figure() -> None:
    first, again, other = (load_geometry(num_rows=6, seed=seed, size=96).to_list() for seed in (3, 3, 4))
    assert first == again != other
    held_out = load_geometry("test", num_rows=6, seed=3, size=96).to_list()
    assert not {row["image"]["bytes"] for row in first} & {row["image"]["bytes"] for row in held_out}


@pytest.mark.parametrize(("options", "message"), [({"num_rows": 0}, "at least 1"), ({"size": 64}, "96 pixels")])
def test_what_cannot_be_drawn(options: dict[str, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_geometry(**options)  # pyright: ignore[reportArgumentType]


def test_rows_are_fit_for_training() -> None:
    rows = demonstrations(load_geometry(num_rows=5, size=96))
    assert check_rows(rows) == 5
    for row in RowDataset(rows):  # pyright: ignore[reportGeneralTypeIssues]
        (completion,) = row.completions
        assert choice_letter_reward([completion], [row.columns["solution"]]) == [1.0]
        assert answer_format_reward([completion]) == [1.0]
        assert len(row.images) == 1


def test_the_sample_in_examples_is_the_one_that_is_built_in() -> None:
    """examples/data/geometry, read as any folder of images is."""
    (built_in,) = sample_question().to_list()
    stored = load_rows(SAMPLE)
    (row,) = RowDataset(stored)  # pyright: ignore[reportGeneralTypeIssues, reportArgumentType]
    assert row.columns["solution"] == built_in["solution"] == "B"
    assert row.prompt[0]["content"] == [{"type": "image"}, {"type": "text", "text": question_text(built_in["prompt"])}]  # pyright: ignore[reportArgumentType, reportIndexIssue]
    assert "If angle APO is 25.0°, what is angle AOB?\nA: 140°  B: 130°  C: 120°  D: 110°" in question_text(
        built_in["prompt"]
    )
    ours = np.asarray(Image.open(io.BytesIO(built_in["image"]["bytes"])))
    theirs = np.asarray(Image.open(SAMPLE / "tangents.png"))
    assert (ours == theirs).all()

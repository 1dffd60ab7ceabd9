"""Any supported way to write an answer equals its plain form, and no way makes two answers equal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boresight.rewards import (
    accuracy_reward,
    choice_letter_reward,
    exact_answer_reward,
    get_iou_reward,
    numeric_answer_reward,
)
from boresight.rewards.grounding import Coordinates, scale_to_original

Rewrite = Callable[[str], str]


def tagged(answer: str) -> str:
    return f"<think>so</think>\n<answer>{answer}</answer>"


def one_of(*ways: Rewrite) -> st.SearchStrategy[Rewrite]:
    return st.sampled_from(ways)


AROUND = one_of(
    lambda text: text,
    lambda text: f"${text}$",
    lambda text: rf"\({text}\)",
    lambda text: rf"\boxed{{{text}}}",
    lambda text: rf"$\boxed{{{text}}}$",
    lambda text: f"**{text}**",
    lambda text: f"  {text}.\n",
)
UNITS = one_of(
    lambda text: text,
    lambda text: f"{text} cm",
    lambda text: f"{text}cm",
    lambda text: rf"{text}\text{{ cm}}",
    lambda text: rf"{text} \mathrm{{cm}}^2",
    lambda text: rf"{text}^\circ",
    lambda text: f"{text}°",
    lambda text: f"{text} apples",
)
SIGNS = one_of(lambda text: text, lambda text: text.replace("-", "−"), lambda text: text.replace("-", "–"))
THOUSANDS = one_of(
    *(lambda text, mark=mark: text.replace(",", mark) for mark in ("", ",", "{,}", r"\,", "\u202f", "'"))
)

DECIMALS = st.decimals(-(10**7), 10**7, places=3, allow_nan=False)


@pytest.mark.parametrize("reward", [numeric_answer_reward, accuracy_reward])
@given(DECIMALS, THOUSANDS, SIGNS, UNITS, AROUND)
@settings(deadline=None, max_examples=150)
def test_numbers(reward: Any, number: Any, thousands: Rewrite, sign: Rewrite, unit: Rewrite, around: Rewrite) -> None:
    plain, written = f"{number:f}", around(unit(sign(thousands(f"{number:,f}"))))
    other = f"{number + 1:f}"
    assert reward([tagged(written), tagged(plain), tagged(other)], [plain] * 3) == [1, 1, 0], written
    assert reward([tagged(written), tagged(plain), tagged(other)], [written] * 3) == [1, 1, 0], written


EUROPEAN = one_of(
    lambda text: text.translate({ord(","): ".", ord("."): ","}),
    *(lambda text, mark=mark: text.replace(",", mark).replace(".", ",") for mark in ("", " ", "\u202f", "'", r"\,")),
)


@given(st.decimals(-(10**7), 10**7, places=2, allow_nan=False), EUROPEAN, SIGNS, UNITS, AROUND)
@settings(deadline=None, max_examples=150)
def test_decimal_commas(number: Any, european: Rewrite, sign: Rewrite, unit: Rewrite, around: Rewrite) -> None:
    written, plain, other = around(unit(sign(european(f"{number:,f}")))), f"{number:f}", f"{number + 1:f}"
    assert numeric_answer_reward([tagged(written), tagged(plain), tagged(other)], [plain] * 3) == [1, 1, 0], written
    assert numeric_answer_reward([tagged(written), tagged(plain), tagged(other)], [written] * 3) == [1, 1, 0], written


def in_words(number: int, joined: str) -> str:
    """A number from 0 to 999,999 in English."""
    ones = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
    ones += " sixteen seventeen eighteen nineteen"
    tens = "twenty thirty forty fifty sixty seventy eighty ninety"
    if number < 20:
        return ones.split()[number]
    if number < 100:
        word = tens.split()[number // 10 - 2]
        return word if number % 10 == 0 else f"{word}{joined}{in_words(number % 10, joined)}"
    above, size, name = (number // 1000, 1000, "thousand") if number >= 1000 else (number // 100, 100, "hundred")
    rest = "" if number % size == 0 else f" and {in_words(number % size, joined)}" if number % size < 100 else None
    rest = f" {in_words(number % size, joined)}" if rest is None else rest
    return f"{in_words(above, joined)} {name}{rest}"


@given(st.integers(0, 999_998), st.sampled_from(["-", " ", "\u2010"]), one_of(str.upper, str.lower, str.title), AROUND)
@settings(deadline=None, max_examples=200)
def test_number_words(number: int, joined: str, case: Rewrite, around: Rewrite) -> None:
    written, below = around(case(in_words(number, joined))), around(case("minus " + in_words(number + 1, joined)))
    texts = [tagged(written), tagged(str(number)), tagged(str(number + 1))]
    assert numeric_answer_reward(texts, [str(number)] * 3) == [1, 1, 0], written
    assert numeric_answer_reward(texts, [written] * 3) == [1, 1, 0], written
    assert numeric_answer_reward([tagged(below)], [str(-number - 1)]) == [1], below


@pytest.mark.parametrize("reward", [numeric_answer_reward, accuracy_reward])
@given(st.integers(-99, 99), st.integers(1, 99), SIGNS, AROUND)
@settings(deadline=None, max_examples=150)
def test_fractions(reward: Any, above: int, below: int, sign: Rewrite, around: Rewrite) -> None:
    value, minus = Fraction(above, below), "-" if above < 0 else ""
    whole, rest = divmod(abs(above), below)
    ways = [f"{above}/{below}", rf"{minus}\frac{{{abs(above)}}}{{{below}}}", rf"\dfrac{{{above}}}{{{below}}}"]
    ways += [f"{minus}{whole} {rest}/{below}", rf"{minus}{whole}\frac{{{rest}}}{{{below}}}"] if whole and rest else []
    golds = [f"{value.numerator}/{value.denominator}"] * len(ways)
    assert reward([tagged(around(sign(way))) for way in ways], golds) == [1] * len(ways)
    assert reward([tagged(way) for way in ways], [f"{value.numerator + 1}/{value.denominator}"] * len(ways)) == [
        0
    ] * len(ways)


ROOTS = (r"{0}\sqrt{{{1}}}", r"{0} \sqrt {{ {1} }}", "{0}√{1}", "{0}*sqrt({1})", r"{0} \cdot \sqrt{{{1}}}", "{0}·√{1}")


@given(
    st.integers(2, 99), st.sampled_from([2, 3, 5, 6, 7, 10, 11]), st.sampled_from(ROOTS), st.sampled_from(ROOTS), AROUND
)
@settings(deadline=None, max_examples=80)
def test_roots(factor: int, below: int, said: str, gold: str, around: Rewrite) -> None:
    """A gold with and without dollar signs, and neither misread as the first number in it."""
    written, solution = said.format(factor, below), around(gold.format(factor, below))
    texts = [tagged(around(written)), tagged(written), tagged(said.format(factor + 1, below)), tagged(str(factor))]
    assert accuracy_reward(texts, [solution] * 4) == [1, 1, 0, 0], (written, solution)


@given(st.integers(0, 100), st.sampled_from(["{}%", r"{}\%", "{} %", "{} percent", r"${}\%$"]))
@settings(deadline=None, max_examples=60)
def test_percent(number: int, way: str) -> None:
    written, share = way.format(number), f"{number / 100:g}"
    for reward in (numeric_answer_reward, accuracy_reward):
        assert reward([tagged(written)] * 3, [f"{number}%", str(number), share]) == [1, 1, 1]
        assert reward([tagged(written)], [str(number + 7)]) == [0]


ANNOUNCED = one_of(
    lambda text: text,
    lambda text: f"({text})",
    lambda text: f"{text}.",
    lambda text: f"{text}) a text",
    lambda text: f"Answer: {text}",
    lambda text: f"The answer is {text}.",
    lambda text: f"the correct option is ({text})",
    lambda text: f'{{"answer": "{text}"}}',
    lambda text: f"答案：{text}",
)


@given(
    st.sampled_from("ABCDEFGH"),
    one_of(str.upper, str.lower),
    one_of(lambda t: t, lambda t: f"**{t}**", lambda t: rf"\text{{{t}}}"),
    ANNOUNCED,
)
@settings(deadline=None, max_examples=200)
def test_letters(letter: str, case: Rewrite, around: Rewrite, announced: Rewrite) -> None:
    written = announced(around(case(letter)))
    other = "C" if letter != "C" else "D"
    for texts in ([tagged(written), written], [tagged(written), f"<think>{other}?</think>{written}"]):
        assert choice_letter_reward(texts, [letter] * 2) == [1, 1], written
        assert choice_letter_reward(texts, [other] * 2) == [0, 0], written
    assert choice_letter_reward([tagged(letter)], [written]) == [1]


WORDS = st.lists(
    st.text(st.characters(categories=["L"], max_codepoint=0x24F), min_size=2, max_size=8), min_size=1, max_size=3
)


@given(WORDS, one_of(str.upper, str.lower, str.title), AROUND)
@settings(deadline=None, max_examples=150)
def test_words(words: Sequence[str], case: Rewrite, around: Rewrite) -> None:
    plain = " ".join(words).casefold()
    assert exact_answer_reward([tagged(around("  ".join(words)))], [plain]) == [1]
    assert exact_answer_reward([tagged(around(plain))], [around(plain + "x")]) == [0]


BOXES = st.tuples(st.integers(0, 300), st.integers(0, 200), st.integers(1, 300), st.integers(1, 200))
BOX_WAYS = (
    "[{0}, {1}, {2}, {3}]",
    "({0},{1}),({2},{3})",
    "[[{0}, {1}], [{2}, {3}]]",
    "<|box_start|>({0},{1}),({2},{3})<|box_end|>",
    '{{"bbox_2d": [{0}, {1}, {2}, {3}], "label": "a cat"}}',
    '{{"left": {0}, "top": {1}, "right": {2}, "bottom": {3}}}',
    "The box is [{0}, {1}, {2}, {3}].",
)


@given(BOXES, st.sampled_from(BOX_WAYS), st.sampled_from(["original", "model", "thousand", "percent", "unit"]))
@settings(deadline=None, max_examples=200)
def test_boxes(box: tuple[int, ...], way: str, coordinates: Coordinates) -> None:
    size, seen = (640, 480), (320, 160)
    gold = [box[0], box[1], box[0] + box[2], box[1] + box[3]]
    x, y = scale_to_original(coordinates, size, seen)
    numbers = [f"{value / scale:.9f}" for value, scale in zip(gold, (x, y, x, y), strict=True)]
    reward = get_iou_reward(coordinates)
    (mark,) = reward([tagged(way.format(*numbers))], bbox=[gold], image_sizes=[[size]], model_image_sizes=[[seen]])
    assert mark == pytest.approx(1, abs=1e-4)
    in_its_own = get_iou_reward(coordinates, gold_coordinates=coordinates)
    (mark,) = in_its_own(
        [tagged(way.format(*numbers))],
        bbox=[list(map(float, numbers))],
        image_sizes=[[size]],
        model_image_sizes=[[seen]],
    )
    assert mark == pytest.approx(1, abs=1e-4)

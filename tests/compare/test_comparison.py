"""The comparison as numbers, as Markdown, and as a page that is opened in a browser."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from boresight.compare.accuracy import Accuracy
from boresight.compare.answers import Answer, Question
from boresight.compare.comparison import Comparison, interval, p_value, percent, points
from boresight.compare.markdown import as_markdown
from boresight.compare.page import comparison_page
from boresight.files import write_whole
from tests.browser import PHONE, WIDE, opened

ATTACK = "</script><img src=x onerror=\"document.title='owned'\"><b>| `x` $y$"

SCORES: dict[str, list[float | None]] = {
    "base": [1.0, 0.0, 0.0, 0.0, 1.0, None],
    "mpo": [1.0, 1.0, 0.0, 0.0, 0.0, 1.0],
    "grpo": [1.0, 1.0, 1.0, 0.0, 0.0, 0.0],
}
"""Of six questions: all right; fixed by both; fixed by grpo; all wrong; broken by both; base unmarked."""


def made(folder: Path, *, times: int = 1, text: str = "said", scores: Any = None) -> Comparison:
    """Questions about images of their own, over and over, with marks that are known."""
    scores = SCORES if scores is None else scores
    folder.mkdir(exist_ok=True)
    num = len(next(iter(scores.values())))
    for place in range(num):
        Image.new("RGB", (40, 30), (40 * place, 90, 200)).save(folder / f"{place}.png")
    questions = [
        Question(
            key=f"{place}",
            row=10 + place,
            question=f"question {place}?\n{text}",
            gold=f"gold {place % num}",
            kind=f"kind {place % 2}",
            images=(f"{place % num}.png",),
            columns={"note": text},
        )
        for place in range(num * times)
    ]
    answers = {
        name: [
            Answer(
                text=f"<think>{name} thinks {text}</think><answer>{place}</answer>",
                ids=(1,) * 7,
                truncated=place == 3,
                scores={"exact": own[place % num]},
            )
            for place in range(num * times)
        ]
        for name, own in scores.items()
    }
    models = {name: f"runs/{name}/model" for name in scores}
    return Comparison("Four & more", models, "exact", 1.0, {"temperature": "0"}, questions, answers, folder)


@pytest.fixture
def comparison(tmp_path: Path) -> Comparison:
    return made(tmp_path / "images")


def test_marks_and_counts(comparison: Comparison) -> None:
    assert comparison.marks["base"] == [True, False, False, False, True, None]
    base, mpo, grpo = comparison.accuracies.values()
    assert (base.right, base.marked, base.unmarked) == (2, 5, 1)
    assert (mpo.right, grpo.right) == (3, 3)
    first, second, third = comparison.flips
    assert (first.fixed, first.broken, first.both_right, first.both_wrong) == ((1,), (4,), 1, 2)
    assert (second.fixed, second.broken) == ((1, 2), (4,))
    assert (third.fixed, third.broken) == ((2,), (5,))
    assert comparison.by_kind["grpo"]["kind 0"].right == 2  # questions 0, 2 and 4
    assert comparison.num_truncated == {"base": 1, "mpo": 1, "grpo": 1}
    assert comparison.mean_scores == {}  # they would say the accuracy again


def test_one_kind_is_no_breakdown(tmp_path: Path) -> None:
    assert made(tmp_path / "p", scores={"base": [1.0]}).by_kind == {}


def test_graded_rewards_have_a_mean(tmp_path: Path) -> None:
    found = made(tmp_path / "p", scores={"base": [0.25, 1.0, None], "mpo": [None, None, None]})
    assert found.mean_scores == {"base": 0.625, "mpo": None}
    assert found.marks["base"] == [False, True, None]
    assert "0.625" in as_markdown(found) and "–" in as_markdown(found)


def test_numbers_for_people() -> None:
    assert (percent(0.5934), percent(None)) == ("59.3 %", "–")
    assert (points(0.24), points(-0.052), points(0.0), points(None)) == ("+24.0", "−5.2", "+0.0", "–")
    assert (interval(Accuracy(7, 10)), interval(Accuracy(0, 0, 4))) == ("39.7–89.2 %", "–")
    assert [p_value(p) for p in (0.0004, 0.03125, 0.0012, 0.25, 1.0)] == ["<0.001", "0.031", "0.0012", "0.25", "1.00"]


def test_markdown_says_all_of_it(comparison: Comparison) -> None:
    told = as_markdown(comparison, max_quoted=2)
    assert told.startswith("## Four & more\n\n6 questions, marked by `exact` (right from 1); temperature 0.")
    assert "| base | 2 of 5 | 40.0 % | 11.8–76.9 % |  |  | 66.7 % | 0.0 % | 7 | 1 |" in told
    assert "| grpo | 3 of 6 | 50.0 % | 18.8–81.2 % | +20.0 | 1.00 | 66.7 % | 33.3 % | 7 | 1 |" in told
    assert "| base → grpo | 2 | 1 | 1 | 1 | +20.0 | 1.00 |" in told
    assert "Answers without a mark, left out of all shares: base 1." in told
    assert told.count("**Row ") == 2 and "**Row 11**" in told  # the first on which marks differ
    assert "| mpo | ✓ | \\<think\\>mpo thinks said\\</think\\>\\<answer\\>1\\</answer\\> |" in told


def test_markdown_of_hostile_texts_keeps_its_tables(tmp_path: Path) -> None:
    told = as_markdown(made(tmp_path / "p", text=f"{ATTACK}\r\n\r\n# no heading"), max_quoted=9)
    assert not re.search(r"(?<!\\)<(?!br>)", told)
    tables = [block.splitlines() for block in told.split("\n\n") if block.startswith("|")]
    for table in tables:
        columns = {len(re.findall(r"(?<!\\)\|", line)) for line in table}
        assert len(columns) == 1, table
    assert "\n#" not in told


@pytest.fixture
def page(tmp_path: Path) -> Callable[..., Path]:
    def write(comparison: Comparison) -> Path:
        return write_whole(tmp_path / "compare.html", comparison_page(comparison))

    return write


def ready(page: Any) -> None:
    page.wait_for_selector("html[data-ready]", state="attached")


def rows_shown(page: Any) -> list[int]:
    return [int(row) for row in page.eval_on_selector_all("article", "all => all.map(one => one.dataset.row)")]


def choose(page: Any, label: str) -> list[int]:
    page.select_option("select[name=show]", label=label)
    return rows_shown(page)


def test_filters(page: Callable[..., Path], comparison: Comparison, chromium: Any) -> None:
    """Each shows the rows it names, and their number."""
    with opened(chromium, page(comparison)) as seen:
        ready(seen.page)
        assert rows_shown(seen.page) == [10, 11, 12, 13, 14, 15]
        expected = {
            "models disagree": [11, 12, 14, 15],
            "fixed by mpo": [11],
            "fixed by grpo": [11, 12],
            "broken by mpo": [14],
            "all right": [10],
            "all wrong": [13],
            "an answer is cut": [13],
            "an answer has no mark": [15],
        }
        for label, rows in expected.items():
            assert choose(seen.page, label) == rows, label
            assert seen.page.inner_text("#count") == f"{len(rows)} of 6"
        assert choose(seen.page, "fixed by grpo") == [11, 12]
        assert seen.page.inner_text("#pair") == "Questions where base is wrong and grpo is right."
        seen.page.select_option("select[name=kind]", label="kind 0")
        assert rows_shown(seen.page) == [12]
        seen.page.click("#clear")
        assert len(rows_shown(seen.page)) == 6
        seen.page.fill("input[name=find]", "GOLD 4")
        assert rows_shown(seen.page) == [14]
        seen.page.fill("input[name=find]", "nobody said this")
        assert "No question is like that" in seen.page.inner_text("#cards")
        seen.page.click("button.count[data-show=fixed][data-first=mpo][data-second=grpo]")
        assert rows_shown(seen.page) == [12]
        assert seen.is_quiet, (seen.requests, seen.complaints)


def test_marks_are_beside_their_answers(page: Callable[..., Path], comparison: Comparison, chromium: Any) -> None:
    with opened(chromium, page(comparison)) as seen:
        ready(seen.page)
        for name, scores in SCORES.items():
            signs = {1.0: "✓ right", 0.0: "✗ wrong", None: "no mark"}
            told = seen.page.eval_on_selector_all(
                f".answer[data-model={name}] header", "all => all.map(one => one.children[1].textContent)"
            )
            assert told == [signs[score] for score in scores]
        assert "gold 2" in seen.page.text_content("article[data-row='12'] .gold")
        assert seen.page.text_content("article[data-row='12'] .answer[data-model=grpo] .final") == "<answer>2</answer>"


def test_an_image_opens_large(page: Callable[..., Path], comparison: Comparison, chromium: Any) -> None:
    with opened(chromium, page(comparison)) as seen:
        ready(seen.page)
        seen.page.click("article[data-row='12'] button.image")
        large = "document.querySelector('#zoom img')"
        assert seen.page.evaluate("document.getElementById('zoom').open")
        assert seen.page.evaluate(f"{large}.naturalWidth") == 40
        assert seen.page.evaluate(f"{large}.src") == seen.page.evaluate(
            "document.querySelector(\"article[data-row='12'] img\").src"
        )
        seen.page.keyboard.press("Escape")
        assert not seen.page.evaluate("document.getElementById('zoom').open")


def test_what_is_said_and_what_is_found(page: Callable[..., Path], comparison: Comparison, chromium: Any) -> None:
    with opened(chromium, page(comparison)) as seen:
        ready(seen.page)
        assert "0.0 %" in seen.page.inner_text("tr.blind")  # each question's right answer is its own
        rows = seen.page.eval_on_selector_all(
            "table.golds tbody tr", "all => all.map(row => [...row.cells].map(cell => cell.firstChild.textContent))"
        )
        assert rows[1] == ["gold 1", "1", "0.0 %", "100.0 %", "100.0 %"]
        assert rows[5] == ["gold 5", "1", "–", "100.0 %", "0.0 %"]
        said = seen.page.eval_on_selector_all("table.commonest tbody tr", "all => all.map(row => row.innerText)")
        assert said[0].startswith("right answers") and "gold 0 16.7 %" in said[0]
        assert said[1].startswith("base") and "0 16.7 %" in said[1]


def test_no_text_runs(page: Callable[..., Path], tmp_path: Path, chromium: Any) -> None:
    attacked = made(tmp_path / "p", text=ATTACK)
    with opened(chromium, page(attacked)) as seen:
        ready(seen.page)
        assert seen.page.title() == "Four & more · boresight"
        assert len(rows_shown(seen.page)) == 6
        assert ATTACK in seen.page.text_content("article[data-row='11'] .asked")
        assert ATTACK in seen.page.text_content("article[data-row='11'] .answer[data-model=mpo] .think")
        assert seen.is_quiet, (seen.requests, seen.complaints)


@pytest.mark.parametrize("width", [WIDE, PHONE])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits(page: Callable[..., Path], tmp_path: Path, chromium: Any, width: int, scheme: Any) -> None:
    """Also with words that have no place to break, and the paper is that of the scheme."""
    long = made(tmp_path / "p", text="W" * 300)
    with opened(chromium, page(long), width=width, scheme=scheme) as seen:
        ready(seen.page)
        assert seen.overflow() <= 0
        paper = seen.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (int(re.findall(r"\d+", paper)[0]) > 128) == (scheme == "light")


def test_a_thousand_questions_are_drawn_as_one_reads(page: Callable[..., Path], tmp_path: Path, chromium: Any) -> None:
    """A few screens at a time, all of them in the end, and a filter over all."""
    many = made(tmp_path / "p", times=170, text="a few words more")
    with opened(chromium, page(many)) as seen:
        ready(seen.page)
        assert seen.page.inner_text("#count") == "1,020 of 1,020"
        assert 10 <= len(rows_shown(seen.page)) <= 72
        seen.page.fill("input[name=find]", "question 1017?")
        assert rows_shown(seen.page) == [1027]
        seen.page.fill("input[name=find]", "")
        seen.page.evaluate(
            """async () => { while (document.querySelectorAll('article').length < 1020) {
                 window.scrollTo({top: document.body.scrollHeight, behavior: "instant"}); await new Promise(requestAnimationFrame); } }"""
        )
        assert rows_shown(seen.page) == list(range(10, 1030))
        assert choose(seen.page, "all wrong")[:3] == [13, 19, 25]
        assert seen.page.inner_text("#count") == "170 of 1,020"
        assert seen.is_quiet, (seen.requests, seen.complaints)


def test_an_image_is_held_once_however_many_questions_ask_about_it(tmp_path: Path) -> None:
    html = comparison_page(made(tmp_path / "p", times=5))
    assert html.count("data:image/png;base64,") == 6


def test_a_single_model_has_no_flips(page: Callable[..., Path], tmp_path: Path, chromium: Any) -> None:
    alone = made(tmp_path / "p", scores={"base": [1.0, 0.0, None]})
    assert "fixed" not in as_markdown(alone)
    with opened(chromium, page(alone)) as seen:
        ready(seen.page)
        assert not seen.page.query_selector("#flips")
        assert choose(seen.page, "all wrong") == [11]
        assert seen.is_quiet


def test_many_images_are_held_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from boresight.compare import page as module

    found = made(tmp_path / "p")
    for path in found.images.iterdir():
        Image.effect_noise((900, 300), 80).convert("RGB").save(path)
    assert "at the most" in comparison_page(found) and "with 512 pixels" in comparison_page(found)
    monkeypatch.setattr(module, "MANY_IMAGES", 5)
    html = comparison_page(found)
    assert "with 320 pixels" in html
    uri = re.findall(r"data:image/webp;base64,([A-Za-z0-9+/=]+)", html)[0]
    assert Image.open(io.BytesIO(base64.b64decode(uri))).size == (320, 107)

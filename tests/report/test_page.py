from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from boresight.report import StepLines, read_completions
from boresight.report.page import report_data, write_report
from tests.browser import PHONE, WIDE, Opened, opened
from tests.report.runs import K, image, write_run

ATTACK = "</script><img src=x onerror=\"document.title='owned'\"><svg onload=\"document.title='owned'\"><a href='javascript:0'>"

ATTACKS = (
    ATTACK,
    "\"]}'>--></style></textarea></title><iframe srcdoc=\"<script>parent.document.title='owned'</script>\"></iframe>",
    "{{7*7}}${7*7}<%= 7*7 %>&lt;script&gt;&#60;img src=x&#62; \u202egnp.exe \u2028</script><script>document.title='owned'</script>",
    "__proto__ constructor onerror=alert(1) javascript:document.title='owned' <math><mi//xlink:href=\"data:x,<script>\">",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "grpo")


@pytest.fixture(scope="module")
def file(folder: Path) -> Path:
    return write_report(folder)


@pytest.fixture(scope="module")
def one_page(file: Path, chromium: Any) -> Iterator[Opened]:
    with opened(chromium, file) as seen:
        wait(seen)
        yield seen


@pytest.fixture
def seen(one_page: Opened) -> Iterator[Opened]:
    """One page for all tests that do no more than use it, its form empty."""
    one_page.page.locator("#clear").click()
    yield one_page
    assert one_page.is_quiet, (one_page.complaints, one_page.requests)


def wait(seen: Opened) -> None:
    seen.page.locator("#list[aria-busy=false]").wait_for()


def choose(seen: Opened, **wishes: str) -> list[str]:
    """Fill in the form, and return the titles of the list."""
    for name, value in wishes.items():
        field = seen.page.locator(f"#filters [name={name}]")
        if field.evaluate("field => field.tagName") == "SELECT":
            field.select_option(label=value)
        else:
            field.fill(value)
            field.dispatch_event("change")
    return titles(seen)


def titles(seen: Opened) -> list[str]:
    """Of those rows of the list that are in the page."""
    return seen.page.locator(".list .title").all_inner_texts()


def said(seen: Opened) -> list[str]:
    return [text.strip() for text in seen.page.locator(".completion .said").all_inner_texts()]


# ---- What the page says ----------------------------------------------------------------------------------------------------------------


def test_the_page_shows_the_run(seen: Opened) -> None:
    page = seen.page
    facts = dict(
        zip(page.locator("#facts dt").all_inner_texts(), page.locator("#facts dd").all_inner_texts(), strict=True)
    )
    assert (
        facts["steps"] == "3" and facts["completions"].startswith("24") and facts["time in steps"].startswith("10.5 s")
    )
    assert facts["image encodes saved"].startswith("75%")
    assert page.locator("#verdict-list li").first.inner_text().split() == [
        "step",
        "3",
        "learning",
        "The",
        "reward",
        "rose.",
    ]
    titles = page.locator("#charts h3").all_inner_texts()
    assert titles[:2] == ["Reward", "Reward by function"] and any(
        title.startswith("KL to the reference") for title in titles
    )
    assert page.locator("#more summary").inner_text() == "1 further metric"
    assert "sample 57 % 6.0 s" in page.locator("#phases").inner_text()
    work = page.locator("#work-table tbody tr").all_inner_texts()
    assert [row.split("\t")[1:] for row in work] == [
        ["6", "24", "18 (75 %)", "4.0×"],
        ["300", "1,200", "900 (75 %)", "4.0×"],
    ]


def test_charts_are_drawn_as_a_reader_comes_to_them(seen: Opened) -> None:
    page = seen.page
    for plot in page.locator("#charts .plot").all():
        plot.scroll_into_view_if_needed()
        plot.locator("svg.main-svg").first.wait_for()
    drawn = page.evaluate("document.querySelector('#charts .plot').data.map(trace => [[...trace.x], [...trace.y]])")
    assert drawn == [[[1, 2, 3], [pytest.approx(step + 0.6 / 7) for step in (1, 2, 3)]]]
    page.locator("#smoothing").fill("0.5")
    page.locator("#charts .plot").first.locator(".scatterlayer .trace").nth(1).wait_for(state="attached")
    logged, smooth = page.evaluate("document.querySelector('#charts .plot').data.map(trace => [...trace.y])")
    assert (
        logged == drawn[0][1]
        and smooth[0] == pytest.approx(logged[0])
        and smooth[1] == pytest.approx((logged[0] + 2 * logged[1]) / 3)
    )
    page.locator("#time-plot").scroll_into_view_if_needed()
    page.locator("#time-plot svg.main-svg").first.wait_for()
    assert page.evaluate("document.getElementById('time-plot').data.map(trace => trace.name)") == [
        "sample",
        "update",
        "other",
    ]


# ---- The browser of completions --------------------------------------------------------------------------------------------------------


def test_sorting(seen: Opened) -> None:
    assert choose(seen, sort="step, newest first")[:2] == ["question 0", "question 1"]
    assert choose(seen, sort="spread in the group, widest first") == ["question 1"] * 3 + ["question 0"] * 3
    assert said(seen)[0] == "answer 3 of prompt 1 at step 1"  # the best of the first group stands first
    choose(seen, sort="reward, highest first")
    scores = [float(text) for text in seen.page.locator(".list .score > div:first-child").all_inner_texts()]
    assert scores == sorted(scores, reverse=True) and scores[0] == 3.2
    assert choose(seen, view="single completions", sort="reward, lowest first")[:4] == [
        f"answer {k} of prompt 0 at step 1" for k in range(4)
    ]
    # The unscored ones stand last, whichever way the sort goes.
    for sort in ("reward, lowest first", "reward, highest first"):
        choose(seen, sort=sort)
        seen.page.locator("#list").press("End")
        seen.page.locator("#found-23").wait_for()
        assert titles(seen)[-3:] == [f"answer 0 of prompt 1 at step {step}" for step in (1, 2, 3)]


def test_filtering(seen: Opened) -> None:
    assert choose(seen, view="single completions", only="truncated") == [
        f"answer 3 of prompt 1 at step {step}" for step in (3, 2, 1)
    ]
    assert choose(seen, only="unscored") == [f"answer 0 of prompt 1 at step {step}" for step in (3, 2, 1)]
    assert len(choose(seen, only="a reward missing")) == 3
    assert len(choose(seen, only="groups with equal rewards")) == 3 * K
    assert len(choose(seen, only="with images")) == 3 * K
    assert choose(seen, only="everything", step="2", least="2.15", most="2.25") == ["answer 2 of prompt 1 at step 2"]
    assert choose(seen, text="no such text") == [] and "Nothing matches" in seen.page.locator("#detail").inner_text()
    seen.page.locator("#clear").click()
    assert seen.page.locator("#count").inner_text() == "6 of 6 groups"
    assert choose(seen, text="PROMPT 1 at step 3") == ["question 1"]


def test_a_group_shows_all_that_is_known_of_it(seen: Opened) -> None:
    choose(seen, text="prompt 1 at step 2")
    detail = seen.page.locator("#detail")
    assert "step 2 · training · row 201 · 4 completions" in detail.inner_text()
    assert detail.locator(".prompt").inner_text().strip() == "user: <image><image>question 1"
    assert said(seen) == [f"answer {k} of prompt 1 at step 2" for k in (3, 2, 1, 0)]
    best, worst = detail.locator(".completion").first, detail.locator(".completion").last
    assert "2.30" in best.inner_text() and "truncated" in best.inner_text() and "advantage +0.21" in best.inner_text()
    assert "unscored" in worst.inner_text() and worst.locator(".tag.warn").count() == 1
    assert best.locator(".tag").all_inner_texts() == ["truncated", "exact_answer 2.30", "format 1.00"]
    assert best.locator(".extras").inner_text().split() == ["parsed", "said"]


def test_the_right_answer_stands_beside_every_completion(tmp_path: Path, chromium: Any) -> None:
    file = write_report(write_run(tmp_path / "run", right="<b>3</b>"))
    with opened(chromium, file) as seen:
        wait(seen)
        choose(seen, text="prompt 1 at step 2")
        detail = seen.page.locator("#detail")
        assert [line.strip() for line in detail.locator(".row-facts").inner_text().splitlines()] == [
            "right answer",
            "<b>3</b>",
            "level",
            "1",
            "source",
            "book",
        ]
        given = detail.locator(".given").all_inner_texts()
        assert sorted(given) == ["answer <b>3</b> · right: <b>3</b>"] + ["answer wrong · right: <b>3</b>"] * 3
        (row,) = seen.page.locator("#answers-table tbody tr").all_inner_texts()
        assert row.split("\t") == ["<b>3</b>", "100 %", "25 %", "25 %", "25 %", "25 %", "3.09", "wrong 75 %"]
        assert "wrong 75.0 %" in seen.page.locator("#answers-table p").inner_text()
        assert seen.is_quiet, (seen.complaints, seen.requests)


def test_a_run_without_right_answers_has_no_table_of_them(seen: Opened) -> None:
    assert not seen.page.locator("#answers").is_visible()
    assert "Answers" not in seen.page.locator("nav.sections").inner_text()


def test_tokens_are_shaded_by_their_log_probability(seen: Opened, folder: Path) -> None:
    choose(seen, text="answer 2 of prompt 0 at step 3")
    card = seen.page.locator(".completion", has_text="answer 2 of prompt 0 at step 3")
    card.scroll_into_view_if_needed()
    card.locator(".said span").first.wait_for()
    row = next(
        row
        for row in read_completions(folder).to_pylist()
        if row["completion"].startswith("answer 2 of prompt 0 at step 3")
    )
    titles = [span.get_attribute("title") for span in card.locator(".said span").all()]
    assert [float(title.split()[0].replace("−", "-")) for title in titles] == pytest.approx(row["logp"], abs=0.0051)
    likely, surprising = max(row["logp"]), min(row["logp"])
    grounds = card.locator(".said span").evaluate_all(
        "spans => spans.map(span => getComputedStyle(span).backgroundColor)"
    )
    strength = [
        float(ground.rpartition("/")[2].strip(" )") or 0) if "/" in ground else float(ground.split(",")[-1].strip(" )"))
        for ground in grounds
    ]
    assert strength[row["logp"].index(surprising)] > strength[row["logp"].index(likely)] + 0.2
    assert f"{sum(row['logp']) / len(row['logp']):.2f}".replace("-", "−") in card.locator(".mean").inner_text()
    seen.page.locator(".shade input").uncheck()
    assert set(
        card.locator(".said span").evaluate_all("spans => spans.map(span => getComputedStyle(span).backgroundColor)")
    ) == {"rgba(0, 0, 0, 0)"}


def test_an_image_is_held_once_and_opens_large(seen: Opened, folder: Path) -> None:
    held = seen.page.evaluate("Object.keys(pageImages)")
    assert sorted(held) == sorted(path.name for path in (folder / "images").iterdir())
    choose(seen, text="prompt 1 at step 3")
    images = seen.page.locator("#detail button.image img")
    assert images.evaluate_all("images => images.map(image => image.naturalWidth)") == [64, 200]
    images.last.click()
    large = seen.page.locator("#zoom img")
    large.wait_for()
    assert large.evaluate("image => image.clientWidth") > 500
    large.click()
    assert not large.is_visible()


def test_the_keyboard_walks_the_list(seen: Opened) -> None:
    seen.page.locator("#list").focus()
    for key, row in (("ArrowDown", 1), ("End", 5), ("ArrowUp", 4), ("Home", 0)):
        seen.page.keyboard.press(key)
        assert seen.page.locator(".row[aria-selected=true]").get_attribute("id") == f"found-{row}"


def test_ten_thousand_completions_keep_the_page_small(tmp_path: Path, chromium: Any) -> None:
    """Only what is in sight is in the page; what is found is counted over all."""
    file = write_report(write_run(tmp_path, num_steps=10, num_prompts=250))
    with opened(chromium, file) as seen:
        wait(seen)
        choose(seen, view="single completions", sort="reward, highest first")
        assert seen.page.locator("#count").inner_text() == "10,000 of 10,000 completions"
        seen.page.locator("#list").evaluate("list => { list.scrollTop = list.scrollHeight }")
        seen.page.locator("#found-9999").wait_for()
        assert seen.page.locator(".list .row").count() < 40
        assert seen.page.evaluate("document.querySelectorAll('*').length") < 3000
        assert choose(seen, text="answer 2 of prompt 249 at step 10") == ["answer 2 of prompt 249 at step 10"]
        assert seen.is_quiet, (seen.complaints, seen.requests)


# ---- Nothing is trusted, nothing is asked for, everyone can read -----------------------------------------------------------------------


@pytest.mark.parametrize("attack", ATTACKS, ids=["tag", "breakout", "template", "names"])
def test_an_attack_stays_text(tmp_path: Path, chromium: Any, attack: str) -> None:
    """In prompts, completions, names of rewards, metrics, verdicts, extras: shown as it is written, and nothing happens."""
    file = write_report(write_run(tmp_path, poison=attack))
    with opened(chromium, file) as seen:
        wait(seen)
        page = seen.page
        page.locator("#more summary").click()
        for plot in page.locator("#curves .plot").all():
            plot.scroll_into_view_if_needed()
            plot.locator("svg.main-svg").first.wait_for()
            plot.hover()
        choose(seen, sort="spread in the group, widest first")
        page.locator("#detail").scroll_into_view_if_needed()
        page.locator(".said span").first.wait_for()
        assert all(text.endswith(attack) for text in said(seen))
        for place in (
            ".prompt",
            ".completion .tag",
            ".extras dt",
            ".extras dd",
            "#verdict-list li",
            "#more-charts h3",
        ):
            assert any(attack in text for text in page.locator(place).all_inner_texts()), place
        assert page.locator("img[src=x], svg[onload], [href^=javascript], iframe, math").count() == 0
        assert page.title() == "/ ".join((tmp_path.parent.name + " ", tmp_path.name)) + " · boresight"
        assert seen.is_quiet, (seen.complaints, seen.requests)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [WIDE, PHONE])
def test_it_fits_its_window_in_both_schemes(file: Path, chromium: Any, width: int, scheme: Any) -> None:
    with opened(chromium, file, width=width, scheme=scheme) as seen:
        wait(seen)
        choose(seen, sort="spread in the group, widest first")
        for section in ("verdicts", "curves", "time", "work", "completions"):
            seen.page.locator(f"#{section}").scroll_into_view_if_needed()
        assert seen.overflow() <= 0
        sizes = seen.page.evaluate(FONT_SIZES)
        assert min(sizes) >= 12
        assert seen.is_quiet, (seen.complaints, seen.requests)


FONT_SIZES = """[...document.querySelectorAll("main *")]
  .filter((each) => each.checkVisibility() && !each.closest("svg") && each.innerText?.trim())
  .map((each) => parseFloat(getComputedStyle(each).fontSize))"""


# ---- The set-up, flat lines, and verdicts to come ---------------------------------------------------------------------------------------


@pytest.fixture
def waiting(tmp_path: Path) -> Path:
    """A run at step 7 of 98 that has no verdict yet; its KL is 0 and its learning rate hardly changes."""
    lines = StepLines(tmp_path / "steps.jsonl")
    for step in range(1, 8):
        lines.add(step, {"reward": step / 10, "kl": 0.0, "learning_rate": 3e-4 + 1e-12 * step, "entropy": 1 / step})
    StepLines(tmp_path / "metrics.jsonl").add(7, {"reward": 0.4})
    options = {"verdict_steps": 50, "max_steps": 98, "seed": 42, "beta": 0.1}
    (tmp_path / "run.json").write_text(
        json.dumps(
            {"method": "GRPOTrainer", "command": f"boresight grpo {ATTACK}", "set": ["beta"], "options": options}
        )
    )
    return tmp_path


def test_flat_charts_are_folded_and_their_axes_do_not_magnify_rounding(waiting: Path, chromium: Any) -> None:
    with opened(chromium, write_report(waiting)) as seen:
        page = seen.page
        assert page.locator("#charts h3").all_inner_texts() == ["Reward", "Entropynats per token"]
        folded = page.locator("#flat summary")
        assert folded.inner_text() == "2 charts without a change: KL to the reference 0, Learning rate 3.0e−4"
        folded.click()
        for plot in page.locator("#flat .plot").all():
            plot.scroll_into_view_if_needed()
            plot.locator("svg.main-svg").first.wait_for()
        ranges = page.evaluate("[...document.querySelectorAll('#flat .plot')].map(plot => plot.layout.yaxis.range)")
        assert ranges == [pytest.approx([-0.05, 1]), pytest.approx([1.5e-4, 4.5e-4], rel=1e-3)]
        assert seen.is_quiet, (seen.complaints, seen.requests)


def test_the_command_and_the_options_stand_on_the_page(waiting: Path, chromium: Any) -> None:
    with opened(chromium, write_report(waiting), width=PHONE) as seen:
        assert seen.page.locator("pre.command").inner_text() == f"boresight grpo {ATTACK}"
        rows = seen.page.locator("#set-up-parts > .scroll tr").all_inner_texts()
        assert [row.split("\t") for row in rows] == [["method", "GRPOTrainer"], ["beta", "0.1"]]
        assert seen.page.locator("#set-up summary").inner_text() == "3 other options"
        assert seen.overflow() <= 0 and seen.is_quiet, (seen.complaints, seen.requests)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"verdict_steps": 50, "max_steps": 98}, "The first verdict comes at step 20; step 7 is done."),
        ({"verdict_steps": 5, "max_steps": -1}, "The first verdict comes at step 5; step 7 is done."),
        ({"verdict_steps": 50, "max_steps": 8}, "The first verdict comes at the end, at step 8; step 7 is done."),
        ({"verdict_steps": 0}, "verdict_steps=0: this run gives no verdicts."),
        ({}, "This run gave no verdict."),
    ],
)
def test_a_page_without_a_verdict_says_when_the_first_one_comes(
    waiting: Path, options: dict[str, int], text: str
) -> None:
    (waiting / "run.json").write_text(json.dumps({"options": options}))
    assert report_data(waiting)["awaited"] == text


def test_a_table_that_goes_on_beyond_a_narrow_window_casts_a_shadow(folder: Path, chromium: Any) -> None:
    """The pixels at the cut side differ from those at the other one; once it is scrolled to its end, it is the other way round."""
    with opened(chromium, write_report(folder), width=PHONE) as seen:
        table = seen.page.locator("#work .scroll")
        table.scroll_into_view_if_needed()
        assert table.evaluate("table => table.scrollWidth > table.clientWidth")
        shades = [_edges(table.screenshot())]
        table.evaluate("table => { table.scrollLeft = table.scrollWidth }")
        seen.page.wait_for_timeout(100)
        shades.append(_edges(table.screenshot()))
        assert shades[0][0] > shades[0][1] + 20 and shades[1][1] > shades[1][0] + 20


def _edges(png: bytes) -> tuple[int, int]:
    """The brightness of the ground at the left and at the right edge, in the last row of pixels."""
    picture = Image.open(io.BytesIO(png)).convert("L")
    return tuple(int(picture.getpixel((x, picture.height - 2))) for x in (0, picture.width - 1))  # pyright: ignore[reportReturnType, reportArgumentType]


# ---- Other runs ------------------------------------------------------------------------------------------------------------------------


def test_a_run_without_completions_has_a_page_too(tmp_path: Path, chromium: Any) -> None:
    StepLines(tmp_path / "metrics.jsonl").add(
        1, {"loss": 1.0, "loss/sigmoid": 0.7, "loss/sft": 0.3, "rewards/margins": 0.1}
    )
    with opened(chromium, write_report(tmp_path)) as seen:
        assert seen.page.locator("#charts h3").all_inner_texts() == ["Implicit rewards", "Loss", "Loss by component"]
        assert (
            "count no work" in seen.page.locator("#work").inner_text()
            and "no time line" in seen.page.locator("#time").inner_text()
        )
        assert seen.page.locator("#completions").count() == 0
        assert seen.is_quiet, (seen.complaints, seen.requests)


def test_what_the_page_leaves_out_it_says(folder: Path, tmp_path: Path, chromium: Any) -> None:
    """Too many completions, a lost image, a tokenizer that is gone: counted, and the rest is shown."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "completions" / "tokenizer.json").unlink()
    shared = image("green")
    (copy / "images" / f"{shared.digest}.png").unlink()
    with opened(chromium, write_report(copy, max_completions=16)) as seen:
        wait(seen)
        note = seen.page.locator("#completions-note").inner_text()
        assert note == "16 of 24 · 1 step left out, evenly (--max-completions) · 1 image file missing"
        assert seen.page.locator("#filters [name=step] option").all_inner_texts() == ["all", "3", "1"]
        assert seen.page.locator(".shade").count() == 0 and len(said(seen)) == K
        choose(seen, text="prompt 1 at step 3")
        assert "1 of its images is missing" in seen.page.locator("#detail").inner_text()
        assert seen.is_quiet, (seen.complaints, seen.requests)


def test_what_is_left_out_is_spread_over_the_run(tmp_path: Path) -> None:
    write_run(tmp_path, num_steps=9, num_prompts=1)
    data = report_data(tmp_path, max_completions=5 * K)
    assert (data["completions"]["num"], data["completions"]["steps_left_out"]) == (9 * K, 4)
    assert report_data(tmp_path, max_completions=9 * K)["completions"]["steps_left_out"] == 0
    assert report_data(tmp_path, max_completions=1)["completions"]["steps_left_out"] == 7  # the first and the last stay

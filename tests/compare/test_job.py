"""A comparison from start to end: what is asked again and what is not, and how answers are marked."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from rich.console import Console

from boresight.compare import AnswerSettings, Candidate, answering, compare, job, stored_comparison
from boresight.compare.answers import Answer, AnswerStore
from boresight.compare.markdown import as_markdown
from boresight.compare.marking import chosen_reward, score
from boresight.compare.page import comparison_page
from boresight.compare.terminal import tables
from boresight.errors import ConfigError, DataError, RewardError
from boresight.types import Row

SHORT = AnswerSettings(max_completion_length=5, batch_size=4)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Which model was loaded for how many questions."""
    calls: list[tuple[str, int]] = []
    real = answering.answer

    def counted(source: str, rows: list[Row], settings: AnswerSettings, **options: Any) -> Iterator[Any]:
        calls.append((Path(source).name, len(rows)))
        return real(source, rows, settings, **options)

    monkeypatch.setattr(job, "answer", counted)
    return calls


def test_nothing_is_asked_twice(
    base: str, other: str, questions: Dataset, tmp_path: Path, asked: list[tuple[str, int]], caplog: Any
) -> None:
    one, two = Candidate("one", base), Candidate("two", other)
    first = compare([one], questions, tmp_path, settings=SHORT)
    assert asked == [("base", 6)]
    compare([one, two], questions, tmp_path, settings=SHORT)
    assert asked[1:] == [("other", 6)]  # a model more: it alone
    again = compare([one, two], questions, tmp_path, settings=SHORT)
    assert len(asked) == 2
    assert again.answers["one"] == first.answers["one"]
    stored = stored_comparison(tmp_path)
    assert len(asked) == 2
    assert stored == again

    longer = Dataset.from_list([*questions.to_list(), questions[0] | {"prompt": _ask("is there a circle?")}])
    compare([one], longer, tmp_path, settings=SHORT)
    assert asked[2:] == [("base", 1)]  # a question more: it alone
    assert not [record for record in caplog.records if record.name.startswith("boresight")]
    compare([one], questions, tmp_path, settings=AnswerSettings(max_completion_length=3))
    assert asked[3:] == [("base", 6)]
    assert "one is asked again: max_completion_length changed since the last time" in caplog.text
    compare([Candidate("one", other)], questions, tmp_path, settings=AnswerSettings(max_completion_length=3))
    assert asked[4:] == [("other", 6)]
    assert "weights changed" in caplog.text


def _ask(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": text}]}]


def test_an_interrupt_keeps_what_was_answered(
    base: str, questions: Dataset, tmp_path: Path, asked: list[tuple[str, int]]
) -> None:
    def interrupt(name: str, done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare([Candidate("one", base)], questions, tmp_path, settings=SHORT, progress=interrupt)
    whole = compare([Candidate("one", base)], questions, tmp_path, settings=SHORT)
    assert asked == [("base", 6), ("base", 2)]
    assert len(whole.answers["one"]) == 6


def test_one_model_is_in_memory_at_a_time(
    base: str, other: str, questions: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[weakref.ref[Any]] = []
    alive: list[int] = []
    real: Callable[..., Any] = answering.load_model

    def watched(*args: Any, **options: Any) -> Any:
        alive.append(sum(model() is not None for model in loaded))
        model = real(*args, **options)
        loaded.append(weakref.ref(model))
        return model

    monkeypatch.setattr(answering, "load_model", watched)
    compare([Candidate("one", base), Candidate("two", other)], questions, tmp_path, settings=SHORT)
    assert alive == [0, 0]


def test_rewards_mark_what_they_are_given(base: str, questions: Dataset, tmp_path: Path) -> None:
    """A reward of one's own sees columns, ids, images and their sizes; below `right_at` is wrong, None is unmarked."""
    seen: dict[str, list[Any]] = {}

    def graded(
        completions: Any, completion_ids: Any, images: Any, model_image_sizes: Any, kind: Any, **_: Any
    ) -> list[float | None]:
        seen.update(ids=completion_ids, images=images, sizes=model_image_sizes, kinds=kind)
        return [None, 0.2, 0.5, 0.75, 1.0, 0.0]

    found = compare([Candidate("one", base)], questions, tmp_path, settings=SHORT, reward=graded, right_at=0.5)
    assert found.reward == "graded"
    assert found.marks["one"] == [None, False, True, True, True, False]
    assert found.accuracies["one"].unmarked == 1
    assert found.mean_scores == {"one": pytest.approx(2.45 / 5)}
    assert [tuple(ids) for ids in seen["ids"]] == [given.ids for given in found.answers["one"]]
    assert [image.size for (image,) in seen["images"]] == [(64, 64)] * 6
    assert [len(sizes) for sizes in seen["sizes"]] == [1] * 6
    assert seen["kinds"] == questions["kind"]


def test_a_reward_that_fails_stops_the_comparison_and_keeps_the_answers(
    base: str, questions: Dataset, tmp_path: Path, asked: list[tuple[str, int]]
) -> None:
    def broken(completions: Any, **_: Any) -> list[float]:
        raise ZeroDivisionError("no")

    with pytest.raises(RewardError, match="ZeroDivisionError"):
        compare([Candidate("one", base)], questions, tmp_path, settings=SHORT, reward=broken)
    compare([Candidate("one", base)], questions, tmp_path, settings=SHORT)
    assert asked == [("base", 6)]


def test_some_rows_keep_their_numbers(base: str, questions: Dataset, tmp_path: Path) -> None:
    found = compare([Candidate("one", base)], questions, tmp_path, settings=SHORT, places=[1, 4])
    assert [question.row for question in found.questions] == [1, 4]


def test_a_question_that_comes_twice_has_both_solutions(base: str, questions: Dataset, tmp_path: Path) -> None:
    """Each is marked by its own, also when the page is made anew."""
    twice = Dataset.from_list([questions[0], questions[0] | {"solution": "B"}])

    def is_b(completions: Any, solution: Any, **_: Any) -> list[float]:
        return [float(gold == "B") for gold in solution]

    found = compare([Candidate("one", base)], twice, tmp_path, settings=SHORT, reward=is_b)
    assert found.marks["one"] == [False, True]
    assert stored_comparison(tmp_path).marks["one"] == [False, True]


@pytest.mark.parametrize(
    ("golds", "reward"),
    [
        (["B", "A", "(C)"], "choice_letter_reward"),
        (["<think>so</think><answer>D</answer>", "A. 130"], "choice_letter_reward"),
        (["12", "-3.5", "40°", "3/4"], "numeric_answer_reward"),
        (["$x^2$", r"\frac{1}{2}"], "accuracy_reward"),
        (["x^2 + 1", "3"], "accuracy_reward"),
        (["b", "a"], "choice_letter_reward"),
        (["blue", "no"], "exact_answer_reward"),
        (["B", "blue"], "exact_answer_reward"),
        (["12", "12 of them"], "exact_answer_reward"),
    ],
)
def test_the_reward_that_suits_the_solutions(golds: list[str], reward: str) -> None:
    rows = [Row(place, "what?", (), (), {"solution": gold}) for place, gold in enumerate(golds)]
    assert chosen_reward(rows) == reward
    (name, marked) = score(reward, rows, [Answer(f"<answer>{gold}</answer>", (1,), False) for gold in golds])
    if "<think>" not in golds[0]:
        assert [given.scores[name] for given in marked] == [1.0] * len(golds)  # it knows the gold when it sees it


def test_an_answer_is_marked_as_in_training() -> None:
    """Its prompt may end with <think>, which the answer then leaves out; where it does not, the answer has to open it."""
    rows = [Row(place, "what?", (), (), {"solution": "B"}) for place in range(2)]
    text = "so</think><answer>B</answer>"
    given = [Answer(text, (1,), False, think_opened=opened) for opened in (True, False)]
    name, marked = score("answer_format_reward", rows, given)
    assert [each.scores[name] for each in marked] == [1.0, 0.0]


def test_rows_without_a_solution_name_the_way_out() -> None:
    rows = [Row(3, "what?", (), (), {"solution": "B"}), Row(4, "what?", (), (), {})]
    with pytest.raises(ConfigError, match=r"1 rows have no solution \(row 4 first\).*--solution_column"):
        chosen_reward(rows)


@pytest.mark.parametrize(
    ("text", "name", "source"),
    [
        ("base=runs/base/model", "base", "runs/base/model"),
        ("runs/grpo/model", "grpo", "runs/grpo/model"),
        ("runs/mpo", "mpo", "runs/mpo"),
        ("Qwen/Qwen2.5-VL-3B-Instruct", "Qwen2.5-VL-3B-Instruct", "Qwen/Qwen2.5-VL-3B-Instruct"),
    ],
)
def test_a_candidate_as_people_type_it(text: str, name: str, source: str) -> None:
    assert Candidate.parse(text) == Candidate(name, source)


@pytest.mark.parametrize("text", ["base=", "=runs/base", "a/b=runs/base", "..=runs"])
def test_a_candidate_that_is_none(text: str) -> None:
    with pytest.raises(ConfigError, match=r"NAME=FOLDER|cannot be called"):
        Candidate.parse(text)


def test_what_cannot_be_compared(base: str, questions: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="There is no model to compare"):
        compare([], questions, tmp_path)
    with pytest.raises(ConfigError, match="Two models are called 'one'"):
        compare([Candidate("one", base), Candidate("one", base)], questions, tmp_path)
    with pytest.raises(DataError, match="holds no comparison"):
        stored_comparison(tmp_path / "nothing")
    messages = Dataset.from_list([{"messages": [*_ask("so?"), {"role": "assistant", "content": []}]}])
    with pytest.raises(DataError, match="row 0"):
        compare([Candidate("one", base)], messages, tmp_path)
    assert not (tmp_path / "answers").exists()


def test_answers_that_are_missing_are_not_passed_over(base: str, questions: Dataset, tmp_path: Path) -> None:
    compare([Candidate("one", base)], questions, tmp_path, settings=SHORT)
    store = AnswerStore(tmp_path)
    settings, answers = store.answers("one")
    answers.pop(next(iter(answers)))
    store.keep_answers("one", settings, answers)
    with pytest.raises(DataError, match="one has not answered 1 of 6 questions"):
        stored_comparison(tmp_path)


def test_nothing_is_said_while_all_is_well(
    base: str, questions: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        compare([Candidate("one", base)], questions, tmp_path, settings=SHORT)
    assert not [record for record in caplog.records if record.name.startswith("boresight")]


def test_every_checkpoint_of_a_run_is_a_candidate_in_order(tmp_path: Path) -> None:
    for step in (100, 20, 3):
        (tmp_path / "grpo" / f"checkpoint-{step}").mkdir(parents=True)
    (tmp_path / "grpo" / "checkpoint-old").mkdir()
    found = Candidate.all_of(f"mine={tmp_path}/grpo/checkpoint-*")
    assert [each.name for each in found] == ["mine-3", "mine-20", "mine-100"]
    assert found[1].source == str(tmp_path / "grpo" / "checkpoint-20")
    assert [each.name for each in Candidate.all_of(f"{tmp_path}/grpo/checkpoint-1*")] == ["grpo-100"]
    assert Candidate.all_of("base=org/model") == [Candidate("base", "org/model")]
    with pytest.raises(ConfigError, match="no folder is called so"):
        Candidate.all_of(f"mine={tmp_path}/nothing/checkpoint-*")


def test_several_samples_of_each_question(
    base: str, questions: Dataset, tmp_path: Path, asked: list[tuple[str, int]]
) -> None:
    """The first is the answer that is compared; all are marked, stored, and shown by page, terminal and Markdown."""
    settings = AnswerSettings(max_completion_length=5, temperature=1.0, num_samples=3, batch_size=4)
    first = compare([Candidate("one", base)], questions, tmp_path, settings=settings)
    samples = first.samples["one"]
    assert [len(each) for each in samples] == [3] * 6
    assert [each[0] for each in samples] == first.answers["one"]
    assert len({answer.ids for each in samples for answer in each}) > 6
    assert all(first.reward in answer.scores for each in samples for answer in each)
    again = compare([Candidate("one", base)], questions, tmp_path, settings=settings)
    assert again == first == stored_comparison(tmp_path) and len(asked) == 1
    assert list(first.passes["one"].at) == [1, 2, 3]
    assert "pass@3" in comparison_page(first) and "| all samples | mean accuracy |" in as_markdown(first)
    screen = Console(width=100, file=StringIO())
    screen.print(first)
    titles = [str(table.columns[0].header) for table in tables(first)]
    assert [title for title in titles if title not in screen.file.getvalue()] == []
    assert "all samples" in titles


def test_samples_need_a_temperature() -> None:
    with pytest.raises(ConfigError, match="num_samples=4 asks for the same greedy answer 4 times"):
        AnswerSettings(num_samples=4)
    with pytest.raises(ConfigError, match="num_samples=0: it must be at least 1"):
        AnswerSettings(num_samples=0, temperature=1.0)

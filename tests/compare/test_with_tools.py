"""Models that are compared with tools: their turns are kept, counted and shown as those of a run are."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from rich.console import Console
from transformers import AutoProcessor

from boresight.compare import AnswerSettings, Candidate, ToolSettings, answering, compare, stored_comparison
from boresight.compare.markdown import as_markdown
from boresight.compare.page import comparison_page
from boresight.compare.terminal import tables
from boresight.demo.tiny.qwen import CONTENT, chatml_with_tools
from boresight.errors import ConfigError, ModelError
from boresight.rollout.hf import HFSampler
from boresight.sampling import SamplingSettings
from boresight.tools import ImageTools
from boresight.tools.options import ToolOptions
from boresight.types import Completion, Group, Prompt
from tests.browser import WIDE, opened
from tests.trainer.scripted import call

ZOOM = call("zoom", left=0, top=0, right=500, bottom=500)
FIRST_TURNS = ["I look. " + ZOOM, ZOOM + call("calculator", expression="1 / 0"), None, call("read", page=3)]
"""What the policy says first, by row; None: what it samples."""


class Calling(HFSampler):
    """Calls tools in the first turn; later turns are the model's own."""

    def sample(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> list[Group]:
        return [
            replace(group, completions=tuple(self._said(group.prompt, own) for own in group.completions))
            for group in super().sample(prompts, settings)
        ]

    def _said(self, prompt: Prompt, sampled: Completion) -> Completion:
        text = FIRST_TURNS[prompt.row.index] if prompt.row.index < len(FIRST_TURNS) else None
        if text is None or prompt.begun is not None or not describes_tools(prompt, self.tokenizer):
            return sampled
        ids = torch.tensor([*self.tokenizer(text, add_special_tokens=False)["input_ids"], self.facts.stop_ids[0]])
        return Completion(ids, torch.ones(len(ids), dtype=torch.bool), text, torch.zeros(len(ids)))


def describes_tools(prompt: Prompt, tokenizer: Any) -> bool:
    return "# Tools" in tokenizer.decode(prompt.ids)


@pytest.fixture(scope="module")
def caller(base: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """`base`, with a chat template that describes tools."""
    folder = tmp_path_factory.mktemp("models") / "caller"
    folder.mkdir()
    for file in Path(base).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    processor: Any = AutoProcessor.from_pretrained(folder)
    processor.chat_template = processor.tokenizer.chat_template = chatml_with_tools(CONTENT)
    processor.save_pretrained(folder)
    return str(folder)


def settings(**options: Any) -> AnswerSettings:
    tools = ToolSettings(("calculator",), ImageTools, ToolOptions(**{"max_tool_calling_iterations": 1, **options}))
    return AnswerSettings(max_completion_length=400, tools=tools)


def test_turns_are_kept_counted_and_shown(
    caller: str, questions: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chromium: Any
) -> None:
    monkeypatch.setattr(answering, "HFSampler", Calling)
    monkeypatch.setattr("boresight.rollout.hf.HFSampler._complete", brief(HFSampler._complete))
    candidates = [Candidate("with", caller), Candidate("bare", caller)]
    found = compare(candidates, questions, tmp_path, settings=settings(), without_tools=["bare"])
    first, second, third, fourth, *_ = found.answers["with"]
    assert [turn["role"] for turn in first.turns] == ["assistant", "tool", "assistant"]
    assert first.turns[0]["text"] == "I look."
    assert first.turns[0]["calls"] == ["zoom(left=0, top=0, right=500, bottom=500)"]
    (name,) = first.turns[1]["images"]
    assert (found.images / name).exists() and name not in found.questions[0].images
    assert first.text == first.turns[2]["text"]  # the answer, which is marked
    assert [(each.num_calls, each.num_failed_calls) for each in found.answers["with"][:4]] == [
        (1, 0), (2, 1), (0, 0), (1, 1),
    ]  # fmt: skip
    assert "ZeroDivisionError" in second.turns[2]["text"] and "there is no tool 'read'" in fourth.turns[1]["text"]
    assert third.turns == () and third.transcript == third.text
    assert {each.num_calls for each in found.answers["bare"]} == {None}
    calls = found.calls
    assert calls.keys() == {"with"}
    assert (calls["with"].made, calls["with"].failed, calls["with"].without) == (4, 2, len(questions) - 3)
    assert stored_comparison(tmp_path).answers == found.answers  # all of it is read back

    markdown = as_markdown(found, max_quoted=len(questions))
    assert f"| with | {4 / len(questions):.2f} | 2 of 4 | {len(questions) - 3} | 0 |" in markdown
    assert "→ zoom\\(left=0, top=0, right=500, bottom=500\\)<br>← zoom: \\<image\\>" in markdown
    console = Console(width=80, record=True, file=io.StringIO())
    for table in tables(found):
        console.print(table)
    assert "2 of 4" in (printed := console.export_text()) and "…" not in printed.partition("commonest")[0]

    page = tmp_path / "compare.html"
    page.write_text(comparison_page(found))
    with opened(chromium, page, width=WIDE) as seen:
        seen.page.wait_for_selector("html[data-ready]", state="attached")
        card = seen.page.locator("article.question[data-row='0']")
        shown = card.locator(".answer[data-model='with']")
        assert shown.locator(".turn.tool img").count() == 1
        assert shown.locator(".call").all_inner_texts() == ["zoom(left=0, top=0, right=500, bottom=500)"]
        assert card.locator(".answer[data-model='bare'] .turn").count() == 0
        seen.page.locator("select[name=show]").select_option("failed")
        rows = seen.page.locator("article.question").evaluate_all("all => all.map(one => one.dataset.row)")
        assert rows == ["1", "3"]
        seen.page.locator("select[name=show]").select_option("all")
        seen.page.locator("input[name=find]").fill("ZeroDivision")
        assert seen.page.locator("article.question").count() == 1
        assert seen.is_quiet, seen.complaints
        assert seen.overflow() == 0


def brief(complete: Any) -> Any:
    """A model of random weights answers with three tokens."""

    def few(self: Any, prompts: Any, decoder: Any, distribution: Any, numbers: Any, stop_ids: Any) -> Any:
        return complete(self, prompts, decoder, distribution, numbers[:, :3], stop_ids)

    return few


def test_what_an_answer_depends_on_names_the_tools() -> None:
    described = settings(max_tool_images=2).described()
    assert described["tools"] == "calculator"
    assert described["environment_factory"] == "boresight.tools.looking.ImageTools"
    assert (described["max_tool_calling_iterations"], described["max_tool_images"]) == ("1", "2")
    assert "tool_timeout" not in described
    other = ToolSettings((), "RelativeImageTools").described()
    assert other["source of the tools"] != ToolSettings((), "ImageTools").described()["source of the tools"]
    assert settings(tool_workers=0).described() == settings().described()


@pytest.mark.parametrize(
    ("tools", "without", "message"),
    [
        (ToolSettings(("calcualtor",)), (), "Did you mean 'calculator'?"),
        (ToolSettings((), "ImageTool"), (), "Did you mean 'ImageTools'?"),
        (ToolSettings(("calculator",)), ("b",), "no model is called so"),
        (ToolSettings(), ("a",), "--without_tools has no effect"),
    ],
)
def test_tools_that_are_not_there(
    base: str, questions: Dataset, tmp_path: Path, tools: ToolSettings, without: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        compare(
            [Candidate("a", base)], questions, tmp_path, settings=AnswerSettings(tools=tools), without_tools=without
        )


def test_a_template_without_tools_is_named(base: str, questions: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="template"):
        compare([Candidate("a", base)], questions, tmp_path, settings=settings())


def test_vllm_takes_no_tools() -> None:
    with pytest.raises(ConfigError, match="tools are called between turns"):
        AnswerSettings(use_vllm=True, tools=ToolSettings(("calculator",)))

"""S7: one geometry question with a figure, answered by the base model, MPO, GRPO and GSPO, side by side with the data set's answer."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from boresight import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer
from boresight.cli import main
from boresight.demo.geometry import sample_question
from tests import forks
from tests.browser import PHONE, WIDE, opened

SAMPLE = Path(__file__).parents[2] / "examples" / "data" / "geometry"
QUESTION = "If angle APO is 25.0°, what is angle AOB?"
PIXELS = 112 * 112
"""Of the figure as the models see it: a tiny model has no use for more."""
NAMES = ("base", "mpo", "grpo", "gspo")


def pair(letter: str) -> list[dict[str, Any]]:
    said = f"<think>twice 65°</think><answer>{letter}</answer>"
    return [{"role": "assistant", "content": [{"type": "text", "text": said}]}]


@pytest.fixture(scope="module")
def models(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """MPO learns the question by heart; GRPO and GSPO take a step each. All three from one base."""
    folder = tmp_path_factory.mktemp("four")
    question = sample_question()
    common: dict[str, Any] = {
        "report_to": "none",
        "save_strategy": "no",
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "max_pixels": PIXELS,
    }
    pairs = Dataset.from_list([{**question[0], "chosen": pair("B"), "rejected": pair("C")}])
    config = DPOConfig(
        output_dir=str(folder / "mpo"),
        loss_type=["sigmoid", "bco_pair", "sft"],
        loss_weights=[0.8, 0.2, 1.0],
        per_device_train_batch_size=1,
        learning_rate=5e-3,
        lr_scheduler_type="constant",
        max_steps=12,
        **common,
    )
    trainer: Any = DPOTrainer(str(model_folder), args=config, train_dataset=pairs)
    trainer.train()
    trainer.save_model(str(folder / "mpo"))
    for name, options in {"grpo": {}, "gspo": {"importance_sampling_level": "sequence"}}.items():
        online = GRPOConfig(
            output_dir=str(folder / name),
            num_generations=4,
            per_device_train_batch_size=4,
            max_completion_length=8,
            learning_rate=1e-3,
            max_steps=1,
            gold_check="off",
            **options,
            **common,
        )
        trainer = GRPOTrainer(
            str(model_folder), lambda completions, **_: [float(len(str(c))) for c in completions], online, question
        )
        trainer.train()
        trainer.save_model(str(folder / name))
    return {"base": model_folder, **{name: folder / name for name in NAMES[1:]}}


def typed(models: dict[str, Path], dataset: str) -> list[str]:
    words = [word for name, model in models.items() for word in ("--model", f"{name}={model}")]
    how = ["--max_completion_length", "32", "--max_pixels", str(PIXELS)]
    return ["compare", *words, "--dataset", dataset, *how, "--output", "compare.html"]


@pytest.fixture(scope="module")
def compared(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which somebody typed `boresight compare`."""
    folder = tmp_path_factory.mktemp("typed")
    done = forks.run("boresight.cli", *typed(models, str(SAMPLE)), "--markdown", cwd=folder, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "marked by choice_letter_reward" in done.stdout
    assert re.search(r"mpo +1 of 1 +100\.0 %", done.stdout), done.stdout
    assert re.search(r"base → mpo +1 +0 +0 +0 +\+100\.0", done.stdout), done.stdout
    return folder


def test_markdown_beside_it(compared: Path) -> None:
    told = (compared / "compare.md").read_text()
    assert QUESTION in told
    assert "| **data set** |  | B |" in told
    assert "| mpo | ✓ | \\<think\\>twice 65°\\</think\\>\\<answer\\>B\\</answer\\> |" in told
    assert told.count("| ✗ |") == 3


@pytest.mark.parametrize("width", [WIDE, PHONE])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_in_a_browser(compared: Path, chromium: Any, width: int, scheme: Any) -> None:
    with opened(chromium, compared / "compare.html", width=width, scheme=scheme) as seen:
        page = seen.page
        page.wait_for_selector("html[data-ready]", state="attached")
        assert QUESTION in page.inner_text("article .asked")
        assert page.inner_text("article .gold b") == "B"
        names = page.eval_on_selector_all(".answer .name", "all => all.map(one => one.textContent)")
        assert names == list(NAMES)
        assert page.inner_text(".answer[data-model=mpo] .tag") == "✓ right"
        assert page.inner_text(".answer[data-model=base] .tag") == "✗ wrong"
        shown: Callable[[], int] = lambda: len(page.query_selector_all("article"))  # noqa: E731
        page.select_option("select[name=show]", label="fixed by mpo")
        assert shown() == 1
        page.select_option("select[name=show]", label="all wrong")
        assert shown() == 0
        page.click("#clear")
        assert shown() == 1
        page.click("button.image")
        assert page.evaluate("document.querySelector('#zoom img').naturalWidth") == 448
        page.keyboard.press("Escape")
        assert seen.overflow() <= 0
        assert seen.is_quiet, (seen.requests, seen.complaints)


def test_the_sample_is_built_in(models: dict[str, Path], compared: Path) -> None:
    """By its name, without the folder: the same question, so that nothing has to be asked again; and the page anew without models."""
    before = (compared / "compare.html").read_text()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(compared)
        patch.setattr("boresight.compare.job.answer", None)  # nobody is asked
        assert main(typed(models, "geometry_sample")) == 0
        assert main(["compare", "--output", "compare.html", "--title", "base · mpo · grpo · gspo on geometry"]) == 0
    assert (compared / "compare.html").read_text() == before

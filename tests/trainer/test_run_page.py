"""What a real run leaves in its folder is enough for its page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers.integrations import integration_utils

from boresight import SFTConfig
from boresight.report import read_lines
from boresight.report.page import report_data, write_report
from boresight.report.tokens import TokenTexts
from boresight.report.trackers import TRACKERS
from boresight.trainer.identity import changed_options, options_of
from tests.browser import opened

from .conftest import Run, records


def test_completions_reach_a_tracker_beside_the_numbers(
    grpo: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through transformers' own callback, at the steps that are logged."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "tb"))
    trainer = grpo(
        max_steps=4, per_device_train_batch_size=8, logging_steps=2, report_to=["tensorboard"], log_completions=True,
        train_dataset=[row for row in records() if row["image"]][:4], num_completions_to_print=3,
    )  # fmt: skip
    trainer.train()
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    texts = events.Tensors("completions/text_summary")
    assert [text.step for text in texts] == [1, 2, 4]
    assert len(texts[0].tensor_proto.string_val[0].decode().splitlines()) == 2 + 3
    assert "completions/image_1" in events.Tags()["images"] and "train/reward" in events.Tags()["scalars"]


def test_trackers_are_known_by_the_names_of_transformers_callbacks() -> None:
    known = {integration_utils.INTEGRATION_TO_CALLBACK[name].__name__ for name, _ in TRACKERS.values()}
    assert known == set(TRACKERS)


def test_a_grpo_run_has_a_whole_page(grpo: Run, chromium: Any) -> None:
    trainer = grpo(
        max_steps=2,
        per_device_train_batch_size=8,
        train_dataset=[row for row in records() if row["image"]][:4],
        beta=0.1,
    )
    trainer.train()
    folder = Path(trainer.args.output_dir)
    data = report_data(folder)
    facts = {fact["name"]: fact["value"] for fact in data["facts"]}
    assert facts["steps"] == "2" and facts["image encodes saved"] == "75%" and facts["prompt tokens saved"] == "75%"
    assert data["metrics_from"] == "metrics.jsonl"
    assert {"Reward", "Reward by function", "KL to the reference", "Length", "Clipped", "Loss"} <= {
        chart["title"] for chart in data["charts"]
    }
    assert {"sample", "reward", "update"} <= set(data["timeline"]["phases"])
    assert TokenTexts.of_run(folder) is not None
    with opened(chromium, write_report(folder)) as seen:
        seen.page.locator("#list[aria-busy=false]").wait_for()
        assert seen.page.locator("#count").inner_text() == "4 of 4 groups"
        seen.page.locator("#detail").scroll_into_view_if_needed()
        seen.page.locator(".said span").first.wait_for()
        assert seen.page.locator("#detail button.image").count() == 1
        assert seen.is_quiet, (seen.complaints, seen.requests)


@pytest.mark.parametrize("method", ["sft", "grpo"])
def test_every_step_has_a_point_however_rarely_the_run_logs(request: pytest.FixtureRequest, method: str) -> None:
    """A log is the mean of its steps; curves show the steps. An interrupted run's steps are as an uninterrupted one's: test_resume."""
    run: Run = request.getfixturevalue(method)
    trainer = run(max_steps=5, logging_steps=4, learning_rate=1e-3, lr_scheduler_type="linear")
    trainer.train()
    folder = Path(trainer.args.output_dir)
    steps = read_lines(folder / "steps.jsonl")
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5]
    assert [line["learning_rate"] for line in steps] == pytest.approx([8e-4, 6e-4, 4e-4, 2e-4, 0])
    logs = [line for line in read_lines(folder / "metrics.jsonl") if "loss" in line]
    assert [line["step"] for line in logs] == [1, 4, 5]
    name = "reward" if method == "grpo" else "loss"
    assert logs[1][name] == pytest.approx(sum(line[name] for line in steps[1:4]) / 3, abs=1e-4)
    assert logs[1]["grad_norm"] == pytest.approx(steps[3]["grad_norm"])
    assert not any(key.startswith(("time/", "work/")) for line in steps for key in line)
    assert report_data(folder)["series"][name]["steps"] == [1, 2, 3, 4, 5]
    set_here = dict(report_data(folder)["set_up"]["chosen"])
    assert set_here["max_steps"] == "5" and set_here["learning_rate"] == "0.001" and "adam_beta1" not in set_here


def test_a_token_of_the_hub_is_masked_and_others_are_as_they_are(tmp_path: Path) -> None:
    plain = SFTConfig(output_dir=str(tmp_path))
    assert (options_of(plain)["hub_token"], options_of(plain)["eos_token"]) == (None, None)
    assert changed_options(plain) == ["output_dir"]
    secret = SFTConfig(output_dir=str(tmp_path), hub_token="hf_secret", learning_rate=0.5, gradient_checkpointing=False)
    assert options_of(secret)["hub_token"] == "<HUB_TOKEN>"
    assert sorted(changed_options(secret)) == ["gradient_checkpointing", "hub_token", "learning_rate", "output_dir"]

"""What a real run leaves in its folder is enough for its page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers.integrations import integration_utils

from boresight.report.page import report_data, write_report
from boresight.report.tokens import TokenTexts
from boresight.report.trackers import TRACKERS
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

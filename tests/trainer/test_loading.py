from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, IterableDataset

from .conftest import Run, demonstrations, records, weights
from .test_resume import GRPO, Stop, same


def stream(rows: list[dict[str, Any]]) -> IterableDataset:
    """The rows as a set that can only be walked through; images as plain bytes."""
    plain = [{**row, "image": row["image"] and row["image"]["bytes"]} for row in rows]
    return Dataset.from_list(plain).to_iterable_dataset()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_teaches_what_its_rows_do(sft: Run, workers: int) -> None:
    options = {"max_steps": 2, "per_device_train_batch_size": 4, "dataloader_num_workers": workers}
    indexed = sft(shuffle_dataset=False, **options)
    indexed.train()
    walked = sft(train_dataset=stream(demonstrations()), **options)
    walked.train()
    assert same(weights(indexed), weights(walked))


def test_a_stream_resumes_within_a_draw(grpo: Run, tmp_path: Path) -> None:
    options = {**GRPO, "save_strategy": "steps", "save_steps": 1, "train_dataset": stream(records())}
    whole = grpo(output_dir=str(tmp_path / "whole"), **options)
    whole.train()
    grpo(output_dir=str(tmp_path / "cut"), callbacks=[Stop(6)], **options).train()
    resumed = grpo(output_dir=str(tmp_path / "cut"), **options)
    resumed.train(resume_from_checkpoint=True)
    assert same(weights(whole), weights(resumed))


def test_a_stream_needs_a_number_of_steps(sft: Run) -> None:
    with pytest.raises(ValueError, match="max_steps"):
        sft(train_dataset=stream(demonstrations()), max_steps=-1).train()

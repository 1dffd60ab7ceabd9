"""A folder belongs to one run: what another left is neither deleted nor mixed with it, and only the same run is continued."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from boresight import SFTConfig, SFTTrainer
from boresight.data.check import Outcome, RowReport, row_digest
from boresight.errors import CheckpointError, ConfigError, DiskError
from boresight.report import read_completions, read_lines
from boresight.trainer.identity import check_same_run, differences
from boresight.trainer.manifest import faults, read_manifest, write_manifest
from boresight.trainer.run_folder import RunFolder
from boresight.types import EncodedImage, Row
from tests import forks

from .conftest import QUIET, Run, demonstrations

SAVES = {"save_strategy": "steps", "save_steps": 1, "per_device_train_batch_size": 4}


def filled(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)
    return folder


def checkpoint(folder: Path, step: int, **run: Any) -> Path:
    found = filled(folder / f"checkpoint-{step}", model__bin=f"weights {step}", optimizer__pt="moments" * step)
    write_manifest(found, step=step, num_ranks=1, run=run)
    return found


# ---- Manifests ------------------------------------------------------------------------------------------------------------------


def test_every_missing_or_damaged_file_is_named(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, 3)
    assert faults(folder) == []
    assert (read_manifest(folder).step, read_manifest(folder).size) == (3, len("weights 3") + 3 * len("moments"))
    (folder / "optimizer.pt").write_text("moments" * 2)
    assert faults(folder) == ["optimizer.pt has 14 of 21 bytes"]
    (folder / "optimizer.pt").write_text("MOMENTS" * 3)
    assert faults(folder) == ["optimizer.pt is damaged (its SHA-256 differs)"]
    assert faults(folder, digests=False) == []
    (folder / "model.bin").unlink()
    assert faults(folder, digests=False) == ["model.bin is missing"]


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"digest": "0"}', "\x00"])
def test_a_damaged_manifest_is_named(tmp_path: Path, content: str) -> None:
    folder = checkpoint(tmp_path, 1)
    (folder / "boresight_manifest.json").write_text(content)
    assert faults(folder) == ["boresight_manifest.json is damaged"]


def test_a_changed_manifest_is_damaged(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, 1)
    file = folder / "boresight_manifest.json"
    file.write_text(file.read_text().replace('"step": 1', '"step": 2'))
    assert faults(folder) == ["boresight_manifest.json is damaged"]


# ---- Checkpoints ----------------------------------------------------------------------------------------------------------------


def test_the_newest_whole_one_is_taken_and_the_others_are_named(tmp_path: Path) -> None:
    said: list[str] = []
    folder = RunFolder(tmp_path, said.append)
    for step in (1, 9, 10, 11):
        checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-11" / "boresight_manifest.json").unlink()
    (tmp_path / "checkpoint-10" / "model.bin").write_text("weights")
    (tmp_path / "checkpoint-best").mkdir()  # none of ours
    assert folder.newest_whole() == tmp_path / "checkpoint-9"
    assert said[0].startswith("passed over checkpoint-11: has no boresight_manifest.json")
    assert said[1:] == [
        "passed over checkpoint-10: model.bin has 7 of 10 bytes",
        f"resuming from {tmp_path / 'checkpoint-9'}",
    ]


def test_without_a_whole_one_there_is_an_error_that_names_them(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with pytest.raises(ConfigError, match="no checkpoint to resume from: leave out resume_from_checkpoint"):
        folder.newest_whole()
    (checkpoint(tmp_path, 2) / "model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"checkpoint-2: model.bin is missing"):
        folder.newest_whole()
    with pytest.raises(CheckpointError, match=r"checkpoint-2 is not whole: model.bin is missing"):
        folder.checkpoint(str(tmp_path / "checkpoint-2"))
    with pytest.raises(ConfigError, match="there is no such folder"):
        folder.checkpoint(str(tmp_path / "checkpoint-3"))


@pytest.mark.parametrize(
    ("limit", "best", "left"),
    [
        (None, None, [1, 2, 9, 10]),
        (1, None, [10]),
        (2, None, [9, 10]),
        (1, 2, [2, 10]),
        (3, 1, [1, 9, 10]),
        (1, 10, [10]),
    ],
)
def test_rotation_keeps_the_newest_and_the_best(
    tmp_path: Path, limit: int | None, best: int | None, left: list[int]
) -> None:
    for step in (1, 2, 9, 10):
        checkpoint(tmp_path, step)
    RunFolder(tmp_path).rotate(limit, keep=None if best is None else f"elsewhere/checkpoint-{best}")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"checkpoint-{step}" for step in left)


def test_a_checkpoint_that_was_not_written_well_does_not_replace_the_one_before_it(tmp_path: Path) -> None:
    target = checkpoint(tmp_path, 1)
    aside = filled(tmp_path / ".saving-checkpoint-1", model__bin="new")
    write_manifest(aside, step=1, num_ranks=1)
    (aside / "model.bin").write_text("half")
    with pytest.raises(CheckpointError, match=r"model.bin has 4 of 3 bytes"):
        RunFolder(tmp_path).publish(aside, target)
    assert faults(target) == [] and (target / "model.bin").read_text() == "weights 1"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


def test_what_a_killed_process_left_is_finished(tmp_path: Path) -> None:
    checkpoint(tmp_path, 1).rename(tmp_path / ".replaced-checkpoint-1")
    filled(tmp_path / ".saving-checkpoint-2", model__bin="half")
    filled(tmp_path / ".removing-0", model__bin="half")
    with RunFolder(tmp_path).held():
        assert sorted(path.name for path in tmp_path.iterdir()) == [".boresight.lock", "checkpoint-1"]
    assert faults(tmp_path / "checkpoint-1") == []


# ---- One run --------------------------------------------------------------------------------------------------------------------

SAVED = {
    "method": "GRPOTrainer",
    "train_dataset": "8 rows, digest a",
    "options": {"num_generations": 4, "beta": 0.0, "max_steps": 3},
}


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"method": "SFTTrainer"}, "method: GRPOTrainer → SFTTrainer"),
        ({"train_dataset": "9 rows, digest b"}, "train_dataset: 8 rows, digest a → 9 rows, digest b"),
        ({"options": {"num_generations": 8, "beta": 0.0}}, "num_generations: 4 → 8"),
        ({"options": {"beta": 0.1}}, "beta: 0.0 → 0.1"),
    ],
)
def test_another_run_is_refused_with_the_difference(changed: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_same_run(SAVED, SAVED | changed, "runs/a/checkpoint-3")
    assert str(caught.value).startswith("runs/a/checkpoint-3 belongs to another run (saved → now):\n")
    assert f"\n  {line}\n" in str(caught.value)


def test_harmless_changes_are_noted() -> None:
    now = SAVED | {
        "options": {"num_generations": 4, "beta": 0, "max_steps": 9, "output_dir": "b", "new_in_this_version": 1}
    }
    assert check_same_run(SAVED | {"options": SAVED["options"] | {"output_dir": "a"}}, now, "x") == ["max_steps: 3 → 9"]
    assert differences(SAVED, SAVED) == ([], [])


def test_a_digest_of_rows_sees_texts_images_columns_and_their_order() -> None:
    def digest(*rows: Row) -> str:
        found = RowReport()
        for number, row in enumerate(rows):
            found.add(Outcome(number, digest=row_digest(row)))
        return found.digest

    def row(prompt: str = "a", image: str = "0", **columns: Any) -> Row:
        return Row(0, prompt, (), (EncodedImage(b"", image, (1, 1)),), columns)

    assert digest(row(x=object())) == digest(row(x=object()))  # an address is no content
    different = [(row(),), (row("b"),), (row(image="1"),), (row(x=1),), (row(), row("b")), (row("b"), row())]
    assert len({digest(*rows) for rows in different}) == len(different)


def test_a_folder_of_another_run_is_left_as_it_is(sft: Run, grpo: Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    grpo(output_dir=str(folder), max_steps=2, **{**SAVES, "per_device_train_batch_size": 8}).train()
    (folder / "notes.txt").write_text("mine")
    before = {path: path.read_bytes() for path in folder.rglob("[!.]*") if path.is_file()}
    for again in (sft, grpo):
        with pytest.raises(
            ConfigError, match=r"already holds a run or a model .*overwrite_output_dir=True to move it aside"
        ):
            again(output_dir=str(folder), max_steps=1, per_device_train_batch_size=8).train()
    assert {path: path.read_bytes() for path in before} == before
    sft(output_dir=str(folder), max_steps=1, per_device_train_batch_size=4, overwrite_output_dir=True).train()
    aside = folder / "aside-1"
    moved = {aside / path.relative_to(folder): content for path, content in before.items()}
    moved.pop(aside / "notes.txt")
    assert {path: path.read_bytes() for path in moved} == moved
    assert len(read_completions(aside)) == 16
    assert (folder / "notes.txt").read_text() == "mine"
    assert [line["step"] for line in read_lines(folder / "metrics.jsonl") if "loss" in line] == [1]


def test_only_the_same_run_is_resumed(sft: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / "run")
    sft(output_dir=folder, max_steps=2, **SAVES).train()
    for change, line in (
        ({"weight_decay": 0.1}, "weight_decay: 0.0 → 0.1"),
        ({"train_dataset": demonstrations(12)}, "train_dataset: 24 rows"),
        ({"per_device_train_batch_size": 2}, "groups of a step: 4 → 2"),
    ):
        with pytest.raises(ConfigError, match=line):
            sft(output_dir=folder, max_steps=3, **{**SAVES, **change}).train(resume_from_checkpoint=True)
    # In the configuration, as one path, and split otherwise: the same step of the same run.
    split = {**SAVES, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    resumed = sft(output_dir=folder, max_steps=3, resume_from_checkpoint=f"{folder}/checkpoint-1", **split)
    resumed.train()
    assert resumed.state.global_step == 3
    said = capsys.readouterr().out
    assert "without harm: max_steps: 2 → 3" in said
    assert f"moved checkpoint-2, which come after checkpoint-1, to {folder}/aside-1" in said
    with pytest.raises(ConfigError, match="set one of them"):
        sft(output_dir=folder, overwrite_output_dir=True, **SAVES).train(resume_from_checkpoint=True)


def test_the_folder_of_the_model_is_refused(model_folder: Path, tmp_path: Path) -> None:
    for name in (str(model_folder), f"{model_folder}/../{model_folder.name}/"):
        with pytest.raises(ConfigError, match="is the folder of the model: training would overwrite it"):
            SFTTrainer(str(model_folder), SFTConfig(**QUIET, output_dir=name), demonstrations(8))


def test_two_runs_at_once_are_refused(sft: Run, tmp_path: Path) -> None:
    """The other one is another process; it says which, and the folder is free once it is killed."""
    script, said, folder = tmp_path / "other.py", tmp_path / "said", tmp_path / "run"
    script.write_text(
        "import sys, time; from boresight.trainer.run_folder import RunFolder\n"
        "with RunFolder(sys.argv[1]).held(): print('held', flush=True); time.sleep(60)"
    )
    other = forks.Fork([str(script), str(folder)], said, errors := tmp_path / "errors")
    try:
        while not (said.exists() and said.read_text() == "held\n"):
            assert other.poll() is None, errors.read_text()
            time.sleep(0.05)
        trainer = sft(output_dir=str(folder), max_steps=1, per_device_train_batch_size=4)
        with pytest.raises(ConfigError, match=rf"Another run trains in .* now \(process {other.pid} on "):
            trainer.train()
    finally:
        other.kill()
    trainer.train()
    assert trainer.state.global_step == 1


def test_two_trainers_of_one_process_are_refused(sft: Run, tmp_path: Path) -> None:
    options = {"output_dir": str(tmp_path / "run"), "max_steps": 1, "per_device_train_batch_size": 4}
    inner = sft(**options)

    class TrainsInside(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            with pytest.raises(ConfigError, match="Another trainer of this process"):
                inner.train()

    sft(**options, callbacks=[TrainsInside()]).train()


def test_a_trainer_may_evaluate_before_it_trains(sft: Run, tmp_path: Path) -> None:
    trainer = sft(
        output_dir=str(tmp_path / "run"), max_steps=1, per_device_train_batch_size=4, eval_dataset=demonstrations(4)
    )
    trainer.evaluate()
    trainer.train()
    lines = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in lines if "eval_loss" in line or "loss" in line] == [0, 1]
    with pytest.raises(ConfigError, match="already holds a run"):
        trainer.train()


def test_a_run_file_names_the_run(sft: Run, tmp_path: Path) -> None:
    trainer = sft(output_dir=str(tmp_path / "run"), max_steps=1, per_device_train_batch_size=4)
    trainer.train()
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (run["method"], run["options"]["learning_rate"]) == ("SFTTrainer", 1e-3)
    assert run["train_dataset"].startswith("24 rows, digest ")


@pytest.mark.skipif(
    os.geteuid() == 0 and not Path("/proc/self").is_dir(), reason="needs a folder that root cannot write to"
)
def test_a_folder_that_cannot_be_written_to_is_named_before_the_model_is_loaded(model_folder: Path) -> None:
    with pytest.raises(DiskError, match="output_dir='/proc/nope' cannot be written to"):
        SFTTrainer("no such model", SFTConfig(**QUIET, output_dir="/proc/nope"), demonstrations(8))

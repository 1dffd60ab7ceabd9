"""Whatever ends a run leaves its last finished step: errors of any kind, full disks, kills. Resumed, it ends with the same bits."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, TrainerCallback

from boresight.errors import DiskError
from boresight.files import cause_of_failed_write, check_space
from boresight.trainer.manifest import check_whole, faults
from tests import forks

from .conftest import Run, vowel_share, weights

SFT = {"max_steps": 4, "per_device_train_batch_size": 4, "logging_steps": 4, "weight_decay": 0.1}
GRPO = {
    "max_steps": 4,
    "per_device_train_batch_size": 8,
    "steps_per_generation": 2,
    "num_iterations": 2,
    "logging_steps": 4,
}


class Raises(TrainerCallback):
    """Raises an error at an event of a step."""

    def __init__(self, event: str, step: int, error: BaseException) -> None:
        def raises(args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == step:
                raise error

        setattr(self, event, raises)


def logged(trainer: Any) -> list[dict[str, Any]]:
    lines = [line for line in trainer.state.log_history if "loss" in line]
    return [{name: value for name, value in line.items() if not name.startswith("time/")} for line in lines]


@pytest.mark.parametrize(
    ("event", "error"),
    [
        ("on_step_begin", KeyError("raw")),
        ("on_step_end", RuntimeError("raw")),
        ("on_pre_optimizer_step", KeyboardInterrupt()),
    ],
)
def test_an_error_of_any_kind_leaves_the_last_finished_step(
    sft: Run, tmp_path: Path, event: str, error: BaseException
) -> None:
    """At the begin of step 3, in its middle, and after step 2 is done; nothing else saves a checkpoint. The sums between two logs go on."""
    whole = sft(output_dir=str(tmp_path / "whole"), **SFT)
    whole.train()
    folder = tmp_path / "ended"
    with pytest.raises(type(error)) as caught:
        sft(output_dir=str(folder), callbacks=[Raises(event, 2, error)], **SFT).train()
    assert f"the last finished step is saved in {folder / 'checkpoint-2'}" in caught.value.__notes__[0]
    resumed = sft(output_dir=str(folder), **SFT)
    resumed.train(resume_from_checkpoint=True)
    assert all(torch.equal(value, weights(resumed)[name]) for name, value in weights(whole).items())
    assert logged(resumed) == logged(whole)
    assert [line["step"] for line in logged(whole)] == [1, SFT["max_steps"]]


def test_a_reward_that_raises_within_a_rollout_is_scored_again(grpo: Run, tmp_path: Path) -> None:
    """The sampler's random states and the rollout's metrics are those before the step."""

    def fails_at_the_second_rollout(completions: list[Any], trainer_state: Any, **columns: Any) -> list[float]:
        if fails and trainer_state.global_step:
            raise KeyboardInterrupt
        return vowel_share(completions)

    fails = False
    whole = grpo(
        output_dir=str(tmp_path / "whole"), reward_funcs=fails_at_the_second_rollout, **{**GRPO, "max_steps": 6}
    )
    whole.train()
    fails = True
    folder = tmp_path / "ended"
    ended = grpo(output_dir=str(folder), reward_funcs=fails_at_the_second_rollout, **{**GRPO, "max_steps": 6})
    with pytest.raises(KeyboardInterrupt) as caught:
        ended.train()
    assert "checkpoint-4" in caught.value.__notes__[0]
    fails = False
    resumed = grpo(output_dir=str(folder), reward_funcs=fails_at_the_second_rollout, **{**GRPO, "max_steps": 6})
    resumed.train(resume_from_checkpoint=True)
    assert all(torch.equal(value, weights(resumed)[name]) for name, value in weights(whole).items())
    assert logged(resumed) == logged(whole)


def test_weights_that_are_being_changed_are_not_saved(sft: Run, tmp_path: Path) -> None:
    trainer = sft(output_dir=str(tmp_path / "run"), callbacks=[Raises("on_optimizer_step", 2, OSError("raw"))], **SFT)
    with pytest.raises(OSError, match="raw") as caught:
        trainer.train()
    assert (
        "no checkpoint of step 2 was saved, because the optimizer was changing the weights" in caught.value.__notes__[0]
    )
    assert not [*(tmp_path / "run").glob("checkpoint-*")]


# ---- The disk -------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """A real limit of the operating system: what is written beyond it fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class Limits(TrainerCallback):
    """Sets the limit after a step."""

    def __init__(self, step: int, size: int) -> None:
        self.step, self.size, self.held = step, size, contextlib.ExitStack()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            self.held.enter_context(files_of_at_most(self.size))


@pytest.mark.parametrize("size", [200_000, 1_000_000])
def test_a_write_that_fails_is_named_and_leaves_the_last_checkpoint(sft: Run, tmp_path: Path, size: int) -> None:
    """The model's file fails, or only the optimizer's, which is larger."""
    limits = Limits(2, size)
    folder = tmp_path / "run"
    saves = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1}
    with (
        limits.held,
        pytest.raises(
            DiskError,
            match=r"checkpoint-2 was not saved: (File too large|the write ended early).*The last whole checkpoint is .*checkpoint-1",
        ),
    ):
        sft(output_dir=str(folder), callbacks=[limits], **SFT, **saves).train()
    assert [path.name for path in folder.glob("*checkpoint*")] == ["checkpoint-1"]
    assert faults(folder / "checkpoint-1") == []
    resumed = sft(output_dir=str(folder), **SFT, **saves)
    resumed.train(resume_from_checkpoint=True)
    before = folder / "model.safetensors"
    resumed.save_model()
    assert check_whole(folder).step == 4
    kept = before.read_bytes()
    with files_of_at_most(200_000), pytest.raises(DiskError, match="was not saved: File too large"):
        resumed.save_model()
    assert before.read_bytes() == kept and faults(folder) == []
    assert not [*folder.glob(".saving*")]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 6 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = shutil.which("mount") and os.geteuid() == 0
    if (
        not mounted
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", folder], check=False).returncode
    ):
        pytest.skip("no permission to mount a disk")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk(sft: Run, small_disk: Path) -> None:
    folder = small_disk / "run"
    with pytest.raises(
        DiskError, match=r"checkpoint of step \d takes .* MiB, and the disk of .* free.*The last whole checkpoint is"
    ):
        sft(output_dir=str(folder), **SFT, save_strategy="steps", save_steps=1).train()
    assert [path.name for path in folder.iterdir() if path.name.startswith((".saving", ".removing"))] == []
    found = sorted(folder.glob("checkpoint-*"))
    assert found and not any(faults(path) for path in found)
    shutil.rmtree(found[0])
    resumed = sft(output_dir=str(folder), **SFT, save_strategy="steps", save_steps=1, save_total_limit=1)
    resumed.train(resume_from_checkpoint=True)
    assert AutoModelForImageTextToText.from_pretrained(folder / "checkpoint-4") is not None


def test_room_is_asked_for_with_both_sizes(tmp_path: Path) -> None:
    check_space(tmp_path / "not" / "there", 1, "It")
    with pytest.raises(DiskError, match=r"^It takes 1073741824\.0 GiB, and the disk of .* has .* free: make room"):
        check_space(tmp_path, 2**60, "It")


def test_why_a_write_failed_is_found_in_what_libraries_raise() -> None:
    found = RuntimeError("unexpected pos 1 vs 0")
    found.__cause__ = OSError(28, "No space left on device")
    assert cause_of_failed_write(found) == "No space left on device"
    theirs = ValueError("I/O error: No space left on device (os error 28)")
    assert cause_of_failed_write(theirs) == "No space left on device"
    assert cause_of_failed_write(ValueError("  other\n words ")) == "other words"


# ---- Kills ----------------------------------------------------------------------------------------------------------------------


def killed(model_folder: Path, folder: Path, trials: int) -> str:
    words = ("tests.trainer.kills", str(model_folder), str(folder), "--trials", str(trials))
    done = forks.run(*words, timeout=200 + 20 * trials)
    assert done.returncode == 0, done.stdout + done.stderr[-5000:]
    return done.stdout


def test_killed_while_it_saves_each_method_resumes_to_the_same_bits(model_folder: Path, tmp_path: Path) -> None:
    assert "'resumed to the same bits': 4" in killed(model_folder, tmp_path / "kills", 4)


@pytest.mark.soak
def test_200_kills(model_folder: Path, tmp_path: Path) -> None:
    print(killed(model_folder, tmp_path / "kills", 240))

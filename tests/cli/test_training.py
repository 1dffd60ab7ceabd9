"""What a signal does to a run, with real signals in a real trainer."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from boresight import SFTTrainer
from boresight.cli import exit_code, read_command, train
from boresight.demo.tiny import build_tiny
from boresight.errors import StoppedError

ROWS = [
    {"prompt": [{"role": "user", "content": f"say {word}"}], "completion": [{"role": "assistant", "content": word}]}
    for word in ("one", "two", "three", "four")
]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny("qwen2_5_vl", tmp_path_factory.mktemp("tiny"), vocab_size=512)


class Press(TrainerCallback):
    """Sends a signal while a step is under way."""

    def __init__(self, step: int, number: signal.Signals, times: int = 1) -> None:
        self.step, self.number, self.times = step, number, times

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step + 1 == self.step:
            for _ in range(self.times):
                signal.raise_signal(self.number)


def trained(model: Path, output_dir: Path, press: Press, *words: str) -> Any:
    base = ["--model_name_or_path", str(model), "--dataset_name", "rows", "--output_dir", str(output_dir), "--use_cpu"]
    command = read_command("sft", [*base, "--max_steps", "4", "--per_device_train_batch_size", "2", *words])
    trainer = SFTTrainer(str(model), command.training, ROWS, callbacks=[press])
    train(command, trainer)
    return trainer


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_once_ends_after_the_step_with_a_checkpoint(model_folder: Path, tmp_path: Path, number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(StoppedError) as caught:
        trained(model_folder, tmp_path, Press(2, number), "--resume-from-checkpoint=None", "--save_strategy", "no")
    assert f"interrupted after step 2 of 4; everything is in {tmp_path / 'checkpoint-2'}." in str(caught.value)
    assert str(caught.value).endswith("--save_strategy no --resume_from_checkpoint last")
    assert str(caught.value).count("resume") == 1
    assert (tmp_path / "checkpoint-2" / "optimizer.pt").exists()
    assert signal.getsignal(number) == before
    assert caught.value.signal == number


def test_twice_ends_at_once_and_names_the_newest_checkpoint(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(StoppedError, match=r"at once, after step 2. Resume from .*checkpoint-2 with: boresight sft"):
        trained(model_folder, tmp_path, Press(3, signal.SIGINT, times=2), "--save_steps", "2")
    assert not (tmp_path / "checkpoint-3").exists()


def test_twice_without_a_checkpoint_says_so(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(StoppedError, match=r"at once, after step 0. There is no checkpoint."):
        trained(model_folder, tmp_path, Press(1, signal.SIGINT, times=2))


def test_in_the_last_step_it_is_a_checkpoint_too(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(StoppedError, match="interrupted after step 4 of 4"):
        trained(model_folder, tmp_path, Press(4, signal.SIGINT))
    assert (tmp_path / "checkpoint-4").is_dir()


def test_what_the_shell_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    def stopped() -> None:
        raise StoppedError("interrupted after step 3")

    def terminated() -> None:
        raise StoppedError("terminated after step 3", signal.SIGTERM)

    def pressed() -> None:
        raise KeyboardInterrupt

    codes = [exit_code(work) for work in (stopped, terminated, pressed, lambda: None)]
    assert codes == [130, 143, 130, 0]
    assert "boresight: interrupted after step 3" in capsys.readouterr().err

"""A step that was not finite is kept, and its replay names the row and the module that go bad."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from boresight import SFTConfig, SFTTrainer
from boresight.cli import main
from boresight.demo.tiny import build_tiny
from boresight.doctor.replay import replay
from boresight.errors import DataError
from boresight.model.load import load_model
from boresight.trainer.kept_step import read_step

ROWS = [
    {"prompt": [{"role": "user", "content": f"say {word}"}], "completion": [{"role": "assistant", "content": word}]}
    for word in ("one", "two", "three", "four", "five", "six")
]
BAD_ROW = 4


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run whose second step has an infinite log-probability; the run folder and what was printed."""
    folder = tmp_path_factory.mktemp("replay")
    model = build_tiny("qwen2_5_vl", folder / "model", vocab_size=512)
    options: dict[str, Any] = {
        "max_steps": 3,
        "per_device_train_batch_size": 2,
        "save_strategy": "steps",
        "save_steps": 1,
    }
    config = SFTConfig(
        str(folder / "run"), **options, shuffle_dataset=False, use_cpu=True, report_to="none", disable_tqdm=True
    )
    trainer = SFTTrainer(str(model), config, ROWS)
    forward, said = trainer.policy, []

    def poisoned(items: Any, **options: Any) -> Any:
        stats = forward(items, **options)
        if any(item.prompt.row.index == BAD_ROW for item in items):
            stats.logp.data[0, 0] = -torch.inf
        return stats

    for name in ("model", "outer", "counts"):
        setattr(poisoned, name, getattr(forward, name))
    trainer.policy = poisoned  # pyright: ignore[reportAttributeAccessIssue]
    trainer.log_once = said.append  # pyright: ignore[reportAttributeAccessIssue]
    trainer.train()
    return folder / "run", "\n".join(said)


def test_the_log_names_the_file_and_the_file_holds_the_step(run: tuple[Path, str]) -> None:
    _, said = run
    named = re.search(
        r"step 3: a log-probability is NaN or infinite on rows 4, 5. \(boresight doctor --replay (\S+) shows where",
        said,
    )
    assert named, said
    kept = read_step(named[1])
    assert (kept.step, kept.what, [group.prompt.row.index for group in kept.groups]) == (3, "a log-probability", [4, 5])
    assert kept.options["learning_rate"] == 2e-5
    assert all(
        len(completion.ids) and completion.mask.any() for group in kept.groups for completion in group.completions
    )


def test_a_step_that_is_finite_in_float32_is_said_to_be(
    run: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = run
    file = next((folder / "nonfinite").iterdir())
    found = replay(file)
    assert found.model == str(folder / "checkpoint-2")
    assert [each.is_finite for each in found.findings] == [True, True]
    assert all(each.lowest < 0 < each.largest_gradient for each in found.findings)
    assert main(["doctor", "--replay", str(file)]) == 0
    assert "Every row is finite in float32 with these weights." in capsys.readouterr().out


def test_the_module_that_goes_bad_is_named(run: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = run
    broken = load_model(str(folder / "checkpoint-2"))
    layer = broken.get_decoder().layers[1].mlp.up_proj
    with torch.no_grad():
        layer.weight[0, 0] = torch.inf
    broken.save_pretrained(tmp_path / "broken")
    for file in (folder / "checkpoint-2").glob("*"):
        if not (tmp_path / "broken" / file.name).exists():
            (tmp_path / "broken" / file.name).write_bytes(file.read_bytes())
    found = replay(next((folder / "nonfinite").iterdir()), str(tmp_path / "broken"))
    assert {each.module for each in found.findings} == {
        next(name for name, module in broken.named_modules() if module is layer)
    }
    assert "not finite in float32 either" in found.advice


@pytest.mark.parametrize("content", [b"", b"no archive", None])
def test_another_file_is_refused_by_name(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "step.pt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=r"step\.pt"):
        replay(file)
    assert main(["doctor", "--replay", str(file)]) == 2

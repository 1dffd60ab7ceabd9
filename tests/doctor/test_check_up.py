"""Each wrong set-up is found before the first step, by its check and with a way out; a right one has no errors and no warnings."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from peft import LoraConfig
from PIL import Image
from rich.text import Text
from transformers import AutoModelForImageTextToText

from boresight import DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
from boresight.cli import main
from boresight.doctor.check_up import PlannedRun, check_up
from boresight.doctor.memory import available_bytes, fitting_groups, peak_bytes
from boresight.doctor.shown_batch import COUNTS, IMAGE
from boresight.errors import UserError
from boresight.preflight import Finding
from tests.tiny import build_tiny

BASE = {
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
    "use_cpu": True,
    "gradient_checkpointing": False,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny("qwen2_5_vl", tmp_path_factory.mktemp("tiny"), vocab_size=512)


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    """The model's folder, to be spoiled."""
    return Path(shutil.copytree(folder, tmp_path / "model"))


def rows(count: int = 8) -> list[dict[str, Any]]:
    return [
        {
            "prompt": [{"role": "user", "content": f"what is shown in image {index}?"}],
            "completion": [{"role": "assistant", "content": f"it is {'very ' * index}blue"}],
            "solution": str(index),
            "image": Image.new("RGB", (64 + 28 * (index % 2), 64), (10 * index, 200, 30)),
        }
        for index in range(count)
    ]


def questions(count: int = 8) -> list[dict[str, Any]]:
    return [{name: row[name] for name in ("prompt", "solution", "image")} for row in rows(count)]


def shades(completions: list[Any], **columns: Any) -> list[float]:
    return [len(completion[0]["content"]) % 7 / 7 + place / 100 for place, completion in enumerate(completions)]


def tens(completions: list[Any], solution: list[str], **columns: Any) -> list[float]:
    """Wants the answer times ten, which no gold is."""
    texts = [completion[0]["content"] for completion in completions]
    return [float(f"<answer>{10 * int(gold)}0</answer>" in text) for text, gold in zip(texts, solution, strict=True)]


def constant(completions: list[Any], **columns: Any) -> list[float]:
    return [0.25] * len(completions)


def planned(
    model: Path, out: Path, records: Any = None, *, rewards: Any = None, peft: Any = None, **options: Any
) -> PlannedRun:
    """An SFT run; with rewards, a GRPO run."""
    sampled = {"max_completion_length": 4, "num_generations": 4, "per_device_train_batch_size": 8}
    base: dict[str, Any] = {**BASE, "output_dir": str(out / "run")}
    config = (
        GRPOConfig(**{**base, **sampled, **options})
        if rewards
        else SFTConfig(**{**base, "per_device_train_batch_size": 4, **options})
    )
    given: Any = records if records is not None else questions() if rewards else rows()
    further = {"reward_funcs": rewards} if rewards else {}
    return PlannedRun(
        GRPOTrainer if rewards else SFTTrainer, str(model), config, lambda: (given, None), lambda: {"peft_config": peft, **further}
    )  # fmt: skip


def wrong(run: PlannedRun, **options: Any) -> list[Finding]:
    return [finding for finding in check_up(run, **options) if finding.level != "note"]


def one(findings: list[Finding], check: str, text: str) -> Finding:
    """The finding of this check with this text, which must be there, and must have a way out."""
    found = [finding for finding in findings if finding.check == check and text in finding.text]
    assert found, [str(finding) for finding in findings]
    return found[0]


# ---- Right set-ups -------------------------------------------------------------------------------------------------------------------


def test_nothing_is_wrong_with_a_right_run(folder: Path, tmp_path: Path) -> None:
    everything = [*check_up(planned(folder, tmp_path, gradient_checkpointing=True))]
    assert [str(finding) for finding in everything if finding.level != "note"] == []
    checks = {finding.check for finding in everything}
    assert {"rows", "lengths", "disk", "trained parts", "gradients", "worst batch", "layout"} <= checks
    (longest,) = [finding.text for finding in everything if finding.check == "lengths" and "median" in finding.text]
    assert "tokens in 8 rows" in longest
    assert "at most 1 images" in longest
    assert not (tmp_path / "run").exists()


def test_nothing_is_wrong_with_a_right_run_of_samples(folder: Path, tmp_path: Path) -> None:
    everything = [*check_up(planned(folder, tmp_path, rewards=[shades]))]
    assert [str(finding) for finding in everything if finding.level != "note"] == []
    texts = {finding.check: finding.text for finding in everything}
    assert "its log-probabilities differ from the trainer's by" in texts["sampler"]
    assert "no reward reads a solution" in texts["gold answers"]


def test_a_stream_is_checked_as_far_as_it_can_be(folder: Path, tmp_path: Path) -> None:
    stream = datasets.Dataset.from_list([{**row, "image": None} for row in questions()]).to_iterable_dataset()
    everything = [*check_up(planned(folder, tmp_path, stream, rewards=[shades], max_steps=2))]
    assert [str(finding) for finding in everything if finding.level != "note"] == []
    assert any("the rows are a stream" in finding.text for finding in everything if finding.check == "rows")


# ---- Wrong set-ups -------------------------------------------------------------------------------------------------------------------


def test_marks_that_are_not_as_many_as_images(folder: Path, tmp_path: Path) -> None:
    bad = rows()
    bad[5]["prompt"] = [{"role": "user", "content": "compare <image> and <image>"}]
    finding = one(wrong(planned(folder, tmp_path, bad)), "rows", "row 5")
    assert finding.level == "error"
    assert "2 mark(s) <image>" in finding.text
    finding = one(wrong(planned(folder, tmp_path, bad, on_bad_row="drop")), "rows", "row 5")
    assert finding.level == "warning"
    assert "leaves it out" in finding.way_out


def test_a_placeholder_that_the_model_does_not_know(copied: Path, tmp_path: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    config["image_token_id"] += 1
    (copied / "config.json").write_text(json.dumps(config))
    finding = one(wrong(planned(copied, tmp_path)), "model", "Image features and image tokens do not match")
    assert "Use the processor that was saved with the model" in finding.text


def test_images_that_take_more_than_the_limit(folder: Path, tmp_path: Path) -> None:
    large = rows()
    large[2]["image"] = Image.new("RGB", (560, 560))
    finding = one(wrong(planned(folder, tmp_path, large, max_length=40)), "rows", "row 2")
    assert finding.level == "error"
    assert "lower max_pixels" in str(finding)


def test_rows_that_are_cut(folder: Path, tmp_path: Path) -> None:
    long = rows()
    long[3]["completion"] = [{"role": "assistant", "content": "blue " * 300}]
    finding = one(wrong(planned(folder, tmp_path, long, max_length=200)), "lengths", "1 of 8 rows (3)")
    assert finding.level == "warning"


@pytest.mark.parametrize(("policy", "level"), [("warn", "warning"), ("error", "error")])
def test_a_reward_that_refuses_its_gold(folder: Path, tmp_path: Path, policy: str, level: str) -> None:
    finding = one(
        wrong(planned(folder, tmp_path, rewards=[tens, shades], gold_check=policy)),
        "gold answers",
        "tens does not give",
    )
    assert finding.level == level
    assert "row 1 ('1': 0)" in finding.text


def test_a_template_without_an_end_token(copied: Path, tmp_path: Path) -> None:
    template = (copied / "chat_template.jinja").read_text()
    assert "<|im_end|>" in template
    (copied / "chat_template.jinja").write_text(template.replace("<|im_end|>", ""))
    assert "ends turns" in one(wrong(planned(copied, tmp_path)), "template", "no end token").way_out


def test_everything_frozen(folder: Path, tmp_path: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(folder).requires_grad_(False)
    run = planned(folder, tmp_path)
    frozen = PlannedRun(run.trainer, model, run.config, run.rows, run.arguments)  # pyright: ignore[reportArgumentType]
    assert one(wrong(frozen), "trained parts", "every weight is frozen").level == "error"
    with pytest.raises(UserError, match="every weight is frozen"):
        SFTTrainer(model, run.config, rows())


def test_a_tokenizer_of_another_model(copied: Path, tmp_path: Path) -> None:
    other = json.loads((copied / "tokenizer.json").read_text())
    other["added_tokens"] += [
        {**other["added_tokens"][0], "id": 900 + place, "content": f"<new{place}>"} for place in range(3)
    ]
    (copied / "tokenizer.json").write_text(json.dumps(other))
    finding = one(wrong(planned(copied, tmp_path)), "vocabulary", "have no embedding")
    assert "resize_token_embeddings" in finding.way_out


def test_a_batch_that_does_not_fit(folder: Path, tmp_path: Path) -> None:
    """Against a device with less memory than this process has already, no group fits."""
    finding = one(wrong(planned(folder, tmp_path), memory_bytes=2**20), "worst batch", "not even one group fits")
    assert "Lower max_pixels, set gradient_checkpointing=True" in finding.way_out


def test_a_batch_of_which_a_part_fits(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = iter([100, 140])
    monkeypatch.setattr(
        "boresight.doctor.worst_batch.peak_bytes", lambda device, work: next(taken) * 2**20 + 0 * bool(work())
    )
    state = 8 * sum(weight.numel() for weight in AutoModelForImageTextToText.from_pretrained(folder).parameters())
    finding = one(
        wrong(planned(folder, tmp_path), memory_bytes=200 * 2**20 + state), "worst batch", "4 groups do not fit, 3 do"
    )
    assert "per_device_train_batch_size=3" in finding.way_out
    assert "max_tokens_per_pass=" in finding.way_out


@pytest.mark.parametrize(
    ("one_group", "two_groups", "limit", "fits"),
    [(100, 140, 99, 0), (100, 140, 100, 1), (100, 140, 180, 3), (100, 140, 1000, 8), (100, 100, 100, 8)],
)  # fmt: skip
def test_how_many_groups_fit(one_group: int, two_groups: int, limit: int, fits: int) -> None:
    assert fitting_groups(one_group, two_groups, limit, 8) == fits


def test_the_peak_is_that_of_the_work() -> None:
    cpu = torch.device("cpu")
    little = peak_bytes(cpu, lambda: torch.ones(10))
    much = peak_bytes(cpu, lambda: torch.ones(64 * 2**20).sum())  # 256 MiB
    assert much - little > 200 * 2**20
    assert peak_bytes(cpu, lambda: torch.ones(10)) < much - 200 * 2**20
    assert (available_bytes(cpu) or much) >= much


def test_an_adapter_that_nobody_asked_for_in_the_tower(folder: Path, tmp_path: Path) -> None:
    adapter = LoraConfig(r=2, target_modules="all-linear")
    findings = wrong(planned(folder, tmp_path, peft=adapter))
    assert "train='language=lora'" in one(findings, "trained parts", "modules of the vision too").way_out


def test_a_learning_rate_below_resolution(folder: Path, tmp_path: Path) -> None:
    run = planned(folder, tmp_path, learning_rate=1e-7, model_init_kwargs={"dtype": "bfloat16"})
    assert "learning_rate=1e-07 is below the resolution" in one(wrong(run), "options", "learning_rate").text


def test_a_reward_that_is_the_same_for_all(folder: Path, tmp_path: Path) -> None:
    findings = wrong(planned(folder, tmp_path, rewards=[constant]))
    assert "constant gives 0.25 to all" in one(findings, "first batch", "it teaches nothing").text
    one(findings, "first batch", "no learning signal")


def test_a_reward_that_raises(folder: Path, tmp_path: Path) -> None:
    def raises(completions: list[Any], **columns: Any) -> list[float]:
        raise KeyError("answer")

    one(wrong(planned(folder, tmp_path, rewards=[raises])), "rewards", "raises")


def test_a_folder_that_holds_another_run(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1}\n')
    findings = wrong(planned(folder, tmp_path))
    assert "overwrite_output_dir" in one(findings, "options", "already holds a run").text
    assert (tmp_path / "run" / "metrics.jsonl").exists()


def test_pairs_are_checked_too(folder: Path, tmp_path: Path) -> None:
    from boresight import DPOConfig

    pairs = [{"prompt": row["prompt"], "image": row["image"], "chosen": row["completion"],
              "rejected": [{"role": "assistant", "content": "no"}]} for row in rows()]  # fmt: skip
    config = DPOConfig(**{**BASE, "output_dir": str(tmp_path / "run"), "per_device_train_batch_size": 4})
    everything = [*check_up(PlannedRun(DPOTrainer, str(folder), config, lambda: (pairs, None), dict))]
    assert [str(finding) for finding in everything if finding.level != "note"] == []
    assert any("8 rows" in finding.text for finding in everything if finding.check == "lengths")


# ---- The first batch, shown ----------------------------------------------------------------------------------------------------------


def test_what_counts_is_green(folder: Path, tmp_path: Path) -> None:
    shown: list[Text] = []
    assert wrong(planned(folder, tmp_path, shuffle_dataset=False), show=shown.append) == []
    first = shown[1]
    green = "".join(first.plain[span.start : span.end] for span in first.spans if span.style == COUNTS)
    assert green == "it is blue<|im_end|>"
    images = [first.plain[span.start : span.end] for span in first.spans if span.style == IMAGE]
    assert len(images) == 1
    assert images[0].endswith("image tokens]")


# ---- The command ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Flags of a doctor command on a table of questions."""
    (tmp_path / "data").mkdir()
    with (tmp_path / "data" / "train.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["photo", "question", "answer"])
        writer.writerows([["a.png", f"what is {index}?", "blue"] for index in range(8)])
    Image.new("RGB", (64, 64)).save(tmp_path / "data" / "a.png")
    monkeypatch.chdir(tmp_path)
    return lambda model, *words: [
        "doctor", "sft", "--model_name_or_path", str(model), "--dataset_name", "data", "--image_column", "photo", "--prompt_column",
        "question", "--output_dir", "run", "--use_cpu", "--per_device_train_batch_size", "2", *words,
    ]  # fmt: skip


def test_the_command(folder: Path, table: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(table(folder, "--completion_column", "answer", "--show-batch")) == 0
    printed = capsys.readouterr().out
    assert "0 errors, 0 warnings" in printed
    assert "image tokens]" in printed
    assert not Path("run").exists()


def test_a_typo_in_a_column(folder: Path, table: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(table(folder, "--completion_column", "anwser")) == 2
    printed = capsys.readouterr().out
    assert "error    rows:" in printed
    assert "Did you mean 'answer'?" in printed
    assert "were not made" in printed


def test_a_typo_in_a_flag(folder: Path, table: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(table(folder, "--completion_colum", "answer")) == 2
    assert "--completion_column" in capsys.readouterr().err


def test_a_command_for_several_processes_is_checked_in_this_one(
    folder: Path, table: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    """It must not be launched, which would train."""
    assert (
        main(table(folder, "--completion_column", "answer", "--accelerate_config", "cpu", "--num_processes", "2")) == 0
    )
    assert "0 errors, 0 warnings" in capsys.readouterr().out
    assert not Path("run").exists()


def test_help_explains_doctor_first(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "grpo", "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("boresight doctor METHOD takes the flags of boresight METHOD")

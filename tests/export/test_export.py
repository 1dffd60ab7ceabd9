"""A run becomes a folder that plain transformers loads: equal to what was trained, with what changed counted, and with a card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from boresight import SFTConfig, SFTTrainer
from boresight.cli import main
from boresight.errors import ConfigError, ModelError
from boresight.export import with_vllm
from boresight.export.card import model_card
from boresight.export.job import export, push, source_of
from boresight.export.verify import changed_tensors, log_probs, make_probes, verify_folder
from boresight.export.with_vllm import answers_of, compared
from boresight.rollout.vllm.saved import vllm_is_here
from tests.tiny import build_tiny

ROWS = [
    {"prompt": [{"role": "user", "content": f"say {word}"}], "completion": [{"role": "assistant", "content": word}]}
    for word in ("one", "two", "three", "four")
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny("qwen2_5_vl", tmp_path_factory.mktemp("tiny"), vocab_size=512)


@pytest.fixture
def trained(base: Path, tmp_path: Path) -> Callable[..., Path]:
    """The folder of a short run on texts alone."""

    def train(peft: Any = None, *, saves: bool = True, **options: Any) -> Path:
        folder = tmp_path / "run"
        config = SFTConfig(
            **{
                "output_dir": str(folder), "max_steps": 2, "per_device_train_batch_size": 4, "use_cpu": True, "report_to": "none",
                "disable_tqdm": True, "learning_rate": 1e-2, "save_strategy": "no", "gradient_checkpointing": False, **options,
            }
        )  # fmt: skip
        trainer = SFTTrainer(str(base), config, ROWS, peft_config=peft)
        trainer.train()
        if saves:
            trainer.save_model(str(folder))
        return folder

    return train


LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_alpha=64)


def logits(model: Any, folder: Path) -> list[torch.Tensor]:
    return log_probs(model, make_probes(model, AutoProcessor.from_pretrained(folder)))


def test_an_adapter_merged(base: Path, trained: Callable[..., Path], tmp_path: Path) -> None:
    run, output = trained(LORA), tmp_path / "merged"
    exported = export(source_of(run), output, merge=True)
    plain = AutoModelForImageTextToText.from_pretrained(output)
    assert not isinstance(plain, PeftModel)
    adapted = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(base), str(run))
    before = logits(AutoModelForImageTextToText.from_pretrained(base), base)
    for one, other, untrained in zip(logits(plain, output), logits(adapted, base), before, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)
        assert not torch.allclose(one, untrained, atol=1e-2)
    # Two layers, of which q_proj and v_proj changed; 26 tensors with their norms, biases, embeddings and head.
    assert exported.lines[1].endswith("language 4 of 26 tensors changed, projector untouched, vision untouched.")
    assert "log-probabilities of" in exported.lines[0]


def test_the_card(base: Path, trained: Callable[..., Path], tmp_path: Path) -> None:
    export(source_of(trained(LORA, logging_steps=1)), tmp_path / "merged", merge=True)
    front, text = (tmp_path / "merged" / "README.md").read_text().removeprefix("---\n").split("---\n", 1)
    assert yaml.safe_load(front) == {
        "base_model": str(base), "library_name": "transformers", "pipeline_tag": "image-text-to-text", "tags": ["boresight", "sft"],
    }  # fmt: skip
    pieces = [
        "| method | SFT |", "| optimizer steps | 2 |", "4 rows, digest", "| learning\\_rate | 0.01 |", "projector untouched", "| loss |",
        "| transformers |", "AutoModelForImageTextToText.from_pretrained",
    ]  # fmt: skip
    for piece in pieces:
        assert piece in text
    assert "output\\_dir" not in text


def test_a_card_names_the_run_and_only_options_that_were_set(tmp_path: Path) -> None:
    options = {
        "learning_rate": 0.5,
        "bf16": False,
        "report_to": [],
        "accelerator_config": {"split_batches": False},
        "debug": [],
    }
    identity = {"method": "SFTTrainer", "options": options}
    card = model_card(tmp_path, base="runs/sft/model", is_adapter=False, verified="Yes.", identity=identity, step=1)
    assert "# SFT of sft\n" in card
    table = card.split("## Options that differ from the defaults")[1].split("##")[0]
    assert "learning\\_rate | 0.5" in table
    assert table.count("\n| ") == 2  # the heading, and one option


def test_an_adapter_as_it_is(trained: Callable[..., Path], tmp_path: Path) -> None:
    export(source_of(trained(LORA)), tmp_path / "adapter", merge=False)
    names = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= names
    assert "library_name: peft" in (tmp_path / "adapter" / "README.md").read_text()


def test_a_checkpoint_of_full_training_in_the_dtype_of_its_base(
    base: Path, tmp_path: Path, trained: Callable[..., Path]
) -> None:
    half = tmp_path / "half"
    model: Any = AutoModelForImageTextToText.from_pretrained(base)
    model.to(torch.bfloat16).save_pretrained(half)
    AutoProcessor.from_pretrained(base).save_pretrained(half)
    run = trained(saves=False, save_strategy="steps", save_steps=1)
    exported = export(source_of(run, str(half)), tmp_path / "out", merge=False)
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}
    assert "(≤ 0.25)" in exported.lines[0]
    assert "| optimizer steps | 2 |" in (tmp_path / "out" / "README.md").read_text()


def test_a_folder_that_is_another_model(base: Path, tmp_path: Path) -> None:
    spoiled = Path(shutil.copytree(base, tmp_path / "spoiled"))
    weights = load_file(spoiled / "model.safetensors")
    name = next(name for name in weights if "embed_tokens" in name)
    save_file(weights | {name: -weights[name]}, spoiled / "model.safetensors", {"format": "pt"})
    model = AutoModelForImageTextToText.from_pretrained(base)
    probes = make_probes(model, AutoProcessor.from_pretrained(base))
    assert verify_folder(base, probes, log_probs(model, probes)).gap == 0
    with pytest.raises(ModelError, match="is not the model that was trained"):
        verify_folder(spoiled, probes, log_probs(model, probes))
    changes = changed_tensors(base, spoiled)
    assert changes is not None
    assert {part: each.changed for part, each in changes.items()} == {"language": 1, "projector": 0, "vision": 0}
    (spoiled / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot be loaded by plain transformers"):
        verify_folder(spoiled, probes, log_probs(model, probes))


def test_what_cannot_be_exported(base: Path, trained: Callable[..., Path], tmp_path: Path) -> None:
    run = trained()
    with pytest.raises(ConfigError, match="holds a whole model and no adapter: leave out --merge"):
        export(source_of(run), tmp_path / "out", merge=True)
    with pytest.raises(ConfigError, match="is not empty"):
        export(source_of(run), run, merge=False)
    with pytest.raises(ConfigError, match="there is no folder"):
        source_of(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"empty holds no model and no checkpoint"):
        source_of(tmp_path / "empty")
    with pytest.raises(ModelError, match="was written, but not uploaded to some/repo"):
        push(run, "some/repo")  # the tests have no network


def test_a_model_in_the_runs_own_folder_is_found(trained: Callable[..., Path], tmp_path: Path) -> None:
    run = trained(saves=False)
    (run / "model").mkdir()
    (run / "model" / "config.json").write_text("{}")
    source = source_of(run)
    assert (source.run, source.weights) == (run, run / "model")
    assert source_of(run / "model").run == run


def test_texts_of_others_in_a_card_are_shown_as_text(tmp_path: Path) -> None:
    identity = {
        "method": "SFTTrainer",
        "train_dataset": "a|b\n# <script>alert(1)</script>",
        "options": {"run_name": "[x](javascript:1)"},
    }
    card = model_card(tmp_path, base="m`x`", is_adapter=False, verified="Yes.", identity=identity, step=1)
    assert "<script" not in card.replace("\\<script", "")
    assert "\\# \\<script\\>" in card
    assert "javascript" not in card


def test_the_command_trains_verifies_and_exports(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    words = [
        "sft",
        "--model_name_or_path",
        str(base),
        "--dataset_name",
        "train.jsonl",
        "--output_dir",
        "run",
        "--use_cpu",
        "--max_steps",
        "1",
    ]
    assert (
        main(
            [
                *words,
                "--use_peft",
                "--learning_rate",
                "0.01",
                "--save_strategy",
                "no",
                "--per_device_train_batch_size",
                "4",
            ]
        )
        == 0
    )
    printed = " ".join(capsys.readouterr().out.split())
    assert "verified plain transformers loads it; log-probabilities of" in printed
    assert main(["export", "run", "--merge", "--output", "merged"]) == 0
    printed = capsys.readouterr().out
    assert "boresight: merged is written." in printed
    assert "vision untouched" in printed
    assert main(["export", "run", "--output", "merged"]) == 2
    assert main(["export", "run", "--output", "other", "--private"]) == 2


@pytest.mark.skipif(not vllm_is_here(), reason="vLLM is not installed")
@pytest.mark.soak  # tests/compare/test_with_vllm.py starts the same process
def test_vllm_computes_the_exported_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # vLLM's kernels on a CPU take heads of 32 and more.
    base = build_tiny("qwen2_5_vl", tmp_path / "base", vocab_size=512, hidden_size=128)
    plain = AutoModelForImageTextToText.from_pretrained(base)
    probes = make_probes(plain, AutoProcessor.from_pretrained(base))
    untrained = log_probs(plain, probes)
    get_peft_model(plain, LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)).save_pretrained(
        str(tmp_path / "run")
    )
    AutoProcessor.from_pretrained(base).save_pretrained(tmp_path / "run")
    kept: list[Any] = []
    monkeypatch.setattr(with_vllm, "answers_of", lambda *asked: kept.append(answers_of(*asked)) or kept[0])
    exported = export(source_of(tmp_path / "run", str(base)), tmp_path / "merged", merge=True, with_vllm=True)
    (line,) = (line for line in exported.lines if "vLLM" in line)
    assert line.startswith("vLLM loads it; log-probabilities of ")
    assert line.split("differ by")[1] in (tmp_path / "merged" / "README.md").read_text().replace("\\", "")
    # vLLM's numbers are of the adapted weights: those of the base are another model's.
    before = compared(kept[0], probes, untrained, 1e-3)
    assert before.gap is not None
    assert before.gap > 1e-2
    assert str(before).startswith("vLLM computes another model")
    kept[0][0]["prompt"][3] = 0
    assert compared(kept[0], probes, untrained, 1e-3).error.endswith("they differ from token 3 on")


def test_a_folder_that_vllm_cannot_load_is_reported(base: Path) -> None:
    probes = make_probes(AutoModelForImageTextToText.from_pretrained(base), AutoProcessor.from_pretrained(base))
    found = compared("RuntimeError: head_dim=16", probes, [], 1e-3)
    assert str(found) == "vLLM does not load it, or does not answer: RuntimeError: head_dim=16"

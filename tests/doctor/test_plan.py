"""The planner's memory is that of the models it plans."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import yaml

from boresight.cli import doctor
from boresight.cli.command import read_command
from boresight.demo.tiny import build_tiny
from boresight.doctor.cost import Rates, Work
from boresight.doctor.plan import Way, first_that_fits, plan, plan_of, proposal, seconds_of, tokens_that_fit, ways
from boresight.doctor.size import Size, Stack
from boresight.errors import ConfigError, ModelError

SEVEN = Size(
    weights={"vision": 900_000_000, "projector": 100_000_000, "language": 6_000_000_000},
    language=Stack(num_layers=28, width=3584, kv_width=512, mlp_width=18944),
    vision=Stack(num_layers=32, width=1280, kv_width=1280, mlp_width=3420),
    num_active=5_000_000_000,
    num_head=500_000_000,
    num_in_layers=5_600_000_000,
    patches_per_token=4.0,
)
LAYER = 2 * (8 * 3584 + 2 * 512 + 6 * 18944)
TOWER = 2 * (8 * 1280 + 2 * 1280 + 6 * 3420)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny("qwen2_5_vl", tmp_path_factory.mktemp("tiny"), vocab_size=512)


def test_bytes_of_each_way_by_hand() -> None:
    """In GB for 7 billion weights on 8 GPUs, of which 6 are of the language model, and 60 million of an adapter at 16 bytes."""
    found = {way.name: way.num_bytes / 1e9 for way in ways(SEVEN, 8)}
    adapter = 16 * 0.06
    assert found == {
        "full": pytest.approx(7 * (4 + 4 + 8)),
        "full, fsdp2": pytest.approx(7 * (2 + 4) + 16 * 7 / 8),
        # Of the 28 layers, two are whole at a time.
        "full, fsdp2_layers": pytest.approx((1.4 + 2 * 0.2) * (2 + 4) + 16 * 7 / 8),
        "full, fsdp2_offload": pytest.approx(7 * (2 + 4)),
        "full, 8-bit optimizer": pytest.approx(7 * (4 + 4 + 2 + 2 / 64)),
        "full, bf16 with stochastic rounding": pytest.approx(7 * 8),
        "full, bf16 with stochastic rounding, 8-bit optimizer": pytest.approx(7 * (2 + 2 + 2 + 2 / 64)),
        "LoRA": pytest.approx(14 + adapter),
        "LoRA, 8-bit base": pytest.approx(6 + 2 + adapter),
        "LoRA, 4-bit base": pytest.approx(6 * 0.5625 + 2 + adapter),
    }
    assert not any("fsdp2" in way.name for way in ways(SEVEN, 1))


def test_tokens_are_what_is_left() -> None:
    """Every layer's input, and one layer at work. Half of the tokens are of images, with four patches each; a frozen tower keeps none."""
    way = Way("", (), weights=50e9, gradients=10e9, optimizer=0)
    free = 72e9 - 60e9 - 3 * 2**28
    assert tokens_that_fit(SEVEN, way, 80e9) == int(free / (2 * 28 * 3584 + LAYER))
    with_images = 2 * 28 * 3584 + 2 * 2 * 32 * 1280 + max(LAYER, 2 * TOWER)
    assert tokens_that_fit(SEVEN, way, 80e9, image_share=0.5) == int(free / with_images)
    adapter = Way("", (), weights=50e9, gradients=10e9, optimizer=0, adapter=1)
    assert tokens_that_fit(SEVEN, adapter, 80e9, image_share=0.5) == tokens_that_fit(SEVEN, way, 80e9)
    assert tokens_that_fit(SEVEN, way, 60e9) == 0


def test_a_way_is_timed_by_what_it_trains() -> None:
    found = {way.name: seconds_of(SEVEN, way, Work(), Rates(), 8) for way in ways(SEVEN, 8)}
    names = ("full", "full, fsdp2", "full, fsdp2_layers", "LoRA")
    full, sharded, by_layers, lora = (found[name] for name in names)
    assert full is not None and sharded is not None and by_layers is not None and lora is not None
    # 64 × 5,120 tokens over 8 GPUs are two micro-batches of 32,768, and three of 16,384.
    more = (way for way in ways(SEVEN, 8) if way.by_layers)
    smaller = seconds_of(SEVEN, next(more), Work(), Rates(), 8, tokens=16_384)
    assert smaller is not None and smaller.exchange > by_layers.exchange > sharded.exchange
    assert full.sample == sharded.sample == lora.sample
    assert full.update == sharded.update > lora.update
    assert full.exchange > sharded.exchange > 50 * lora.exchange
    assert full.optimizer > sharded.optimizer > lora.optimizer


def test_the_first_way_that_fits_is_taken() -> None:
    assert first_that_fits([4095, 4096, 9000]) == 1
    assert first_that_fits([10]) is None


def test_the_set_up_is_yaml_and_too_small_gpus_are_refused(model_folder: Path) -> None:
    _, settings = plan(str(model_folder), 8, 80)
    assert yaml.safe_load(settings) == {
        "model_name_or_path": str(model_folder),
        "bf16": True,
        "accelerate_config": "multi_gpu",
        "num_processes": 8,
        "max_tokens_per_pass": 32_768,
    }
    with pytest.raises(ModelError, match=r"fits in no way on 2 GPUs of 0\.1 GB"):
        plan(str(model_folder), 2, 0.1)
    with pytest.raises(ModelError, match="has no config of a vision-language model"):
        plan(str(model_folder / "nothing"), 1, 80)


@pytest.mark.parametrize("num_gpus", [1, 8])
def test_a_command_reads_every_proposal(num_gpus: int, tmp_path: Path) -> None:
    """The options of every way, as a file. A CPU stands in for the GPUs."""
    pytest.importorskip("torchao")
    found = plan_of(SEVEN, num_gpus, 80e9, Work(), Rates())
    for way, tokens in zip(found.ways, (max(each, 4096) for each in found.tokens), strict=True):
        file = tmp_path / "plan.yaml"
        file.write_text(proposal("m", way, tokens) + "dataset_name: d\n")
        words = ["--config", str(file), "--output_dir", str(tmp_path / "run"), "--use_cpu"]
        command = read_command("sft", words, launches=False)
        assert command.start.num_processes == num_gpus
        assert command.model.model_name_or_path == "m"
        assert command.training.train == ("language=lora" if way.adapter else None)
        assert command.training.bf16 and command.training.max_tokens_per_pass == min(tokens, 32_768)


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    doctor.add_options(parser)
    return parser.parse_args(words)


def test_the_flags_of_a_plan(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rates are a card's, or as they are typed; a step of 1 prompt takes less time than one of 64."""
    doctor.run(
        parsed("--plan", "--model", str(model_folder), "--card", "a100", "--peak_flops", "100", "--prompts", "1")
    )
    shown = " ".join(capsys.readouterr().out.split())
    assert "1 × 80 GB" in shown and "A GRPO step of 1 prompts" in shown
    assert "40% of 100 · 10¹²" in shown
    for words, match in (
        (["--probe", "--gpus", "8"], "--gpus is about a plan"),
        (["--plan", "--card", "h10"], r"Did you mean 'h100'\?"),
        (["--plan", "--gpus", "0"], "--gpus 0: it must be above 0"),
        (["--plan", "--memory", "nan"], "--memory nan: it must be above 0"),
        (["--plan", "--utilisation", "40"], "at most 1"),
        (["--plan", "--image_tokens", "2000"], "image_tokens=2000 are among prompt_tokens=1024"),
    ):
        with pytest.raises(ConfigError, match=match):
            doctor.run(parsed(*words, "--model", str(model_folder)))

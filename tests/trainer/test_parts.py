"""Plans by part in real runs: what moved, at which rate, what is printed, and that plain libraries load what is saved."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from PIL import Image
from torch import nn
from transformers import AutoModelForImageTextToText, TrainerCallback

from boresight import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer
from boresight.errors import ConfigError, ModelError
from boresight.families import family_of
from boresight.model.part_options import PartPlan
from boresight.trainer.memory_table import state_bytes
from boresight.trainer.parts import checksums, parts_table
from tests.tiny import build_tiny

from .conftest import QUIET, demonstrations

SIX = ["qwen2_5_vl", "qwen3_vl", "smolvlm", "llava", "internvl", "gemma3"]
PLANS = [
    "vision=frozen,projector=full,language=lora",
    "vision=lora,projector=full,language=full",
    "vision=full,projector=full",
]
RATES = {"vision": 1e-3, "projector": 2e-3, "language": 3e-3}


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return cache(lambda family: build_tiny(family, tmp_path_factory.mktemp(family), vocab_size=512))


def run(folder: Path, output_dir: Path, callbacks: Any = None, peft_config: Any = None, **options: Any) -> Any:
    """A run of one step on rows that all have images."""
    rows = [row for row in demonstrations(8) if row["image"] is not None][:4]
    given = {**QUIET, "output_dir": str(output_dir), "use_cpu": True, "max_steps": 1, "gradient_checkpointing": True}
    config = SFTConfig(**{**given, "per_device_train_batch_size": 2, **options})
    return SFTTrainer(str(folder), config, rows, callbacks=callbacks, peft_config=peft_config)


def logits(model: nn.Module, trainer: Any) -> torch.Tensor:
    image = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
    message = [{"type": "image", "image": image}, {"type": "text", "text": "what is it?"}]
    inputs = trainer.processing_class.apply_chat_template(
        [{"role": "user", "content": message}], tokenize=True, return_dict=True, return_tensors="pt"
    )
    with torch.no_grad():
        return model.eval()(**inputs).logits


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("family", SIX)
def test_a_plan_trains_exactly_what_it_says(folder_of: Any, tmp_path: Path, family: str, plan: str) -> None:
    asked = dict(word.split("=") for word in plan.split(","))
    trained = {part: how for part, how in asked.items() if how != "frozen"}
    trainer = run(folder_of(family), tmp_path, train=plan, lr={part: RATES[part] for part in trained})
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    part_of = family_of(trainer.policy.model.config.model_type).part
    moved: dict[str, set[str]] = {}
    for name, value in trainer.model.named_parameters():
        if not torch.equal(value, before[name]):
            moved.setdefault(part_of(name), set()).add("lora" if "lora_" in name else "full")
    assert moved == {part: {how} for part, how in trained.items()}
    rates = {group["part"]: group["initial_lr"] for group in trainer.optimizer.param_groups}
    assert rates == {part: RATES[part] for part in trained}
    names = {id(value): name for name, value in trainer.model.named_parameters()}
    for group in trainer.optimizer.param_groups:
        assert {part_of(names[id(weight)]) for weight in group["params"]} == {group["part"]}

    trainer.save_model(str(tmp_path / "saved"))
    if "lora" in trained.values():
        base = AutoModelForImageTextToText.from_pretrained(folder_of(family))
        loaded: Any = PeftModel.from_pretrained(base, str(tmp_path / "saved"))
    else:
        loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "saved")
    wanted = logits(trainer.model, trainer)
    torch.testing.assert_close(logits(loaded, trainer), wanted, atol=1e-5, rtol=1e-5)
    if isinstance(loaded, PeftModel):
        torch.testing.assert_close(logits(loaded.merge_and_unload(), trainer), wanted, atol=1e-4, rtol=1e-4)


def test_the_table_and_the_check_are_printed(
    folder_of: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = run(folder_of("gemma3"), tmp_path, train="projector=full,language=lora", lr="projector=2e-3")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    table = {words[0]: words[1:] for words in lines if words and words[0] in ("vision", "projector", "language", "all")}
    assert (table["vision"][0], table["vision"][2:4]) == ("frozen", ["0", "-"])
    assert (table["projector"][0], table["projector"][3]) == ("full", "0.002")
    assert (table["language"][0], table["language"][3]) == ("lora", "0.001")
    assert " ".join(table["language"][10:]).startswith("down_proj 2, gate_proj 2, k_proj 2")
    weights = [value for value in trainer.model.parameters() if value.requires_grad]
    assert table["all"][1] == f"{sum(value.numel() for value in weights):,}"
    trainer.train()
    state = trainer.optimizer.state_dict()["state"].values()
    held = sum(value.nbytes for each in state for value in each.values() if value.ndim)
    assert held == 2 * sum(value.nbytes for value in weights) and state_bytes(trainer.args.optim) == 8
    assert (
        "step 1 verified: 16 of 30 trained tensors moved; 14 have no gradient yet (factors A" in capsys.readouterr().out
    )


def test_an_adapter_without_a_plan_says_where_it_is_and_where_not(
    folder_of: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = run(folder_of("gemma3"), tmp_path, peft_config=LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    assert not any("lora" in name and "vision" in name for name, _ in trainer.model.named_parameters())
    printed = capsys.readouterr().out
    assert "layers of these names too (q_proj 2, v_proj 2). They get no adapter" in printed
    assert [line.split()[1] for line in printed.splitlines() if line.startswith(("vision", "projector", "language"))] == [
        "frozen", "frozen", "lora",
    ]  # fmt: skip


def test_nothing_is_printed_and_nothing_changes_without_a_plan(
    folder_of: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = run(folder_of("llava"), tmp_path)
    assert "what is trained" not in capsys.readouterr().out
    assert all(value.requires_grad for value in trainer.model.parameters())
    trainer.create_optimizer()
    assert {(group["lr"], "part" in group) for group in trainer.optimizer.param_groups} == {(1e-3, False)}


@pytest.mark.parametrize("options", [{"use_dora": True}, {"use_rslora": True}], ids=str)
def test_the_adapters_own_options_stay(folder_of: Any, tmp_path: Path, options: dict[str, Any]) -> None:
    config = LoraConfig(r=4, target_modules=["q_proj"], **options)
    trainer = run(folder_of("gemma3"), tmp_path, peft_config=config, train="vision=lora")
    trainer.train()
    found = trainer.model.peft_config["default"]
    assert (found.r, found.use_dora, found.use_rslora) == (4, "use_dora" in options, "use_rslora" in options)
    assert all("vision" in name for name, value in trainer.model.named_parameters() if value.requires_grad)


def test_the_reference_of_a_plan_is_the_model_before_training(folder_of: Any, tmp_path: Path) -> None:
    """A projector trained in full beside an adapter: with the adapter off, the old projector is back."""
    rows = [
        {"prompt": row["prompt"], "image": row["image"], "chosen": row["completion"], "rejected": [{"role": "assistant", "content": "no"}]}
        for row in demonstrations(4)
    ]  # fmt: skip
    given = {**QUIET, "output_dir": str(tmp_path), "use_cpu": True, "max_steps": 2, "learning_rate": 1e-2}
    config = DPOConfig(**{**given, "train": "projector=full,language=lora", "per_device_train_batch_size": 2})
    trainer: Any = DPOTrainer(str(folder_of("llava")), None, config, rows)
    before = logits(AutoModelForImageTextToText.from_pretrained(folder_of("llava")), trainer)
    trainer.train()
    assert (logits(trainer.model, trainer) - before).abs().max() > 1e-3
    with trainer.model.disable_adapter():
        torch.testing.assert_close(logits(trainer.model, trainer), before, atol=1e-5, rtol=1e-5)


def test_a_run_with_rates_of_its_own_resumes_bit_for_bit(folder_of: Any, tmp_path: Path) -> None:
    options = {"train": "vision=full,language=lora", "lr": "vision=1e-4", "max_steps": 3, "save_strategy": "steps"}
    whole = run(folder_of("llava"), tmp_path / "whole", save_steps=2, **options)
    whole.train()
    again = run(folder_of("llava"), tmp_path / "again", save_steps=2, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    left, right = dict(whole.model.named_parameters()), dict(again.model.named_parameters())
    assert all(torch.equal(left[name], right[name]) for name in left)


# ---- What is refused -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": "vision=1e-4", "peft_config": LoraConfig(target_modules=["q_proj"])}, "vision is frozen"),
        (
            {"lr": "vision=1e-7", "model_init_kwargs": {"dtype": "bfloat16"}, "learning_rate": 1e-2},
            "learning_rate=1e-07",
        ),
        (
            {"train": "language=lora", "peft_config": LoraConfig(target_modules=["nothing"])},
            "no layer takes an adapter",
        ),
    ],
)
def test_what_has_no_effect_is_refused(folder_of: Any, tmp_path: Path, options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(folder_of("llava"), tmp_path, **options)


def test_rates_need_the_trainers_own_optimizer(folder_of: Any, tmp_path: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(folder_of("llava"))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    config = SFTConfig(**QUIET, output_dir=str(tmp_path), use_cpu=True, lr="vision=1e-4")
    processor = run(folder_of("llava"), tmp_path).processing_class
    with pytest.raises(ConfigError, match="optimizer of your own"):
        SFTTrainer(model, config, demonstrations(4), processing_class=processor, optimizers=(optimizer, None))


class Meddle(TrainerCallback):
    """Changes a frozen weight after the optimizer's step, or takes a trained one out of the optimizer before it."""

    def __init__(self, *, frozen: bool) -> None:
        self.frozen = frozen

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        if not self.frozen:
            optimizer.param_groups[0]["params"].pop()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if self.frozen:
            weight = next(value for value in model.parameters() if not value.requires_grad)
            weight.data.view(-1)[-1] += 1


def test_a_frozen_weight_that_moves_ends_the_run(folder_of: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"step 1 changed 1 frozen tensors \(the first is .*vision"):
        run(folder_of("llava"), tmp_path, callbacks=[Meddle(frozen=True)], train="projector=full").train()


def test_a_trained_weight_that_stays_is_reported(
    folder_of: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(folder_of("llava"), tmp_path, callbacks=[Meddle(frozen=False)], train="projector=full").train()
    assert "step 1: 1 of 4 trained tensors have a gradient and did not move" in capsys.readouterr().out
    assert '"parts"' in (tmp_path / "verdicts.jsonl").read_text()


def test_a_tower_without_images_is_reported(folder_of: Any, tmp_path: Path) -> None:
    trainer = run(folder_of("llava"), tmp_path, train="vision=full,language=full")
    trainer.train_dataset = [row for row in demonstrations(24) if row["image"] is None]
    trainer.train()
    assert "vision_tower" in (tmp_path / "verdicts.jsonl").read_text()


def test_a_checksum_sees_every_single_weight() -> None:
    weight = torch.randn(3, 70_000)
    (before,) = checksums([("w", weight)]).values()
    for place in (0, 65_521, 209_999):
        changed = weight.clone().view(-1)
        changed[place] = torch.nextafter(changed[place], torch.tensor(9.0))
        assert checksums([("w", changed)]) != {"w": before}
    swapped = torch.cat([weight[0, 1:2], weight[0, :1], weight.view(-1)[2:]])
    assert checksums([("w", swapped)]) != {"w": before}


@pytest.mark.parametrize(
    ("optim", "expected"),
    [
        ("adamw_torch_fused", 8), ("adamw_bnb_8bit", 2.03125), ("paged_lion_32bit", 4), ("sgd", 0), ("adamw_torch_4bit", 1.03125),
        ("adafactor", None), ("galore_adamw", None),
    ],
)  # fmt: skip
def test_the_state_of_optimizers(optim: str, expected: float | None) -> None:
    """Bytes per float32 weight: of 8 bits, a byte and a 256th of a scale of 4 bytes, for each of two moments."""
    assert state_bytes(optim) == expected


def test_an_unknown_optimizer_has_a_question_mark(folder_of: Any) -> None:
    model = AutoModelForImageTextToText.from_pretrained(folder_of("llava"))
    assert parts_table(model, PartPlan(), 1e-3, "adafactor").splitlines()[1].endswith("?")

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import IterableDataset
from peft import LoraConfig
from transformers import AutoModelForImageTextToText, AutoProcessor

from boresight import GRPOConfig, GRPOTrainer
from boresight.errors import RewardError
from boresight.report.completions import read_completions
from boresight.rewards import exact_answer_reward
from boresight.types import Group

from .conftest import QUIET, Gradients, Run, furthest, records, vowel_share, weights


def test_a_policy_pushed_to_the_image_placeholder_never_samples_it(grpo: Run) -> None:
    """Fifty steps under a bias that makes the placeholder the likeliest token by far."""
    trainer = grpo(max_steps=50, per_device_train_batch_size=4, max_completion_length=4)
    placeholder = trainer.facts.image_token_id
    assert placeholder in trainer.facts.modality_ids

    def push(module: Any, inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        bias = torch.zeros(logits.shape[-1])
        bias[placeholder] = 100.0
        return logits + bias

    trainer.policy.model.get_output_embeddings().register_forward_hook(push)
    trainer.train()
    ids = {id for row in read_completions(trainer.args.output_dir)["completion_ids"].to_pylist() for id in row}
    assert trainer.state.global_step == 50
    assert not ids & set(trainer.facts.modality_ids)
    assert all(torch.isfinite(value).all() for value in weights(trainer).values())


def test_images_are_encoded_once_a_pass(grpo: Run) -> None:
    """Four images a step: once to sample and once to learn from where the tower is trained."""
    trainer = grpo(
        max_steps=2, per_device_train_batch_size=16, train_dataset=[row for row in records() if row["image"]][:8]
    )
    trainer.train()
    for log in trainer.state.log_history[:2]:
        assert log["work/vision_encodes"] == 2 * 4
        assert log["work/padded_tokens"] == 0


def test_a_frozen_tower_encodes_an_image_once_in_a_step(model_folder: Path, tmp_path: Path) -> None:
    """Sampling, old, reference and policy passes, two updates each: one encode per image."""
    model = AutoModelForImageTextToText.from_pretrained(model_folder)
    model.model.visual.requires_grad_(False)
    config = GRPOConfig(
        **QUIET, output_dir=str(tmp_path), num_generations=4, max_completion_length=6, num_prompts_per_step=4, num_iterations=2,
        beta=0.1, max_steps=2, per_device_train_batch_size=8,
    )  # fmt: skip
    trainer = GRPOTrainer(model, vowel_share, config, [row for row in records() if row["image"]][:4], ref_model=None)
    trainer.train()
    work = Counter[str]()
    for log in trainer.state.log_history:
        work.update({name: value for name, value in log.items() if name.startswith("work/")})
    assert work["work/vision_encodes"] == 4
    # With nothing shared: 16 rows through the old and the reference pass and two updates, and 16 sampled.
    assert work["work/unshared_vision_encodes"] == 4 * 16
    assert work["work/sampler_unshared_vision_encodes"] == 16
    assert work["work/unshared_prompt_tokens"] == 4 * 4 * work["work/sampler_prompt_tokens"]
    assert work["work/prompt_tokens"] == 4 * work["work/sampler_prompt_tokens"]


def test_groups_that_teach_nothing_take_no_pass(grpo: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither before the updates nor in them, and the gradients are those that all passes give."""

    def some_spread(completions: list[Any], solution: list[str], **columns: Any) -> list[float]:
        shares = vowel_share(completions)
        return [share if len(gold) % 2 else 0.5 for share, gold in zip(shares, solution, strict=True)]

    found = []
    for everything in (False, True):
        if everything:
            monkeypatch.setattr(GRPOTrainer, "learns_from", lambda self, item: True)
        gradients = Gradients()
        options = {"per_device_train_batch_size": 16, "steps_per_generation": 2, "max_steps": 4}
        trainer = grpo(callbacks=[gradients], reward_funcs=some_spread, **options)
        trainer.train()
        encodes = sum(log.get("work/vision_encodes", 0) for log in trainer.state.log_history if "loss" in log)
        flat = [log["frac_reward_zero_std"] for log in trainer.state.log_history if "frac_reward_zero_std" in log]
        assert 0 < sum(flat) / len(flat) < 1
        found.append((gradients.steps, encodes))
    (some, few), (whole, many) = found
    assert len(some) == 4
    assert all(furthest(*pair) < 2e-5 for pair in zip(some, whole, strict=True))
    assert few < many


def test_lora_is_its_own_reference(model_folder: Path, tmp_path: Path) -> None:
    config = GRPOConfig(
        **QUIET, output_dir=str(tmp_path), num_generations=4, max_completion_length=6, beta=0.1, max_steps=3,
        per_device_train_batch_size=8,
    )  # fmt: skip
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights="gaussian")
    trainer = GRPOTrainer(str(model_folder), vowel_share, config, records(), peft_config=lora)
    trainer.train()
    assert trainer.reference is not None and trainer.reference.forward is trainer.policy
    kl = [log["kl"] for log in trainer.state.log_history if "kl" in log]
    assert kl[0] == pytest.approx(0, abs=1e-6)
    assert kl[-1] > 1e-6
    assert all("lora" in name for name, value in trainer.model.named_parameters() if value.requires_grad)


def test_gradient_checkpointing_changes_nothing(grpo: Run) -> None:
    plain, checkpointed = Gradients(), Gradients()
    grpo(callbacks=[plain], max_steps=1, per_device_train_batch_size=16).train()
    grpo(callbacks=[checkpointed], max_steps=1, per_device_train_batch_size=16, gradient_checkpointing=True).train()
    assert furthest(plain.steps[0], checkpointed.steps[0]) < 1e-5


def test_rows_layout_learns_the_same(grpo: Run) -> None:
    shared, rows = Gradients(), Gradients()
    grpo(callbacks=[shared], max_steps=1, per_device_train_batch_size=16).train()
    trainer = grpo(callbacks=[rows], max_steps=1, per_device_train_batch_size=16, layout="rows")
    trainer.train()
    assert trainer.policy.layout == "rows"
    assert furthest(shared.steps[0], rows.steps[0]) < 2e-5


def test_completions_that_nobody_sampled_are_learned_from_without_correction(grpo: Run) -> None:
    """All of them or some: the gradient is that of on-policy training, and the page and the metrics say what is not known."""

    def reported(share: str) -> tuple[dict[str, torch.Tensor], dict[str, float], list[Any]]:
        """A step's gradients, its log and the rows it kept, where a sampler reports those of all, of some or of no completions."""
        trainer = grpo(callbacks=[found := Gradients()], max_steps=1, per_device_train_batch_size=16)
        sample = trainer.sampler.sample

        def given(*args: Any) -> list[Group]:
            return [
                replace(
                    group,
                    completions=tuple(
                        replace(each, sampler_logp=REPORTED[share](place, each.sampler_logp))
                        for place, each in enumerate(group.completions)
                    ),
                )
                for group in sample(*args)
            ]

        trainer.sampler.sample = given
        trainer.train()
        rows = read_completions(trainer.args.output_dir).to_pylist()
        return found.steps[0], trainer.state.log_history[0], rows

    (on_policy, _, _), (nobody, log, kept), (some, log_of_some, kept_of_some) = map(reported, ("all", "none", "some"))
    assert furthest(on_policy, nobody) < 2e-5
    assert furthest(on_policy, some) < 2e-5
    assert all(row["logp"] == [] for row in kept)
    assert not any(name.startswith("sampling/") for name in log)
    unknown = [len(row["completion_ids"]) for row in kept_of_some if not row["logp"]]
    assert len(unknown) == len(kept_of_some) / 2
    share = sum(unknown) / sum(len(row["completion_ids"]) for row in kept_of_some)
    assert log_of_some["sampling/frac_unreported"] == pytest.approx(share)
    # A sampler that reports what it did not draw from is another matter.
    assert furthest(on_policy, reported("wrong")[0]) > 1e-2


REPORTED: dict[str, Callable[[int, torch.Tensor], torch.Tensor | None]] = {
    "all": lambda place, logp: logp,
    "some": lambda place, logp: logp if place % 2 else None,
    "none": lambda place, logp: None,
    "wrong": lambda place, logp: logp - 0.3 * place,
}
"""Place of a completion in its group and its log-probabilities → what the sampler reports of them."""


def test_several_rewards_weighted_some_not_applicable(grpo: Run) -> None:
    def half(completions: list[Any], **columns: Any) -> list[float | None]:
        return [None if index % 2 else 2.0 for index in range(len(completions))]

    async def later(completions: list[Any], solution: list[str], **columns: Any) -> list[float]:
        assert len(solution) == len(completions)
        return [1.0] * len(completions)

    trainer = grpo(max_steps=1, per_device_train_batch_size=8, reward_funcs=[half, later], reward_weights=[0.5, 3.0])
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["rewards/half/mean"] == 2.0
    assert log["reward"] == pytest.approx((4.0 + 3.0) / 2)


def test_a_reward_that_fails_always_stops_the_run(grpo: Run) -> None:
    def broken(completions: list[Any], **columns: Any) -> list[float]:
        raise RuntimeError("no judge today")

    with pytest.raises(RewardError, match=r"'broken' failed .* no judge today"):
        grpo(max_steps=1, per_device_train_batch_size=8, reward_funcs=broken).train()


def test_saved_folder_is_plain_transformers(grpo: Run, tmp_path: Path) -> None:
    """The export loads without boresight and answers as the trainer's model does."""
    trainer = grpo(max_steps=2, per_device_train_batch_size=8)
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "final")
    processor = AutoProcessor.from_pretrained(tmp_path / "final")
    assert "branch" not in (tmp_path / "final" / "config.json").read_text()
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    assert processor.tokenizer.get_vocab() == trainer.processing_class.tokenizer.get_vocab()


def test_bf16_checkpoint_trains_in_float32_and_is_saved_in_bf16(model_folder: Path, tmp_path: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(model_folder, dtype=torch.bfloat16)
    model.model.visual.requires_grad_(False)
    config = GRPOConfig(
        **QUIET,
        output_dir=str(tmp_path),
        num_generations=4,
        max_completion_length=4,
        max_steps=1,
        per_device_train_batch_size=4,
    )
    trainer = GRPOTrainer(model, vowel_share, config, records())
    kinds = {value.dtype for value in trainer.model.model.language_model.parameters()}
    assert kinds == {torch.float32}
    assert {value.dtype for value in trainer.model.model.visual.parameters()} == {torch.bfloat16}
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    saved = AutoModelForImageTextToText.from_pretrained(tmp_path / "final", dtype="auto")
    assert {value.dtype for value in saved.parameters()} == {torch.bfloat16}


def test_the_reference_follows_and_resumes(grpo: Run, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "beta": 0.1,
        "sync_ref_model": True,
        "ref_model_sync_steps": 2,
        "ref_model_mixup_alpha": 0.25,
    }
    options |= {"max_steps": 4, "per_device_train_batch_size": 8, "save_strategy": "steps", "save_steps": 3}
    whole = grpo(output_dir=str(tmp_path / "whole"), **options)
    start = weights(whole)
    whole.train()
    assert whole.reference is not None
    moved = dict(whole.reference.forward.model.named_parameters())
    assert any(not torch.equal(moved[name], value) for name, value in start.items())
    again = grpo(output_dir=str(tmp_path / "again"), **options)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    for name, value in again.reference.forward.model.named_parameters():
        assert torch.equal(value, moved[name])


def test_gold_answers_are_checked_before_training(grpo: Run, capsys: pytest.CaptureFixture[str]) -> None:
    grpo(reward_funcs=exact_answer_reward)
    assert "gold check: exact_answer_reward gives full marks to all 24 gold answers" in capsys.readouterr().out
    rows = records()
    rows[3]["solution"] = "<answer>two</answer><answer>answers</answer>"
    with pytest.raises(RewardError, match=r"does not give full marks to 1 of 24 gold answers: row 3 .*gold_template"):
        grpo(reward_funcs=exact_answer_reward, train_dataset=rows, gold_check="error")
    grpo(reward_funcs=exact_answer_reward, train_dataset=rows, gold_check="off")
    assert "gold check" not in capsys.readouterr().out


def test_of_a_stream_the_first_gold_answers_are_checked(grpo: Run, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [{"role": "user", "content": "which color?"}]
    rows: list[dict[str, Any]] = [{"prompt": asked, "solution": f"red {place}"} for place in range(100)]
    rows[0]["prompt"] = [{"role": "user"}]  # cannot be read: `on_bad_row` drops it when training comes to it
    rows[5]["solution"] = "<answer>two</answer><answer>answers</answer>"

    def build(stop: int, **options: Any) -> None:
        stream = IterableDataset.from_generator(lambda: iter(rows[:stop]))
        grpo(reward_funcs=exact_answer_reward, train_dataset=stream, max_steps=1, on_bad_row="drop", **options)

    build(5, gold_check="error")
    printed = capsys.readouterr().out
    assert "gold check: the rows are streamed, so their first 4 are tried." in printed
    assert "gold check: exact_answer_reward gives full marks to all 4 gold answers" in printed
    with pytest.raises(RewardError, match=r"does not give full marks to 1 of 64 gold answers: row 5 "):
        build(100, gold_check="error")
    capsys.readouterr()
    build(1)
    assert "gold check" not in capsys.readouterr().out


def test_a_template_that_opens_think_is_reported_and_its_completions_are_whole(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Known before training; the format rewards and rewards of one's own learn of it."""
    seen: list[bool] = []

    def told(completions: Any, think_opened: Any, solution: Any) -> list[float]:
        seen.extend(think_opened)
        return [float(">" not in completion[0]["content"].partition("</think>")[0]) for completion in completions]

    for tail, note in {
        "<think>\n": "the chat template opens <think> itself",
        "<think>\n\n</think>\n\n": "the chat template closes <think> itself",
        "": None,
    }.items():
        seen.clear()
        processor = AutoProcessor.from_pretrained(model_folder)
        opening = "<|im_start|>assistant\n"
        assert opening in processor.chat_template
        processor.chat_template = processor.chat_template.replace(opening, opening + tail)
        processor.save_pretrained(tmp_path / "processor")
        config = GRPOConfig(
            **QUIET | {"max_steps": 1},
            output_dir=str(tmp_path / f"run{len(tail)}"),
            num_generations=4,
            max_completion_length=8,
        )
        trainer = GRPOTrainer(
            str(model_folder),
            told,
            config,
            records(),
            processing_class=AutoProcessor.from_pretrained(tmp_path / "processor"),
        )
        printed = capsys.readouterr().out
        assert ("the chat template" in printed) == (note is not None) and (note or "") in printed
        assert ("gold check: told gives full marks" in printed) == (tail == "<think>\n")
        trainer.train()
        assert seen and set(seen) == {tail == "<think>\n"}


def test_a_reward_that_applies_to_no_row_is_said_before_training(grpo: Run, capsys: pytest.CaptureFixture[str]) -> None:
    grpo(reward_funcs=["numeric_answer_reward", "iou_reward"], gold_check="warn")
    printed = " ".join(capsys.readouterr().out.split())
    assert "gold check: numeric_answer_reward applies to none of the 24 gold answers" in printed
    assert "gold check: iou_reward applies to none of the rows: they have no bbox" in printed
    with pytest.raises(RewardError, match="numeric_answer_reward applies to none of the 24 gold answers"):
        grpo(reward_funcs="numeric_answer_reward", gold_check="error")


def test_a_reward_may_ask_the_gold_check_for_sizes_in_the_model(grpo: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """The rows of the check are not processed until a reward asks."""

    def sized(completions: Any, solution: Any, model_image_sizes: Any) -> list[float]:
        assert all(width > 0 for sizes in model_image_sizes for width, _ in sizes)
        return [float(gold in completion[0]["content"]) for gold, completion in zip(solution, completions, strict=True)]

    grpo(reward_funcs=sized)
    assert "gold check: sized gives full marks to all 24 gold answers" in capsys.readouterr().out


def test_log_metric_cannot_change_the_trainers_own(grpo: Run) -> None:
    def greedy(completions: Any, log_metric: Any, **columns: Any) -> list[float]:
        log_metric("reward", 1000.0)
        return [0.0] * len(completions)

    with pytest.raises(RewardError, match=r"log_metric\('reward', …\)"):
        grpo(reward_funcs=greedy, max_steps=1).train()


def test_rewards_in_workers_train_the_same(grpo: Run) -> None:
    here, there = grpo(max_steps=2), grpo(max_steps=2, reward_workers=1)
    here.train()
    there.train()
    there.scorer.close()
    assert furthest(weights(here), weights(there)) == 0
    assert there.state.log_history[0]["rewards/vowel_share/failed"] == 0


def test_a_reward_that_asks_gets_sizes_as_the_model_saw_them(grpo: Run) -> None:
    seen: list[Any] = []

    def looks(
        completions: list[Any], model_image_sizes: list[Any], image_sizes: list[Any], **columns: Any
    ) -> list[float]:
        seen.extend(zip(model_image_sizes, image_sizes, strict=True))
        return [float(index % 3) for index, _ in enumerate(completions)]

    grpo(reward_funcs=looks, max_steps=1, per_device_train_batch_size=16).train()
    assert ([], []) in seen
    (model, original) = next(pair for pair in seen if pair[0])
    assert original == [(64, 64)]
    assert all(side % 4 == 0 and side > 0 for size in model for side in size)

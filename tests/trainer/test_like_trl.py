"""What users of TRL rely on when they change the import, with TRL's own values where TRL is run beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDataset
from transformers import AutoTokenizer, TrainingArguments

from boresight import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer, SFTConfig, SFTTrainer
from boresight.data import RowDataset
from boresight.errors import ConfigError
from boresight.trainer.config import as_config
from boresight.trainer.steps import StepPlan, StreamedBatches

from .conftest import QUIET, Run, demonstrations, records, vowel_share


def pairs(num_rows: int = 6) -> list[dict[str, Any]]:
    return [
        {
            "prompt": row["prompt"],
            "image": row["image"],
            "chosen": [{"role": "assistant", "content": " ".join(["yes"] * (1 + index % 3))}],
            "rejected": [{"role": "assistant", "content": "no"}],
        }
        for index, row in enumerate(records(num_rows))
    ]


class TestEvaluation:
    def test_grpo_has_an_evaluation_loss_and_loads_the_best_model(self, grpo: Run) -> None:
        run = grpo(
            max_steps=2, per_device_train_batch_size=4, beta=0.1, eval_dataset=records(2), per_device_eval_batch_size=4,
            eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1, load_best_model_at_end=True,
        )  # fmt: skip
        before = run.evaluate()
        # Under its own weights the importance ratio is 1, the KL is 0, and advantages sum to 0 in a group of equally long completions.
        assert before["eval_loss"] == pytest.approx(0.0, abs=0.2)
        assert before["eval_kl"] == pytest.approx(0.0, abs=1e-6)
        assert before["eval_entropy"] > 1
        run.train()
        losses = [line["eval_loss"] for line in run.state.log_history if "eval_loss" in line]
        assert run.state.best_metric == min(losses)

    def test_the_evaluation_loss_is_the_loss_of_the_sampled_groups(self, grpo: Run) -> None:
        run = grpo(max_steps=1, per_device_train_batch_size=4, eval_dataset=records(2), beta=0.3, loss_type="grpo")
        with torch.no_grad():  # another reference, so that the KL is not 0
            for weight in run.reference.forward.model.parameters():
                weight.mul_(1.05)
        found = run.evaluate()
        # Advantages of a group sum to 0 and "grpo" weighs completions equally, so what is left is beta times the KL.
        assert found["eval_loss"] == pytest.approx(0.3 * found["eval_kl"], rel=0.3)
        assert found["eval_kl"] > 1e-4

    @pytest.mark.parametrize("make", [dict, DatasetDict])
    def test_every_set_of_a_dictionary_is_evaluated(self, sft: Run, make: Any) -> None:
        rows = Dataset.from_list([{k: v for k, v in row.items() if k != "image"} for row in demonstrations(8)])
        run = sft(max_steps=1, eval_dataset=make(train=rows.select(range(2)), test=rows.select(range(2, 7))))
        found = run.evaluate()
        assert {"eval_train_loss", "eval_test_loss"} <= found.keys()
        assert found["eval_train_loss"] != found["eval_test_loss"]

    def test_the_last_rows_of_a_stream_are_evaluated(self, sft: Run) -> None:
        rows = [{k: v for k, v in row.items() if k != "image"} for row in demonstrations(5)]
        stream = IterableDataset.from_generator(lambda: iter(rows))
        whole, streamed = (sft(max_steps=1, eval_dataset=data, per_device_eval_batch_size=4) for data in (rows, stream))
        assert streamed.evaluate()["eval_loss"] == pytest.approx(whole.evaluate()["eval_loss"], rel=1e-5)

    def test_pairs_of_another_set_against_a_precomputed_reference(self, model_folder: Path, tmp_path: Path) -> None:
        config = DPOConfig(
            output_dir=str(tmp_path), **QUIET, precompute_ref_log_probs=True, max_steps=2, per_device_train_batch_size=4
        )
        run = DPOTrainer(str(model_folder), args=config, train_dataset=pairs(4))
        other = [{**row, "rejected": [{"role": "assistant", "content": "green"}]} for row in pairs(4)]
        unseen = [{**row, "rejected": [{"role": "assistant", "content": "blue"}]} for row in pairs(4)]
        assert run.evaluate(other)["eval_loss"] == pytest.approx(0.6931472, abs=1e-5)
        run.train()
        assert run.evaluate(other)["eval_loss"] != pytest.approx(0.6931472, abs=1e-5)
        with pytest.raises(ConfigError, match="was not computed before training"):
            run.evaluate(unseen)


@pytest.mark.parametrize(
    ("num_rows", "world_size", "expected"),
    [
        (4, 1, [[0, 1], [2, 3]]),
        (5, 1, [[0, 1], [2, 3], [4]]),
        (7, 2, [[0, 1], [4, 5]]),  # rank 1 has [2, 3] and [6]
        (9, 2, [[0, 1], [4, 5, 6]]),  # one row is fewer than two ranks: it joins the step before
    ],
)
def test_the_rest_of_a_stream(num_rows: int, world_size: int, expected: list[list[int]]) -> None:
    ranks = [
        list(StreamedBatches(range(num_rows), StepPlan(2, 2), rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    assert ranks[0] == expected
    assert sorted(row for rank in ranks for step in rank for row in step) == list(range(num_rows))
    assert all(step for rank in ranks for step in rank)


class TestLogs:
    def test_the_first_and_the_last_step_are_logged(self, grpo: Run) -> None:
        run = grpo(max_steps=5, per_device_train_batch_size=4, logging_steps=3)
        run.train()
        steps = [line["step"] for line in run.state.log_history if "loss" in line]
        assert steps == [1, 3, 5]
        assert all("reward" in line for line in run.state.log_history if "loss" in line)
        lines = [json.loads(line) for line in Path(run.args.output_dir, "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines if "reward" in line] == [1, 3, 5]

    def test_tokens_are_counted_from_the_start_with_a_prompt_for_each_completion(
        self, model_folder: Path, tmp_path: Path
    ) -> None:
        run = DPOTrainer(
            str(model_folder),
            args=DPOConfig(output_dir=str(tmp_path), **QUIET, max_steps=2, per_device_train_batch_size=2),
            train_dataset=pairs(4),
        )
        run.train()
        counts = [line["num_tokens"] for line in run.state.log_history if "num_tokens" in line]
        groups = [run.encode(row) for row in (run.get_train_dataloader().dataset.rows[index] for index in range(4))]
        expected = sum(2 * len(group.prompt.ids) + sum(len(each.ids) for each in group.completions) for group in groups)
        assert counts[-1] == expected
        assert counts[0] < counts[1]

    def test_the_loss_without_its_entropy_bonus(self, grpo: Run) -> None:
        run = grpo(max_steps=1, per_device_train_batch_size=4, entropy_coef=0.25)
        run.train()
        line = run.state.log_history[0]
        assert line["entropy_coef"] == 0.25
        assert line["policy_loss"] - 0.25 * line["entropy"] == pytest.approx(line["loss"], abs=1e-4)


class TestConfigurations:
    @pytest.mark.parametrize(
        ("config", "options"),
        [
            (SFTConfig, {"loss_type": "nll", "packing": False, "dataset_kwargs": {"skip_prepare_dataset": True}}),
            (SFTConfig, {"remove_unused_columns": True, "dataset_num_proc": 4, "use_liger_kernel": True}),
            (DPOConfig, {"truncation_mode": "keep_start", "padding_free": False, "dataset_num_proc": 4, "pad_token": "x"}),
            (GRPOConfig, {"log_unique_prompts": True, "cache_implementation": "static", "cast_lm_head_to_fp32": True}),
        ],
    )  # fmt: skip
    def test_options_that_change_nothing_are_accepted(
        self, config: Any, options: dict[str, Any], tmp_path: Path
    ) -> None:
        config(output_dir=str(tmp_path), **options)

    def test_and_named_once(self, sft: Run, capsys: pytest.CaptureFixture[str]) -> None:
        sft(max_steps=1, use_liger_kernel=True, packing_strategy="bfd")
        printed = capsys.readouterr().out
        assert printed.count("use_liger_kernel=True changes nothing") == 1
        assert "packing_strategy" not in printed  # a default

    @pytest.mark.parametrize(
        ("config", "option", "value"),
        [
            (SFTConfig, "packing", True),
            (SFTConfig, "loss_type", "dft"),
            (SFTConfig, "dataset_kwargs", {"add_special_tokens": False}),
            (DPOConfig, "truncation_mode", "keep_end"),
            (GRPOConfig, "use_adaptive_entropy", True),
            (GRPOConfig, "generation_kwargs", {"num_beams": 4}),
        ],
    )
    def test_values_that_would_change_something_are_refused(
        self, config: Any, option: str, value: Any, tmp_path: Path
    ) -> None:
        with pytest.raises(ConfigError, match=option):
            config(output_dir=str(tmp_path), **{option: value})

    def test_generation_kwargs_are_options_of_sampling(self, tmp_path: Path) -> None:
        config = GRPOConfig(output_dir=str(tmp_path), generation_kwargs='{"top_k": 7, "max_new_tokens": 9}')
        assert (config.top_k, config.max_completion_length) == (7, 9)

    def test_plain_training_arguments(self, model_folder: Path, tmp_path: Path) -> None:
        plain = TrainingArguments(
            output_dir=str(tmp_path),
            report_to="none",
            use_cpu=True,
            max_steps=1,
            learning_rate=3e-4,
            seed=9,
        )
        for cls in (SFTConfig, DPOConfig, GRPOConfig):
            config = as_config(plain, cls)
            assert (type(config), config.max_steps, config.learning_rate, config.seed) == (cls, 1, 3e-4, 9)
        assert isinstance(SFTTrainer(str(model_folder), args=plain, train_dataset=demonstrations(8)).args, SFTConfig)

    def test_the_configuration_of_another_method(self, model_folder: Path, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="args is a DPOConfig: pass a SFTConfig"):
            SFTTrainer(str(model_folder), DPOConfig(output_dir=str(tmp_path)), demonstrations(4))

    def test_no_rows_at_all(self, model_folder: Path, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="SFTTrainer has no rows"):
            SFTTrainer(str(model_folder), SFTConfig(output_dir=str(tmp_path), **QUIET))


@pytest.mark.parametrize("narrow", [{"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.01}, {"repetition_penalty": 1.3}])
def test_narrowed_sampling_trains_with_the_correction(grpo: Run, narrow: dict[str, Any]) -> None:
    """The sampler's own distribution is reported, so the correction's weight is the ratio of the policy's probability to it."""
    run = grpo(max_steps=1, per_device_train_batch_size=4, **narrow)
    run.train()
    line = run.state.log_history[0]
    assert line["sampling/narrowed"] == 1
    ratio = line["sampling/importance_sampling_ratio/mean"]
    if "repetition_penalty" in narrow:
        assert ratio != pytest.approx(1.0, abs=1e-3)
    else:  # what is left of the distribution is renormalised, so every sampled token was likelier there
        assert ratio < 0.999
        assert line["sampling/importance_sampling_ratio/max"] <= 1 + 1e-4
    verdicts = Path(run.args.output_dir, "verdicts.jsonl").read_text()
    assert "sampler_drift" not in verdicts


def test_a_tokenizer_with_a_template_of_its_own(model_folder: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    content = "m['content'] if m['content'] is string else m['content'][-1]['text']"
    tokenizer.chat_template = "{% for m in messages %}MYROLE {{ " + content + " }}{% endfor %}"
    config = GRPOConfig(output_dir=str(tmp_path), **QUIET, num_generations=4, per_device_train_batch_size=4)
    rows = [{k: v for k, v in row.items() if k != "image"} for row in records(4)]
    run = GRPOTrainer(str(model_folder), vowel_share, config, rows, processing_class=tokenizer)
    prompt = next(iter(run.get_train_dataloader()))[0]
    assert run.encoder.tokenizer.decode(prompt.ids).startswith("MYROLE")


@pytest.mark.parametrize("method", ["spawn", pytest.param("forkserver", marks=pytest.mark.soak)])
def test_workers_start_without_fork(grpo: Run, method: str) -> None:
    run = grpo(
        max_steps=1, per_device_train_batch_size=4, dataloader_num_workers=1, gradient_checkpointing=True,
        dataloader_multiprocessing_context=method,
        reward_funcs=lambda completions, **_: [float(len(each[0]["content"])) for each in completions],
    )  # fmt: skip
    loader = run.get_train_dataloader()
    (prompt,) = next(iter(loader))
    assert torch.equal(prompt.ids, run.encode(loader.dataset.rows[prompt.row.index]).ids)


def test_dropout_of_the_policy_can_be_switched_off(grpo: Run) -> None:
    run = grpo(max_steps=1, per_device_train_batch_size=4, disable_dropout=True)
    assert all(module.p == 0 for module in run.model.modules() if isinstance(module, torch.nn.Dropout))


class TestRLOO:
    def test_trl_defaults(self, tmp_path: Path) -> None:
        import trl  # slow

        ours, theirs = RLOOConfig(output_dir=str(tmp_path)), trl.RLOOConfig(output_dir=str(tmp_path), bf16=False)
        for name in (
            "num_generations",
            "beta",
            "epsilon",
            "learning_rate",
            "normalize_advantages",
            "reward_clip_range",
            "temperature",
        ):
            assert getattr(ours, name) == getattr(theirs, name), name

    def test_the_kl_is_part_of_the_reward(self, model_folder: Path, tmp_path: Path) -> None:
        """Advantages are those of reward − beta · Σ log(policy / reference), against the mean of the others."""
        config = RLOOConfig(
            output_dir=str(tmp_path), **QUIET, max_completion_length=6, per_device_train_batch_size=4, beta=0.5, max_steps=1,
            num_generations=4,
        )  # fmt: skip
        run = RLOOTrainer(str(model_folder), vowel_share, config, records(4))
        with torch.no_grad():
            for weight in run.reference.forward.model.parameters():  # pyright: ignore[reportOptionalMemberAccess]
                weight.mul_(1.05)
        (prompt,) = next(iter(run.get_train_dataloader()))
        (item,) = run.collect([prompt])
        rewards = torch.tensor(vowel_share([[{"content": each.text}] for each in item.group.completions]))
        policy, reference = run.logp([item.group], run.policy)[0], run.logp([item.group], run.reference)[0]  # pyright: ignore[reportArgumentType]
        kl = torch.stack(
            [
                (a - b)[: len(each.ids)].sum()
                for a, b, each in zip(policy, reference, item.group.completions, strict=True)
            ]
        )
        value = rewards - 0.5 * kl
        others = (value.sum() - value) / 3
        torch.testing.assert_close(item.advantage, value - others, atol=1e-5, rtol=1e-5)
        assert item.reference is None  # the loss has no KL of its own
        assert kl.abs().max() > 1e-3


def test_the_model_of_the_reference(grpo: Run) -> None:
    run = grpo(max_steps=1, per_device_train_batch_size=4, beta=0.1)
    assert run.ref_model is not None and run.ref_model is not run.model
    assert {name: tuple(value.shape) for name, value in run.ref_model.named_parameters()} == {
        name: tuple(value.shape) for name, value in run.model.named_parameters()
    }
    assert grpo(max_steps=1, per_device_train_batch_size=4, beta=0.0).ref_model is None
    assert grpo(max_steps=1, per_device_train_batch_size=4, beta=0.1, train="language=lora").ref_model is None


class TestPlainText:
    ROWS = Dataset.from_list(
        [{"question": f"is {place} even?", "reply": "yes" * (1 + place % 3)} for place in range(6)]
    )
    AS_TEXT = Dataset.from_list([{"text": f"{row['question']} {row['reply']}"} for row in ROWS])  # pyright: ignore[reportArgumentType, reportCallIssue]

    def losses(self, model: Path, folder: Path, rows: Any, formatting_func: Any = None, **options: Any) -> list[float]:
        config = SFTConfig(output_dir=str(folder), **QUIET, max_steps=2, per_device_train_batch_size=3, **options)
        run = SFTTrainer(str(model), config, rows, {"held": rows}, formatting_func=formatting_func)
        run.train()
        again = run.evaluate(rows)["eval_loss"]  # rows that the trainer has not seen yet are formatted, too
        assert run.evaluate()["eval_held_loss"] == again
        return [line["loss"] for line in run.state.log_history if "loss" in line]

    def test_a_formatting_function_and_a_text_field(self, model_folder: Path, tmp_path: Path) -> None:
        plain = self.losses(model_folder, tmp_path / "a", self.AS_TEXT)
        made = self.losses(
            model_folder, tmp_path / "b", self.ROWS, formatting_func=lambda row: f"{row['question']} {row['reply']}"
        )
        named = self.losses(
            model_folder, tmp_path / "c", self.AS_TEXT.rename_column("text", "body"), dataset_text_field="body"
        )
        assert plain == made == named

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"completion_only_loss": True}, "completion_only_loss=True needs a prompt"),
            ({"assistant_only_loss": True}, "assistant_only_loss=True needs an assistant's turns"),
            ({"dataset_text_field": "body"}, "both name the text of a row"),
        ],
    )
    def test_options_that_need_other_rows(
        self, model_folder: Path, tmp_path: Path, options: dict[str, Any], message: str
    ) -> None:
        config = SFTConfig(output_dir=str(tmp_path), **QUIET, **options)
        with pytest.raises(ConfigError, match=message):
            SFTTrainer(str(model_folder), config, self.ROWS, formatting_func=str)

    def test_token_ids_are_learned_from_as_the_text_is(self, model_folder: Path, tmp_path: Path) -> None:
        config = SFTConfig(output_dir=str(tmp_path / "a"), **QUIET)
        groups = list(map(SFTTrainer(str(model_folder), config, self.AS_TEXT).encode, RowDataset(self.AS_TEXT)))
        ids = [{"input_ids": torch.cat([group.prompt.ids, group.completions[0].ids]).tolist()} for group in groups]
        plain = self.losses(model_folder, tmp_path / "b", self.AS_TEXT)
        assert self.losses(model_folder, tmp_path / "c", Dataset.from_list(ids)) == plain


def test_pairs_of_strings_without_a_prompt(model_folder: Path, tmp_path: Path) -> None:
    rows = [{"chosen": f"color {place}? blue", "rejected": f"color {place}? black"} for place in range(4)]
    config = DPOConfig(output_dir=str(tmp_path), **QUIET, max_steps=1, per_device_train_batch_size=4)
    run = DPOTrainer(str(model_folder), args=config, train_dataset=rows)
    run.train()
    assert run.state.log_history[0]["loss"] == pytest.approx(0.6931472, abs=1e-5)
    assert [each.text for each in run.encode(RowDataset(rows)[1]).completions] == [" blue", " black"]

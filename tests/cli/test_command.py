"""Flags, a file of options and a preset become the configurations of the rooms."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from boresight import DPOConfig, GRPOConfig, RLOOConfig, SFTConfig
from boresight.cli import TRAINING, peft_config, read_command
from boresight.cli.command import Command
from boresight.errors import ConfigError
from boresight.trainer.presets import PRESETS

BASE = ["--model_name_or_path", "folder/model", "--dataset_name", "rows.csv", "--use_cpu"]
SAMPLED = [
    *BASE,
    "--reward_funcs",
    "exact_answer_reward",
    "--num_generations",
    "4",
    "--per_device_train_batch_size",
    "4",
]


def read(name: str, *words: str, base: list[str] | None = None, **defaults: Any) -> Command:
    return read_command(
        name, [*((SAMPLED if name in ("grpo", "gspo", "rloo") else BASE) if base is None else base), *words], **defaults
    )


@pytest.mark.parametrize("name", TRAINING)
def test_every_method_has_its_own_configuration(name: str, tmp_path: Path) -> None:
    command = read(name, "--output_dir", str(tmp_path))
    kinds = {
        "sft": SFTConfig,
        "dpo": DPOConfig,
        "mpo": DPOConfig,
        "grpo": GRPOConfig,
        "gspo": GRPOConfig,
        "rloo": RLOOConfig,
    }
    assert type(command.training) is kinds[name]
    assert command.training == kinds[name](
        output_dir=str(tmp_path), use_cpu=True, **{option: setting.value for option, setting in command.recipe.items()},
        **({"num_generations": 4, "per_device_train_batch_size": 4} if name in ("grpo", "gspo", "rloo") else {}),
    )  # fmt: skip
    assert command.model.model_name_or_path == "folder/model"
    assert peft_config(command) is None


class TestPresets:
    @pytest.mark.parametrize("preset", [name for name in PRESETS if name != "mpo"])
    def test_a_preset_sets_all_of_it_and_says_so(self, preset: str, capsys: pytest.CaptureFixture[str]) -> None:
        command = read("grpo", "--preset", preset)
        printed = capsys.readouterr().out
        assert printed.startswith(f"{preset} sets:\n")
        for option, setting in PRESETS[preset].items():
            assert getattr(command.training, option) == setting.value
            assert f"{option}={setting.value!r}" in printed
            assert setting.source in printed

    @pytest.mark.parametrize("name", ["gspo", "mpo"])
    def test_a_command_that_is_a_preset(self, name: str, capsys: pytest.CaptureFixture[str]) -> None:
        command = read(name)
        assert {option: getattr(command.training, option) for option in PRESETS[name]} == {
            option: setting.value for option, setting in PRESETS[name].items()
        }
        assert capsys.readouterr().out.count("arXiv") >= 1

    def test_what_is_typed_wins_and_is_shown(self, capsys: pytest.CaptureFixture[str]) -> None:
        command = read("grpo", "--preset", "dapo", "--epsilon_high", "0.3")
        assert (command.training.epsilon_high, command.training.epsilon) == (0.3, 0.2)
        assert "epsilon_high=0.28; here 0.3" in capsys.readouterr().out

    def test_even_the_default_wins_when_typed(self) -> None:
        assert read("grpo", "--preset", "grpo", "--beta", "0").training.beta == 0.0
        assert read("grpo", "--preset", "grpo").training.beta == 0.04

    def test_the_same_in_other_words_wins_too(self) -> None:
        command = read("gspo", "--generation_batch_size", "8")
        assert (command.training.generation_batch_size, command.training.steps_per_generation) == (8, None)

    @pytest.mark.parametrize("name", ["dapoo", "mpo"])
    def test_no_such_preset(self, name: str) -> None:
        with pytest.raises(ConfigError, match=f"no preset '{name}'"):
            read("grpo", "--preset", name)


class TestFile:
    def test_the_command_line_wins_over_the_file_and_that_over_the_preset(self, tmp_path: Path) -> None:
        file = tmp_path / "options.yaml"
        file.write_text(
            "model_name_or_path: m\ndataset_name: d.csv\nreward_funcs: [exact_answer_reward, my_module.f]\nuse_cpu: true\n"
            "learning-rate: 2e-5\npreset: dapo\nepsilon: 0.1\nepsilon_high: null\ngradient_checkpointing: false\n"
            "model_init_kwargs: {subfolder: x}\nreport_to: [none]\n"
        )
        command = read("grpo", "--config", str(file), "--epsilon", "0.15", "--no_gradient_checkpointing", base=[])
        assert command.training.learning_rate == 2e-5
        assert (command.training.epsilon, command.training.epsilon_high) == (0.15, None)
        assert command.training.loss_type == "dapo"
        assert command.training.gradient_checkpointing is False
        assert command.training.model_init_kwargs == {"subfolder": "x"}
        assert command.rewards.reward_funcs == ["exact_answer_reward", "my_module.f"]

    def test_variables_of_the_environment(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SOME_NAME", "before")
        (tmp_path / "options.yaml").write_text("env:\n  SOME_NAME: 7\nlearning_rate: 1e-3\n")
        assert read("sft", "--config", str(tmp_path / "options.yaml")).training.learning_rate == 1e-3
        assert os.environ["SOME_NAME"] == "7"
        (tmp_path / "options.yaml").write_text("env: [SOME_NAME]\n")
        with pytest.raises(ConfigError, match="env must be a mapping of environment variables"):
            read("sft", "--config", str(tmp_path / "options.yaml"))

    def test_an_empty_file(self, tmp_path: Path) -> None:
        (tmp_path / "empty.yaml").write_text("# nothing yet\n")
        assert read("sft", "--config", str(tmp_path / "empty.yaml")).training.learning_rate == 2e-5

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("learning_rat: 1", "there is no option 'learning_rat'. Did you mean 'learning_rate'?"),
            ("- a\n- b", "contains a list"),
            ("a: [", "is not valid YAML"),
            ("max_steps: few", "invalid int value: 'few'"),
            ("datasets: shapes.csv", "datasets must be a list of mappings"),
            ("datasets: [{path: a.csv}]", "both set the training data"),
        ],
    )
    def test_bad_files(self, tmp_path: Path, text: str, message: str) -> None:
        file = tmp_path / "options.yaml"
        file.write_text(text)
        with pytest.raises(ConfigError) as caught:
            read("sft", "--config", str(file))
        assert message in str(caught.value)

    def test_no_such_file(self) -> None:
        with pytest.raises(ConfigError, match="No such file"):
            read("sft", "--config", "nowhere.yaml")


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("sft", ["--lora_r", "8"], "lora_r=8 has no effect: add --train language=lora, or --use_peft, or drop it."),
        ("sft", ["--dataset_test_split", "test"], "--dataset_test_split has no effect while nothing is evaluated"),
        ("sft", ["--test_split_size", "0.1"], "add --eval_strategy steps"),
        (
            "sft",
            ["--num_processes", "2"],
            "num_processes=2 has no effect: add --accelerate_config multi_gpu, or drop it.",
        ),
        ("sft", ["--accelerate_config", "multi_gp"], "Did you mean 'multi_gpu'?"),
        (
            "sft",
            ["--dtype", "float8"],
            "'float8' is not one of auto, float32, bfloat16, float16. Did you mean 'float32'?",
        ),
        ("sft", ["--log_completions"], "it samples no completions"),
        ("sft", ["--deepspeed", "ds.json"], "--accelerate_config fsdp2"),
        (
            "sft",
            ["--resume_from_checkpoint", "last", "--output_dir", "nowhere"],
            "nowhere has no checkpoint to resume from",
        ),
        ("sft", ["--resume_from_checkpoint", "nowhere"], "there is no such folder"),
        ("sft", ["--load_best_model_at_end"], "needs evaluations: set eval_strategy"),
        ("dpo", ["--loss_weights", "1", "2"], "loss_weights"),
        ("grpo", ["--loss_type", "gspo"], "loss_type"),
        ("grpo", ["--num_generations", "3"], "Nearest: num_prompts_per_step"),
    ],
)
def test_what_contradicts_or_has_no_effect(name: str, words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(name, *words)
    assert message.lower() in str(caught.value).lower()


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ([], "Which model?"),
        (["--model_name_or_path", "m"], "Which training data?"),
        (["--model_name_or_path", "m", "--dataset_name", "d"], "How is a completion scored?"),
    ],
)
def test_what_is_missing_is_asked_for(base: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read("grpo", base=base)
    assert str(caught.value).startswith(message)
    assert "--" in str(caught.value)


class TestModel:
    def test_how_it_is_loaded(self) -> None:
        words = ["--dtype", "bfloat16", "--model_revision", "v2", "--attn_implementation", "sdpa"]
        given = read("sft", *words, "--model_init_kwargs", '{"revision": "v3"}').training.model_init_kwargs
        assert given == {"dtype": "bfloat16", "revision": "v3", "attn_implementation": "sdpa"}
        assert read("sft", "--dtype", "auto").training.model_init_kwargs is None

    def test_an_adapter_as_the_articles_script_has_it(self) -> None:
        command = read(
            "sft", "--use_peft", "--lora_target_modules", "q_proj,", "v_proj", "--lora_r", "4", "--lora_dropout", "0"
        )
        config = peft_config(command)
        assert config.target_modules == {"q_proj", "v_proj"}
        assert (config.r, config.lora_alpha, config.lora_dropout) == (4, 32, 0.0)


def test_the_newest_checkpoint(tmp_path: Path) -> None:
    for step in (9, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
    command = read("sft", "--output_dir", str(tmp_path), "--resume_from_checkpoint", "last")
    assert command.training.resume_from_checkpoint == "last"  # the newest whole one: tests/trainer/test_run_folder.py


def test_defaults_of_a_script_lie_between_the_preset_and_the_file(tmp_path: Path) -> None:
    file = tmp_path / "options.yaml"
    file.write_text("seed: 5\n")
    command = read("grpo", "--config", str(file), "--preset", "dapo", seed=4, epsilon=0.1, data_seed=6)
    assert (command.training.seed, command.training.epsilon, command.training.data_seed) == (5, 0.1, 6)

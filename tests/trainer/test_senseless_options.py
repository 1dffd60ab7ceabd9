"""Options that make no sense end in an error that names them, in Python and on the command line; nothing else is ever raised."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from boresight import DPOConfig, GRPOConfig, SFTConfig
from boresight.cli import read_command
from boresight.cli.methods import options_of
from boresight.errors import UserError
from boresight.options import declarations

from .conftest import Run, demonstrations, records

CONFIGS = (SFTConfig, DPOConfig, GRPOConfig)
NAN, INF = math.nan, math.inf
BEST = {"save_strategy": "best", "metric_for_best_model": "loss"}

SENSELESS: list[tuple[type, dict[str, Any], str]] = [
    (SFTConfig, {"learning_rate": INF}, "learning_rate=inf"),
    (SFTConfig, {"weight_decay": NAN}, "weight_decay=nan"),
    (SFTConfig, {"adam_epsilon": INF}, "adam_epsilon=inf"),
    (SFTConfig, {"max_steps": 0}, "max_steps=0 trains nothing"),
    (SFTConfig, {"max_steps": None}, "max_steps=None is not a number: leave it out for its default, -1"),
    (SFTConfig, {"adam_beta1": None}, "adam_beta1=None is not a number"),
    (SFTConfig, {"num_train_epochs": 0}, "num_train_epochs=0"),
    (SFTConfig, {"save_steps": 0}, "save_steps=0"),
    (SFTConfig, {"save_steps": 2.5}, "save_steps=2.5 is neither"),
    (SFTConfig, {"save_total_limit": -1}, "save_total_limit=-1"),
    (SFTConfig, {"logging_steps": 0}, "logging_steps=0"),
    (SFTConfig, BEST, "save_strategy='best' needs evaluations"),
    (SFTConfig, {"load_best_model_at_end": True}, "load_best_model_at_end=True needs evaluations"),
    (SFTConfig, {"report_to": "wandbb"}, "report_to='wandbb' is no tracker. Did you mean 'wandb'?"),
    (SFTConfig, {"optim": "bogus"}, "bogus"),
    (SFTConfig, {"lr_scheduler_type": "bogus"}, "bogus"),
    (SFTConfig, {"remove_unused_columns": NAN}, "remove_unused_columns=nan is neither True nor False"),
    (SFTConfig, {"packing_strategy": NAN}, "packing_strategy=nan is not a finite number"),
    (SFTConfig, {"packing_strategy": 7}, "packing_strategy=7 is not a text"),
    (SFTConfig, {"use_cpu": "no"}, "use_cpu='no' is neither True nor False"),
    (SFTConfig, {"bf16": "yes"}, "bf16='yes'"),
    (SFTConfig, {"seed": "7"}, "seed='7'"),
    (SFTConfig, {"run_name": 7}, "run_name=7 is not a text or None"),
    (SFTConfig, {"shuffle_dataset": 2}, "shuffle_dataset=2"),
    (SFTConfig, {"dataloader_persistent_workers": True}, "has no effect: set dataloader_num_workers"),
    (SFTConfig, {"log_level": "loud"}, "log_level='loud' is not one of"),
    (SFTConfig, {"ddp_backend": "glooo"}, "Did you mean 'gloo'?"),
    (SFTConfig, {"dataloader_multiprocessing_context": "thread"}, "dataloader_multiprocessing_context='thread'"),
    (
        SFTConfig,
        {"lr_scheduler_kwargs": {"bogus": 1}},
        "lr_scheduler_kwargs={'bogus': 1}: it has no option 'bogus'. It has none.",
    ),
    (SFTConfig, {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycle": 1}}, "Did you mean 'num_cycles'?"),
    (
        SFTConfig,
        {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": "x"}},
        "{'num_cycles': 'x'}: could not",
    ),
    (
        SFTConfig,
        {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": NAN}},
        "num_cycles=nan is not a finite",
    ),
    (SFTConfig, {"lr_scheduler_type": "constant_with_warmup", "lr_scheduler_kwargs": {"x": 1}}, "it has no option 'x'"),
    (SFTConfig, {"lr_scheduler_type": "cosine_with_min_lr"}, "lr_scheduler_type='cosine_with_min_lr': One of min_lr"),
    (SFTConfig, {"lr_scheduler_type": "warmup_stable_decay"}, "num_decay_steps"),
    (SFTConfig, {"lr_scheduler_type": "inverse_sqrt", "lr_scheduler_kwargs": {"timescale": 0}}, "division by zero"),
    (
        SFTConfig,
        {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": 1.0}},
        "lr_end (1.0) must be smaller",
    ),
    (SFTConfig, {"optim_args": "bogus=1"}, "optim_args='bogus=1': it does not read 'bogus'. Drop it."),
    (SFTConfig, {"optim_args": "bogus"}, "'bogus' is not NAME=VALUE"),
    (SFTConfig, {"optim": "sgd", "optim_args": "momentum=-1"}, "optim_args='momentum=-1': Invalid momentum"),
    (SFTConfig, {"accelerator_config": {"bogus": 1}}, "accelerator_config has no entry 'bogus'"),
    (SFTConfig, {"accelerator_config": {"split_batches": True}}, "split_batches=True has no effect"),
    (
        SFTConfig,
        {"accelerator_config": {"gradient_accumulation_kwargs": {"num_steps": 4}}},
        "set gradient_accumulation_steps",
    ),
    (SFTConfig, {"accelerator_config": "no-file.json"}, "accelerator_config='no-file.json'"),
    (SFTConfig, {"gradient_checkpointing_kwargs": {"use_rentrant": False}}, "Did you mean 'use_reentrant'?"),
    (SFTConfig, {"gradient_checkpointing_kwargs": {"use_reentrant": "x"}}, "use_reentrant='x' is neither"),
    (SFTConfig, {"model_init_kwargs": {1: 2}}, "model_init_kwargs: 1 is no name"),
    (SFTConfig, {"model_init_kwargs": {"torch_dtype": "bfloat16"}}, "write dtype"),
    (DPOConfig, {"loss_weights": [NAN]}, "loss_weights=nan"),
    (DPOConfig, {"loss_weights": [-1.0]}, "loss_weights=-1.0"),
    (DPOConfig, {"loss_weights": [0.0]}, "loss_weights=[0.0]: the loss would be 0"),
    (
        DPOConfig,
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": NAN},
        "f_alpha_divergence_coef=nan",
    ),
    (GRPOConfig, {"temperature": 0.0}, "temperature=0 makes all completions"),
    (GRPOConfig, {"epsilon": 1.5}, "epsilon=1.5"),
    (GRPOConfig, {"reward_weights": [0.0, 0]}, "every reward would be 0"),
    (GRPOConfig, {"reward_weights": [INF]}, "reward_weights=inf"),
    (GRPOConfig, {"mask_truncated_completions": True, "max_completion_length": 1}, "leaves out every completion"),
    (GRPOConfig, {"log_completions": True, "num_completions_to_print": 0}, "num_completions_to_print=0"),
]


@pytest.mark.parametrize(("config", "options", "message"), SENSELESS)
def test_it_is_named(config: type, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        config(output_dir=str(tmp_path), **{"use_cpu": True, **options})
    assert message in str(caught.value)


SENSIBLE: list[dict[str, Any]] = [
    {"optim": "sgd", "optim_args": "momentum=0.9"},
    {"optim": "rmsprop", "optim_args": "alpha=0.9, eps=1e-6"},
    {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-6}},
    {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 3}, "warmup_steps": 0.1},
    {"lr_scheduler_type": "constant"},
    {"optim": "adafactor"},
    {"accelerator_config": {"non_blocking": True, "split_batches": False}},
    {"gradient_checkpointing_kwargs": {"use_reentrant": False}},
]


@pytest.mark.parametrize("options", SENSIBLE)
def test_what_makes_sense_is_taken(options: dict[str, Any], tmp_path: Path) -> None:
    SFTConfig(output_dir=str(tmp_path), use_cpu=True, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"model_init_kwargs": {"bogus": 1}},
            r"model_init_kwargs=\{'bogus': 1\}: .*unexpected keyword argument 'bogus'",
        ),
        ({"push_to_hub": True}, "push_to_hub=True: "),
        ({"optim": "lomo"}, "optim='lomo': You need to install"),
    ],
)
def test_what_only_the_run_can_tell_names_the_option_too(sft: Run, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        sft(max_steps=1, **options).train()


def test_more_prompts_in_a_step_than_rows(grpo: Run) -> None:
    with pytest.raises(UserError, match="holds 9 prompts, and the training data has 8 rows"):
        grpo(train_dataset=records(8), num_prompts_per_step=9)


def test_more_demonstrations_in_a_step_than_rows(sft: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is sampled, so the step over the rows that there are is exact; it is said."""
    trainer = sft(
        train_dataset=demonstrations(8), per_device_train_batch_size=3, gradient_accumulation_steps=3, max_steps=1
    )
    trainer.train()
    assert "an optimizer step holds the 8 rows that there are, instead of 9" in capsys.readouterr().out


def test_evaluation_without_rows_to_evaluate(sft: Run) -> None:
    with pytest.raises(UserError, match="eval_strategy='steps' needs an eval_dataset"):
        sft(eval_strategy="steps", eval_steps=1)


WORDS = st.sampled_from(
    ["", "no", "yes", "true", "False", "None", "bogus", "1", "-1", "nan", "inf", "1e400", "{", "[]", "\x00", "ünï"]
)
NUMBERS = st.one_of(st.integers(-3, 3), st.sampled_from([0.5, 1.5, NAN, INF, -INF, 10**30, 1e-300, 10**400]))
VALUES: st.SearchStrategy[Any] = st.one_of(
    NUMBERS,
    WORDS,
    st.none(),
    st.booleans(),
    st.lists(st.one_of(NUMBERS, WORDS), max_size=2),
    st.just({}),
    st.just({"a": 1}),
    st.dictionaries(
        st.sampled_from(["min_lr", "num_cycles", "power", "dtype", "use_reentrant", "non_blocking"]),
        NUMBERS,
        max_size=2,
    ),
    st.sampled_from(["a=1", "momentum=x", "cosine_with_min_lr", "inverse_sqrt", "sgd", "polynomial"]),
    st.just(b"x"),
)
# Whose values are paths or services, which a configuration may well create or ask.
OUTSIDE = {"output_dir", "hub_token", "push_to_hub", "debug"}


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_is_taken_or_named(data: st.DataObject, tmp_path: Path) -> None:
    """Up to three options at once, of any value: a configuration, or a named error."""
    config = data.draw(st.sampled_from(CONFIGS))
    names = sorted({declared.name for declared in declarations(config)} - OUTSIDE)
    options = {name: data.draw(VALUES) for name in data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=3))}
    try:
        found = config(**{"output_dir": str(tmp_path), "use_cpu": True, **options})
    except UserError:
        return
    for name, value in options.items():
        if isinstance(value, float) and not isinstance(getattr(found, name), str):
            assert math.isfinite(value), (name, value)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_word_is_read_or_named(data: st.DataObject, tmp_path: Path) -> None:
    name = data.draw(st.sampled_from(["sft", "dpo", "mpo", "grpo", "gspo"]))
    known = sorted(options_of(name).keys() - OUTSIDE - {"accelerate_config", "config"})
    words = ["--model_name_or_path", "m", "--dataset_name", "d", "--output_dir", str(tmp_path), "--use_cpu"]
    words += ["--reward_funcs", "exact_answer_reward"] if name in ("grpo", "gspo") else []
    for option in data.draw(st.lists(st.sampled_from(known), min_size=1, max_size=2)):
        words.append(f"--{option}={data.draw(WORDS)}")
    with contextlib.suppress(UserError):
        read_command(name, words)

"""`rollout_lag=1`: the next rollout is sampled while the policy learns from this one. The engine is a copy of the policy that samples for
real, in a thread."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from boresight import GRPOTrainer
from boresight.errors import ConfigError, EngineError
from boresight.report.completions import read_completions
from boresight.sampling import EngineInputs
from boresight.trainer.rollouts import engines
from boresight.types import Group
from tests.rollout.copies import CopyEngine
from tests.trainer.conftest import Run, records, vowel_share, weights
from tests.trainer.test_resume import Stop, same

LAG = {"use_vllm": True, "vllm_mode": "server", "rollout_lag": 1, "num_prompts_per_step": 4, "max_steps": 5}
COMPARED = ["step", "row", "completion_ids", "logp", "age", "reward", "advantage"]


@pytest.fixture(autouse=True)
def copies(monkeypatch: pytest.MonkeyPatch) -> list[CopyEngine]:
    """The engines that trainers build, in their order."""
    made: list[CopyEngine] = []

    def build(inputs: EngineInputs, options: Any) -> CopyEngine:
        weights: Any = inputs.weights(True)
        made.append(CopyEngine(lambda: weights.model, inputs.facts, inputs.tokenizer))
        return made[-1]

    monkeypatch.setitem(engines.ENGINES, "use_vllm", build)  # type: ignore[arg-type]
    return made


class Weights(TrainerCallback):
    """The weights at the beginning of each step."""

    def __init__(self) -> None:
        self.before: list[dict[str, torch.Tensor]] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model = kwargs["model"]
        self.before.append({name: value.detach().clone() for name, value in model.state_dict().items()})


def kept(run: GRPOTrainer) -> dict[str, list[Any]]:
    table = read_completions(run.args.output_dir)  # pyright: ignore[reportArgumentType]
    return {name: table[name].to_pylist() for name in COMPARED}


def by_step(run: GRPOTrainer, column: str) -> list[set[Any]]:
    found = kept(run)
    return [
        {value for value, at in zip(found[column], found["step"], strict=True) if at == step}
        for step in range(1, run.state.global_step + 1)
    ]


def logged(run: GRPOTrainer, name: str) -> list[float]:
    return [line[name] for line in run.state.log_history if "loss" in line]


# ---- What is sampled, and with which weights -----------------------------------------------------------------------------------------


def test_each_rollout_is_of_the_weights_of_one_rollout_before(grpo: Run, copies: list[CopyEngine]) -> None:
    """24 rows, 4 a step: 8 steps pass the end of an epoch. Rows come in the order of a run without lag."""
    snapshots = Weights()
    run = grpo(**{**LAG, "max_steps": 8}, callbacks=[snapshots])
    groups: list[list[Group]] = []
    collect = run.collect

    def collecting(prompts: Any) -> list[Any]:
        found = collect(prompts)
        groups.append([item.group for item in found])
        return found

    run.collect = collecting
    run.train()
    (engine,) = copies
    assert engine.syncs == [0, 1, 2, 3, 4, 5, 6]
    assert by_step(run, "age") == [{0}] + [{1}] * 7
    assert logged(run, "rollout/age_mean") == logged(run, "rollout/age_max") == [0.0] + [1.0] * 7
    plain = grpo(**{**LAG, "max_steps": 8, "rollout_lag": 0})
    plain.train()
    assert by_step(run, "row") == by_step(plain, "row")
    assert by_step(plain, "age") == [{0}] * 8
    first = slice(0, 16)  # later ones are of other weights, or of the same weights and other prompts
    assert kept(run)["completion_ids"][first] == kept(plain)["completion_ids"][first]
    for step in range(8):
        for version in {step, max(0, step - 1)}:
            run.model.load_state_dict(snapshots.before[version])
            rows = torch.cat([block.flatten() for block in run.logp(groups[step], run.policy)])
            sampler = torch.cat(
                [
                    torch.nn.functional.pad(
                        each.sampler_logp, (0, max(len(c.ids) for c in group.completions) - len(each.ids))
                    )  # type: ignore[arg-type]
                    for group in groups[step]
                    for each in group.completions
                ]
            )
            mask = sampler != 0
            gap = float((rows - sampler)[mask].abs().max())
            assert (gap < 1e-3) == (version == max(0, step - 1)), (step, version, gap)


def test_a_rollout_is_sampled_during_the_update(grpo: Run, copies: list[CopyEngine]) -> None:
    """The second rollout cannot end before the first optimizer step is about to change weights."""
    at_the_optimizer = threading.Event()

    class Signal(TrainerCallback):
        def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
            at_the_optimizer.set()

    run = grpo(**{**LAG, "max_steps": 2}, callbacks=[Signal()])
    seen: list[bool] = []

    def waits(number: int) -> None:
        if number == 1:
            seen.append(at_the_optimizer.wait(60))

    copies[0].before_batch = waits
    run.train()
    assert seen == [True]


def test_weights_are_sent_into_a_rollout_that_is_still_being_sampled(
    grpo: Run, copies: list[CopyEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each rollout but the first ends only once the weights after the step before it have come."""
    run = grpo(**LAG, vllm_in_flight_sync=True)
    (engine,) = copies
    renewed = threading.Condition()
    sync = engine.sync

    def noting(step: int, *, in_flight: bool = False) -> Any:
        report = sync(step, in_flight=in_flight)
        with renewed:
            renewed.notify_all()
        return report

    def waits(number: int) -> None:
        with renewed:
            assert number == 0 or renewed.wait_for(lambda: number in engine.in_flight, 60)

    monkeypatch.setattr(engine, "sync", noting)
    engine.before_batch = waits
    run.train()
    assert engine.syncs == [0, 1, 2, 3, 4]
    assert engine.in_flight == [1, 2, 3, 4]  # and the next rollout begins with them, so that none is sent twice
    assert by_step(run, "age") == [{0}, {1}, {1}, {1}, {1}]  # of the oldest weights
    assert [line.get("sync/in_flight", 0) for line in run.state.log_history if "loss" in line] == [0, 1, 1, 1, 1]


def test_a_rollout_that_has_ended_is_sent_no_weights(grpo: Run, copies: list[CopyEngine]) -> None:
    run = grpo(**LAG, vllm_in_flight_sync=True)

    class Waits(TrainerCallback):
        def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
            run.sampler.settle()  # pyright: ignore[reportAttributeAccessIssue]

    run.add_callback(Waits())
    run.train()
    assert copies[0].syncs == [0, 1, 2, 3]
    assert copies[0].in_flight == []


def test_older_completions_are_corrected(grpo: Run) -> None:
    """ρ is exp(policy − sampler), of two versions of the policy: 1 in the first step alone."""
    run = grpo(**LAG, learning_rate=1e-2, lr_scheduler_type="constant")
    run.train()
    furthest = [
        max(
            abs(line["sampling/importance_sampling_ratio/max"] - 1),
            abs(line["sampling/importance_sampling_ratio/min"] - 1),
        )
        for line in run.state.log_history
        if "loss" in line
    ]
    assert furthest[0] < 1e-3
    assert min(furthest[1:]) > 1e-2
    assert logged(run, "sampling/lagged") == [1.0] * 5


# ---- Several optimizer steps of a rollout, dynamic sampling, accumulation ------------------------------------------------------------

SEVERAL = {
    "num_prompts_per_step": None,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "steps_per_generation": 2,
    "num_iterations": 2,
    "max_steps": 9,
}
KINDS: dict[str, dict[str, Any]] = {
    "one step": {},
    "accumulated": {"num_prompts_per_step": None, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 3},
    "several steps": SEVERAL,
    "dynamic": {"dynamic_sampling": True},
}


def test_ages_of_several_steps_of_a_rollout(grpo: Run, copies: list[CopyEngine]) -> None:
    run = grpo(**{**LAG, **SEVERAL})
    run.train()
    assert copies[0].syncs == [0, 4]
    assert logged(run, "rollout/age_max") == [0, 1, 2, 3, 4, 5, 6, 7, 4]
    assert [ages for ages in by_step(run, "age") if ages] == [{0}, {4}, {4}]


def some_are_flat(completions: list[Any], solution: list[str], **columns: Any) -> list[float]:
    """Rows with "yes" give every completion the same reward."""
    return [0.0 if gold == "yes" else value for gold, value in zip(solution, vowel_share(completions), strict=True)]


def test_dynamic_sampling_takes_further_prompts_with_the_weights_of_now(grpo: Run, copies: list[CopyEngine]) -> None:
    run = grpo(**LAG, dynamic_sampling=True, reward_funcs=some_are_flat)
    run.train()
    assert max(logged(run, "rollout/num_rounds")) > 1
    assert by_step(run, "age")[0] == {0}
    assert {0, 1} in by_step(run, "age")
    assert {age for ages in by_step(run, "age") for age in ages} == {0, 1}


# ---- Interrupted, and resumed --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_equals_one_that_was_not_interrupted(grpo: Run, tmp_path: Path, kind: str) -> None:
    """Completions that were sampled and not learned from are in the checkpoint: their weights are gone."""
    options = {**LAG, **KINDS[kind], "save_strategy": "steps", "save_steps": 3}
    if kind == "dynamic":
        options["reward_funcs"] = some_are_flat
    whole = grpo(output_dir=str(tmp_path / "whole"), **options)
    whole.train()
    grpo(output_dir=str(tmp_path / "cut"), callbacks=[Stop(3)], **options).train()
    resumed = grpo(output_dir=str(tmp_path / "cut"), **options)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == options["max_steps"]
    assert same(weights(whole), weights(resumed))
    assert kept(whole) == kept(resumed)


def test_an_error_in_a_step_leaves_a_checkpoint_with_that_steps_completions(grpo: Run, tmp_path: Path) -> None:
    """The reward of step 4 raises: its completions were taken already, and are not those of step 5."""
    options = {**LAG, "save_strategy": "steps", "save_steps": 100}
    whole = grpo(output_dir=str(tmp_path / "whole"), **options)
    whole.train()
    calls: list[int] = []

    def fails_once(completions: list[Any], **columns: Any) -> list[float]:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return vowel_share(completions)

    cut = grpo(output_dir=str(tmp_path / "cut"), reward_funcs=fails_once, **options, gold_check="off")
    with contextlib.suppress(KeyboardInterrupt):
        cut.train()
    assert len(calls) == 4
    assert cut.state.global_step == 3
    resumed = grpo(output_dir=str(tmp_path / "cut"), reward_funcs=fails_once, **options, gold_check="off")
    resumed.train(resume_from_checkpoint=True)
    assert same(weights(whole), weights(resumed))


def test_an_evaluation_in_between_changes_nothing(grpo: Run, copies: list[CopyEngine]) -> None:
    """It samples with the weights of now, and the rollout that is under way keeps its own."""
    whole = grpo(**LAG)
    whole.train()
    run = grpo(**LAG, eval_dataset=records(4), eval_strategy="steps", eval_steps=2, per_device_eval_batch_size=8)
    run.train()
    assert same(weights(whole), weights(run))
    assert [line["step"] for line in run.state.log_history if "eval_reward" in line] == [2, 4, 5]


def test_a_second_training_begins_anew(grpo: Run, tmp_path: Path) -> None:
    """What was begun for the next step of a run that was stopped is not taken for a step of another."""
    run = grpo(**LAG, callbacks=[Stop(2)])
    run.train()
    ahead: Any = run.rollouts.ahead
    assert ahead.sampler.has_begun
    groups = ahead.take(0)
    assert not ahead.sampler.has_begun
    assert {each.sampler_step for group in groups for each in group.completions} == {2}


def test_another_number_of_ranks_deals_what_was_sampled_ahead(grpo: Run) -> None:
    """Two ranks' parts in their order; where one has none, all sample again."""
    run = grpo(**LAG, callbacks=[Stop(2)])
    run.train()
    state = run.state_of_method()
    assert len(state["ahead"]) == 4
    parts = [state | {"ahead": state["ahead"][:2]}, state | {"ahead": state["ahead"][2:]}]
    assert run.redistributed(parts)["ahead"] == state["ahead"]
    assert run.redistributed([parts[0], state | {"ahead": None}])["ahead"] is None


# ---- Failures ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (EngineError("row 3: the engine read another prompt"), EngineError),
        (ZeroDivisionError("in the client"), ZeroDivisionError),
    ],
)
def test_a_failure_in_the_background_is_raised_at_the_next_step(
    grpo: Run, copies: list[CopyEngine], error: Exception, raised: type[Exception]
) -> None:
    run = grpo(**LAG)

    def fails(number: int) -> None:
        if number == 2:
            raise error

    copies[0].before_batch = fails
    with pytest.raises(raised) as caught:
        run.train()
    assert caught.value is error
    assert run.state.global_step == 2
    assert "it was sampled ahead (rollout_lag=1), for step 3" in caught.value.__notes__[0]
    assert any(entry.name == "fails" for entry in caught.traceback)


def test_an_engine_that_restarts_meanwhile_samples_again_with_the_weights_of_now(
    grpo: Run, copies: list[CopyEngine]
) -> None:
    run = grpo(**LAG)
    copies[0].before_batch = lambda number: copies[0].restart() if number == 2 else None
    run.train()
    assert by_step(run, "age") == [{0}, {1}, {0}, {1}, {1}]
    assert copies[0].syncs == [0, 1, 2, 3]
    assert all(len(ids) <= 8 for ids in kept(run)["completion_ids"])


# ---- Refused -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"use_vllm": False, "vllm_mode": "colocate"}, "rollout_lag=1 has no effect: set use_vllm=True"),
        ({"vllm_mode": "colocate"}, "rollout_lag=1 has no effect: set vllm_mode='server'"),
        ({"rollout_lag": 2}, "rollout_lag=2"),
        ({"rollout_lag": 0, "vllm_in_flight_sync": True}, "vllm_in_flight_sync=True has no effect: set rollout_lag=1"),
        (
            {"vllm_in_flight_sync": True, "vllm_lora_sync": "adapter"},
            "a request keeps the adapter that it began with",
        ),
        (
            {"vllm_in_flight_sync": True, "vllm_server_base_url": ["http://127.0.0.1:1", "http://127.0.0.1:2"]},
            "vllm_in_flight_sync=True sends weights to one server: name one",
        ),
        ({"vllm_importance_sampling_correction": False}, "rollout_lag=1 learns from completions of older weights"),
        (
            {"vllm_mode": "colocate", "vllm_model_impl": "transformers", "vllm_enable_sleep_mode": True},
            "rollout_lag=1 samples during optimizer steps, and vllm_enable_sleep_mode=True",
        ),
    ],
)
def test_what_it_does_not_go_with(grpo: Run, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        grpo(**{**LAG, **options})
    assert said in str(caught.value)


def test_a_stream_has_no_next_rollout(grpo: Run) -> None:
    def rows() -> Iterator[Any]:
        yield from records(8)

    from datasets import IterableDataset

    with pytest.raises(ConfigError, match=r"rollout_lag=1 takes the next rollout's prompts by row number"):
        grpo(**LAG, train_dataset=IterableDataset.from_generator(rows))


def test_tools_are_called_between_turns(model_folder: Path, tmp_path: Path) -> None:
    from boresight import GRPOConfig

    def look(what: str) -> str:
        """Look.

        Args:
            what: At what.
        """
        return what

    config = GRPOConfig(output_dir=str(tmp_path), num_generations=4, **LAG)
    with pytest.raises(ConfigError, match="rollout_lag=1 samples completions of one turn"):
        GRPOTrainer(str(model_folder), vowel_share, config, records(8), tools=[look])


# ---- Learning ------------------------------------------------------------------------------------------------------------------------


def short(completions: list[Any], completion_ids: Any = None, **columns: Any) -> list[float]:
    """The sooner it ends, the better."""
    return [-len(completion[0]["content"]) / 20 for completion in completions]


@pytest.mark.parametrize("lag", [0, 1])
def test_the_reward_rises_with_and_without_lag(grpo: Run, lag: int) -> None:
    run = grpo(
        **{**LAG, "rollout_lag": lag, "max_steps": 30},
        reward_funcs=short,
        num_generations=8,
        learning_rate=3e-3,
        lr_scheduler_type="constant",
    )
    run.train()
    rewards = logged(run, "reward")
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.2

"""Several engines as one, each a copy of a tiny policy that samples for real, in every state that an engine can be in."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from boresight.errors import ConfigError, EngineError, EngineRestartedError
from boresight.report.metrics import MeanMetrics
from boresight.report.timeline import Timeline
from boresight.rollout import several
from boresight.rollout.several import GatheredOnce, SeveralEngines, dealt
from boresight.rollout.synced import SyncedSampler
from boresight.sampling import SamplingSettings, TrainingHooks, Weight
from boresight.types import Group

from .conftest import Subject
from .copies import CopyEngine

SETTINGS = SamplingSettings(3, 6, seed=5)


@pytest.fixture(scope="module")
def it(subject: Callable[[str], Subject]) -> Subject:
    return subject("qwen2_5_vl")


def engines(it: Subject, number: int) -> list[CopyEngine]:
    return [
        CopyEngine(lambda: it.model, it.facts, it.processor.tokenizer, name=f"copy {each}") for each in range(number)
    ]


def synced(copies: list[CopyEngine], **options: Any) -> SeveralEngines:
    made = SeveralEngines(copies, **{"rank": 0, "timeout_s": 0.2, **options})
    made.sync(0)
    return made


def sampled(engine: SeveralEngines, it: Subject, settings: SamplingSettings = SETTINGS) -> list[Group]:
    return engine.completed(it.prompts, engine.requests(it.prompts, settings), settings)


def ids_of(groups: list[Group]) -> list[Any]:
    return [[completion.ids.tolist() for completion in group.completions] for group in groups]


def test_prompts_are_dealt_in_turn_from_the_ranks_own_engine() -> None:
    assert dealt(range(5), [0, 1], first=0) == {0: [0, 2, 4], 1: [1, 3]}
    assert dealt(range(5), [0, 1], first=1) == {1: [0, 2, 4], 0: [1, 3]}
    assert dealt([7], [0, 2, 3], first=5) == {3: [7]}
    assert dealt([], [0], first=3) == {}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_number_of_engines_does_not_change_what_is_sampled(it: Subject, temperature: float) -> None:
    settings = SamplingSettings(3, 6, temperature=temperature, seed=5)
    found = []
    for number in (1, 2, 3):
        copies = engines(it, number)
        groups = sampled(synced(copies), it, settings)
        assert [group.prompt.row.index for group in groups] == [0, 1, 2]
        assert sorted(row for each in copies for batch in each.sampled for row in batch) == [0, 1, 2]
        assert all(each.sampled for each in copies)
        found.append(ids_of(groups))
    assert found[0] == found[1] == found[2]


def test_work_is_counted_over_all_engines(it: Subject) -> None:
    one, two = (synced(engines(it, number)) for number in (1, 2))
    for engine in (one, two):
        sampled(engine, it)
    assert one.counts == two.counts
    assert one.counts["completion_tokens"] > 0


def test_an_engine_that_dies_in_the_middle_is_left_out_and_taken_back(
    it: Subject, caplog: pytest.LogCaptureFixture
) -> None:
    expected = ids_of(sampled(synced(engines(it, 1)), it))
    first, second = copies = engines(it, 2)
    engine = synced(copies)

    def dies(number: int) -> None:
        second.away = True

    second.before_batch = dies
    assert ids_of(sampled(engine, it)) == expected
    assert first.sampled == [[0, 2], [1]]
    assert second.sampled == []
    assert engine.counts["prompts_sampled_again"] == 1
    assert "copy 1 is away. It is left out" in caplog.text

    # It stays away: the others get its weights and its prompts.
    engine.outdate()
    assert engine.sync(1) is not None
    assert (first.syncs, second.syncs) == ([0, 1], [0])
    assert engine.version.split("\n")[1] == ""
    assert ids_of(sampled(engine, it)) == expected
    assert first.sampled[2:] == [[0, 1, 2]]
    assert engine.counts["prompts_sampled_again"] == 1

    # It is back, with other weights: it is sent the policy's, although the policy has not changed meanwhile.
    second.before_batch = lambda number: None
    second.restart()
    assert engine.sync(2) is not None
    assert (first.syncs, second.syncs) == ([0, 1], [0, 2])
    assert ids_of(sampled(engine, it)) == expected
    assert second.sampled == [[1]]
    assert engine.counts["engines_taken_back"] == 1
    assert "copy 1 is back" in caplog.text


def test_an_engine_that_restarts_during_a_batch_loses_its_part_alone(it: Subject) -> None:
    """What it sampled with other weights is not used."""
    expected = ids_of(sampled(synced(engines(it, 1)), it))
    first, second = copies = engines(it, 2)
    engine = synced(copies)
    second.before_batch = lambda number: second.restart()
    assert ids_of(sampled(engine, it)) == expected
    assert second.sampled == []
    second.before_batch = lambda number: None
    engine.sync(0)
    assert ids_of(sampled(engine, it)) == expected
    assert second.sampled == [[1]]
    assert first.sampled == [[0, 2], [1], [0, 2]]


def test_without_any_engine_the_caller_syncs_again_and_waits(it: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(several, "POLL_S", 0.01)
    copies = engines(it, 2)
    engine = synced(copies)
    expected = ids_of(sampled(engine, it))
    for each in copies:
        each.away = True
    with pytest.raises(EngineRestartedError, match="None of copy 0 and copy 1 holds"):
        sampled(engine, it)
    with pytest.raises(EngineError, match=r"None of copy 0 and copy 1 recovered within 0\.2 s"):
        engine.sync(1)
    threading.Timer(0.1, copies[1].restart).start()
    engine.timeout_s = 10.0
    engine.sync(1)
    assert ids_of(sampled(engine, it)) == expected
    assert copies[1].sampled[-1] == [0, 1, 2]


def test_another_failure_is_no_reason_to_go_on(it: Subject) -> None:
    copies = engines(it, 2)
    engine = synced(copies)

    def fails(number: int) -> None:
        raise EngineError("row 1: copy 1 read another prompt than the trainer")

    copies[1].before_batch = fails
    with pytest.raises(EngineError, match="row 1: copy 1 read another prompt"):
        sampled(engine, it)


def test_a_rank_that_does_not_send_weights_uses_the_engines_that_have_them(it: Subject) -> None:
    copies = engines(it, 2)
    sender = synced(copies)
    copies[1].away = True
    sender.outdate()
    sender.sync(1)
    other = SeveralEngines(engines(it, 2), rank=1, timeout_s=0.2)
    other.adopt(sender.version)
    for mine, theirs in zip(other.engines, copies, strict=True):
        mine.held = theirs.held  # type: ignore[attr-defined]
    sampled(other, it)
    assert [each.sampled for each in other.engines] == [[[0, 1, 2]], []]  # type: ignore[attr-defined]


def test_engines_of_two_dtypes(it: Subject) -> None:
    copies = engines(it, 2)
    copies[1].dtype = "bfloat16"
    with pytest.raises(ConfigError, match=r"copy 0: float32, copy 1: bfloat16\): start them with the same --dtype"):
        SeveralEngines(copies, rank=0, timeout_s=1.0)


def test_each_engine_must_agree_with_the_trainer(it: Subject) -> None:
    """One whose log-probabilities are wrong, although its weights are right, is named."""
    truth = {group.prompt.row.index: group for group in sampled(synced(engines(it, 1)), it)}

    def logp(groups: Sequence[Group]) -> list[torch.Tensor]:
        """As the trainer computes them."""
        found = []
        for group in groups:
            rows = [completion.sampler_logp for completion in truth[group.prompt.row.index].completions]
            found.append(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True))  # type: ignore[arg-type]
        return found

    metrics = MeanMetrics()
    said: list[str] = []
    hooks = TrainingHooks(logp, lambda: 0, Timeline(), metrics, said.append)
    copies = engines(it, 2)
    SyncedSampler(SeveralEngines(copies, rank=0, timeout_s=1.0), hooks).sample(it.prompts, SETTINGS)
    assert said[0].startswith("copy 0 and copy 1 and the trainer agree within")
    completed = copies[1].completed

    def wrong(*arguments: Any) -> list[Group]:
        return [
            replace(
                group,
                completions=tuple(replace(each, sampler_logp=each.sampler_logp + 0.1) for each in group.completions),
            )  # type: ignore[operator]
            for group in completed(*arguments)
        ]

    copies[1].completed = wrong  # type: ignore[method-assign]
    with pytest.raises(EngineError, match=r"row 1: under the same weights, copy 1 and the trainer differ by 0\.1"):
        SyncedSampler(SeveralEngines(copies, rank=0, timeout_s=1.0), hooks).sample(it.prompts, SETTINGS)


class Counted:
    """Three weights, of which two are computed."""

    listed = {name: Weight(trained=True, images=False, computed=name != "own") for name in ("a", "own", "b")}  # noqa: RUF012

    def __init__(self) -> None:
        self.computed: list[str] = []

    def tensors(self, names: Collection[str]) -> Iterator[tuple[str, torch.Tensor]]:
        for number, name in enumerate(name for name in self.listed if name in names):
            if name != "own":
                self.computed.append(name)
            yield name, torch.full((2,), float(number))


def test_what_must_be_computed_is_computed_once_for_all_engines() -> None:
    weights = Counted()
    shared = GatheredOnce(weights)
    for names in (["a", "own"], ["a", "own"], ["a", "b"]):
        assert sorted(name for name, _ in shared.tensors(names)) == sorted(names)
    assert weights.computed == ["a", "b"]
    shared.forget()
    assert dict(shared.tensors(["b"]))["b"].tolist() == [0.0, 0.0]
    assert weights.computed == ["a", "b", "b"]

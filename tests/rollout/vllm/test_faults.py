"""A real server, started by `boresight vllm-serve`, that is killed while a policy learns; trainers that are killed while they use it.

Every test uses the same server, so each trainer finds one that others have used, and left.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import TrainerCallback

from boresight import GRPOConfig, GRPOTrainer
from boresight.demo.easy_vqa import load_easy_vqa
from boresight.errors import EngineError
from boresight.report.completions import read_completions
from boresight.rollout.vllm.keys import find_key
from boresight.rollout.vllm.protocol.messages import REPLICAS_PATH, AbandonUpdate
from boresight.rollout.vllm.server import ServerEngine
from boresight.sampling import SamplingSettings

from .conftest import START_S, Rig, Supervised, children
from .test_contract import furthest, ids_of

STEPS = 4
NUM_KILLS = 20
"""Of the soak."""
SETTINGS = SamplingSettings(4, 10, seed=5)


def vowel_share(completions: list[Any], **columns: Any) -> list[float]:
    """A reward that random text gets in every shade."""
    texts = [completion[0]["content"] for completion in completions]
    return [sum(letter in "aeiou" for letter in text) / max(len(text), 1) for text in texts]


def trainer(rig: Rig, folder: Path, supervised: Supervised, **options: Any) -> GRPOTrainer:
    args = GRPOConfig(
        **{
            "output_dir": str(folder),
            "use_vllm": True,
            "vllm_mode": "server",
            "vllm_server_base_url": supervised.url,
            "vllm_server_timeout": START_S,
            "per_device_train_batch_size": 8,
            "num_generations": 4,
            "max_completion_length": 12,
            "max_steps": STEPS,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "gradient_checkpointing": False,
            "gold_check": "off",
            "seed": 7,
            **options,
        }
    )
    rows = load_easy_vqa("train", num_rows=16, seed=3)
    return GRPOTrainer(str(rig.folder), vowel_share, args, rows)  # pyright: ignore[reportArgumentType]


def before_call(run: GRPOTrainer, path: str, number: int, strike: Callable[[], None]) -> list[str]:
    """Strike just before the `number`th call (from 0) to a path; what was struck, to prove that it was."""
    client: Any = run.sampler.engine.engine.client  # pyright: ignore[reportAttributeAccessIssue]
    send, seen, struck = client.send_all, [], []

    def sending(calls: Sequence[Any]) -> Any:
        if calls[0][1] == path:
            seen.append(path)
            if len(seen) == number + 1:
                strike()
                struck.append(path)
        return send(calls)

    client.send_all = sending
    return struck


def assert_nothing_is_lost(run: GRPOTrainer, folder: Path) -> None:
    """Every step is there once, with its completions."""
    steps = list(range(1, run.state.global_step + 1))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == steps
    assert read_completions(folder)["step"].to_pylist() == [step for step in steps for _ in range(8)]


def weights_of(run: GRPOTrainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in run.model.state_dict().items()}  # pyright: ignore[reportOptionalMemberAccess]


@pytest.fixture(scope="module")
def undisturbed(rig: Rig, supervised: Supervised, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """What a run learns that nothing happens to."""
    run = trainer(rig, tmp_path_factory.mktemp("undisturbed"), supervised)
    run.train()
    assert run.state.log_history
    return weights_of(run)


# ---- The server is killed ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "moments", [("sampling",), pytest.param(("sampling", "sync"), marks=pytest.mark.soak)], ids=" and ".join
)
def test_a_server_that_is_killed(
    moments: tuple[str, ...], rig: Rig, supervised: Supervised, undisturbed: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """The supervisor starts it again, the weights are sent again, the batch is sampled again: the run learns what it would have."""
    run = trainer(rig, tmp_path, supervised)

    def engine_core_stops_and_dies() -> None:
        """Its requests are under way for sure when it dies: it is frozen before they are sent."""
        core = supervised.engine_core()
        os.kill(core, signal.SIGSTOP)
        threading.Timer(1.0, os.kill, (core, signal.SIGKILL)).start()

    strikes = {
        "sampling": ("/inference/v1/generate", 1, engine_core_stops_and_dies),
        "sync": ("/update_weights", 3, supervised.kill),  # first, second, again after the restart, third
    }
    struck = [before_call(run, *strikes[moment]) for moment in moments]
    run.train()
    assert all(struck)
    assert run.state.global_step == STEPS
    assert_nothing_is_lost(run, tmp_path)
    restarts = [log.get("work/sampler_restarts", 0) for log in run.state.log_history if "loss" in log]
    assert sum(restarts) == len(moments)
    assert_agrees(run, rig)
    for name, value in weights_of(run).items():
        assert torch.equal(value, undisturbed[name]), name


def assert_agrees(run: GRPOTrainer, rig: Rig) -> None:
    """Engine and trainer, after the last step."""
    sampler: Any = run.sampler
    sampler._sync()
    groups = sampler.engine.sample(rig.prompts, SETTINGS)
    rows = run.logp(groups, run.policy)
    for group, block in zip(groups, rows, strict=True):
        for completion, row in zip(group.completions, block, strict=True):
            assert float((completion.sampler_logp - row[: len(completion.ids)]).abs().max()) < 1e-3  # pyright: ignore[reportOptionalOperand]


class Between(TrainerCallback):
    """Strikes after a step."""

    def __init__(self, step: int, strike: Callable[[], None]) -> None:
        self.step, self.strike = step, strike

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.strike()


@pytest.mark.soak
def test_a_server_that_nobody_starts_again(
    rig: Rig, supervised: Supervised, undisturbed: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """The run stops within its deadline, says what to do, and keeps what it learned; when a server is there again, it goes on."""

    def gone() -> None:
        os.kill(supervised.process.pid, signal.SIGSTOP)  # so it cannot start it again
        supervised.kill()

    run = trainer(rig, tmp_path, supervised, vllm_server_timeout=3.0)
    run.add_callback(Between(2, gone))
    try:
        with pytest.raises(
            EngineError, match=r"did not recover within vllm_server_timeout=3 s.* boresight vllm-serve"
        ) as caught:
            run.train()
    finally:
        os.kill(supervised.process.pid, signal.SIGCONT)
    assert run.state.global_step == 2
    (note,) = caught.value.__notes__
    assert re.search(r"checkpoint-2; resume with", note)
    again = trainer(rig, tmp_path, supervised)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == STEPS
    assert_nothing_is_lost(again, tmp_path)
    for name, value in weights_of(again).items():
        assert torch.equal(value, undisturbed[name]), name


# ---- The trainer is killed -----------------------------------------------------------------------------------------------------------

TRAINER = """
import os, signal, sys, threading
from pathlib import Path
import torch
from safetensors.torch import load_file
from boresight.rollout.vllm.engine import Request
from boresight.rollout.vllm.server import ServerEngine

url, moment, model = sys.argv[1:]
engine = ServerEngine(url)
die = lambda: os.kill(os.getpid(), signal.SIGKILL)
if moment == "sync":
    send = engine.client.send_all
    def sending(calls):
        if calls[0][1] == "/finish_weight_update":
            die()
        return send(calls)
    engine.client.send_all = sending
    state = load_file(Path(model) / "model.safetensors")
    engine.load(lambda: [(name, 2 * tensor) for name, tensor in state.items() if "v_proj" not in name], "dead/1")
else:
    threading.Timer(0.3, die).start()
    sampling = {"n": 16, "max_tokens": 200, "ignore_eos": True, "logprobs": 0, "temperature": 1.0}
    while True:
        engine.generate([Request([5, 6, 7 + place], [], sampling) for place in range(16)])
"""
"""A trainer that dies by itself in the middle of something."""


@pytest.mark.parametrize("moment", ["sync", "sampling"])
def test_a_trainer_that_is_killed_leaves_the_server_usable(
    rig: Rig, supervised: Supervised, remote: ServerEngine, moment: str
) -> None:
    """Half of other weights are there when the next trainer comes."""
    dead = subprocess.run([sys.executable, "-c", TRAINER, supervised.url, moment, str(rig.folder)], check=False)
    assert dead.returncode == -signal.SIGKILL
    engine = ServerEngine(supervised.url)
    sampler = rig.sampler(engine)
    assert furthest(rig, sampler.sample(rig.prompts, SETTINGS)) < 1e-3
    assert_idle(supervised)
    assert not list(engine._sync_dir.glob("boresight-sync-*"))
    engine.close()


def with_key(url: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {find_key(url)}"}


def test_nobody_without_the_key_reaches_a_server(supervised: Supervised) -> None:
    for path in ("/metrics", "/is_paused"):
        assert httpx.get(f"{supervised.url}{path}", trust_env=False, timeout=30).status_code == 401
    call = {"method": "get_facts", "args": [], "kwargs": {}}
    wrong = {"Authorization": "Bearer guessed"}
    for headers, path in itertools.product(({}, wrong), ("/collective_rpc", REPLICAS_PATH)):
        found = httpx.post(f"{supervised.url}{path}", json=call, headers=headers, trust_env=False, timeout=30)
        assert found.status_code == 401
    found = httpx.get(f"{supervised.url}/metrics", headers=with_key(supervised.url), trust_env=False, timeout=30)
    assert found.status_code == 200


def assert_idle(supervised: Supervised) -> None:
    """The server works for nobody any more."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        said = httpx.get(
            f"{supervised.url}/metrics", headers=with_key(supervised.url), trust_env=False, timeout=30
        ).text
        running = re.findall(r"^vllm:num_requests_(?:running|waiting)\{.*\} (\S+)$", said, re.MULTILINE)
        assert len(running) >= 2
        if not any(float(count) for count in running):
            return
        time.sleep(0.2)
    raise AssertionError(running)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_on_the_trainer_leaves_the_server_usable(rig: Rig, supervised: Supervised, remote: ServerEngine) -> None:
    sampler = rig.sampler(remote)
    before = sampler.sample(rig.prompts, SETTINGS)
    long = SamplingSettings(32, 180, seed=1)
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        while True:
            sampler.sample(rig.prompts * 4, long)
    assert_idle(supervised)
    assert ids_of(sampler.sample(rig.prompts, SETTINGS)) == ids_of(before)


def test_what_others_do_to_the_server_is_noticed(rig: Rig, remote: ServerEngine, supervised: Supervised) -> None:
    """Another trainer sends it other weights while this one samples: it is not believed, and takes its own again."""
    sampler = rig.sampler(remote)
    other = ServerEngine(supervised.url)
    other.call(AbandonUpdate())
    other.client.send("POST", "/update_weight_version", json={"new_version": "other/1"})
    with pytest.raises(EngineError, match="holds the weights 'other/1' instead of 'test/0/0'"):
        sampler.sample(rig.prompts, SETTINGS)
    sampler.outdate()
    report = sampler.sync(1)
    assert report is not None
    assert report.num_sent == len(sampler._sync.weights.listed)  # nothing of the other's is left
    assert furthest(rig, sampler.sample(rig.prompts, SETTINGS)) < 1e-3
    other.close()


def test_a_server_that_was_paused_goes_on(rig: Rig, supervised: Supervised) -> None:
    httpx.post(
        f"{supervised.url}/pause", headers=with_key(supervised.url), trust_env=False, timeout=30
    ).raise_for_status()
    engine = ServerEngine(supervised.url)
    assert furthest(rig, rig.sampler(engine).sample(rig.prompts, SETTINGS)) < 1e-3
    engine.close()


# ---- At random ---------------------------------------------------------------------------------------------------------------------------


class Killer(threading.Thread):
    """Kills a server at random moments of a run, now the whole of it, now one of its processes, sometimes while it is starting.

    It waits for a finished step between two kills, since a run gives up a batch that is disturbed more often than `MAX_REDONE`.
    """

    def __init__(self, supervised: Supervised, training: GRPOTrainer, num_kills: int, seed: int) -> None:
        super().__init__(daemon=True)
        self.supervised, self.training, self.num_kills = supervised, training, num_kills
        self.random = random.Random(seed)
        self.doing = "between calls"
        self.struck: list[str] = []
        """What the trainer was asking for at each kill."""
        client: Any = training.sampler.engine.engine.client  # pyright: ignore[reportAttributeAccessIssue]
        send = client.send_all

        def sending(calls: Sequence[Any]) -> Any:
            self.doing = calls[0][1]
            try:
                return send(calls)
            finally:
                self.doing = "between calls"

        client.send_all = sending

    def run(self) -> None:
        while len(self.struck) < self.num_kills:
            step = self.training.state.global_step
            while self.training.state.global_step < step + 1:
                time.sleep(0.02)
            time.sleep(self.random.uniform(0.0, 2.0))
            self.strike()
            if self.random.random() < 0.2 and len(self.struck) < self.num_kills:
                time.sleep(self.random.uniform(1.0, 10.0))
                self.strike()

    def strike(self) -> None:
        while not children(self.supervised.process.pid):
            time.sleep(0.02)
        server = self.supervised.server()
        self.struck.append(self.doing)
        if self.random.random() < 0.5:
            os.killpg(server, signal.SIGKILL)
        else:
            os.kill(self.random.choice([server, *children(server)]), signal.SIGKILL)


class Until(TrainerCallback):
    """Ends a run a few steps after its killer is done."""

    def __init__(self, killer: Killer) -> None:
        self.killer = killer
        self.steps_left = 5

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps_left -= not self.killer.is_alive()
        control.should_training_stop = self.steps_left == 0


@pytest.mark.soak
@pytest.mark.timeout(6 * 3600)
def test_twenty_kills_at_random_moments_lose_no_step(rig: Rig, tmp_path: Path) -> None:
    supervised = Supervised(rig.folder, tmp_path / "said.txt", "--max_restarts", "1000")
    run = trainer(rig, tmp_path / "run", supervised, max_steps=100_000, learning_rate=1e-5)
    killer = Killer(supervised, run, num_kills=NUM_KILLS, seed=0)
    run.add_callback(Until(killer))
    killer.start()
    run.train()
    restarts = [log.get("work/sampler_restarts", 0) for log in run.state.log_history if "loss" in log]
    print(
        f"killed while the trainer was at: {sorted(killer.struck)}; restarts counted: {sum(restarts):g}; "
        f"steps: {run.state.global_step}"
    )
    assert len(killer.struck) == NUM_KILLS
    assert_nothing_is_lost(run, tmp_path / "run")
    assert 0 < sum(restarts) <= NUM_KILLS
    assert_agrees(run, rig)
    assert supervised.close() == 0

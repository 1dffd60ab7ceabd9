"""Real vLLM, once in this process and once as a server, for all tests of this folder.

They share a worker of pytest-xdist (tests/conftest.py), so that each engine is started once.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from boresight.data.encode import Encoder
from boresight.data.images import decode
from boresight.data.schema import read_row
from boresight.model.export import PolicyWeights
from boresight.model.load import model_facts
from boresight.rollout.hf import HFSampler
from boresight.rollout.vllm import client
from boresight.rollout.vllm.engine import Engine
from boresight.rollout.vllm.local import LocalEngine
from boresight.rollout.vllm.sampler import VLLMSampler
from boresight.rollout.vllm.server import ServerEngine
from boresight.sampling import Sampler
from boresight.types import ModelFacts, Prompt
from tests.rollout.conftest import noise
from tests.rollout.vllm.stand import Stand, running
from tests.tiny import build_tiny

ENGINE = {"dtype": "float32", "max_model_len": 256, "max_num_seqs": 32, "gpu_memory_utilization": 0.1}
IMAGES = {"image": 3, "video": 0}

QUESTIONS = ("what color is the shape?", "which of the two is larger, and why?", "say anything")
SIZES = (((64, 96),), ((48, 64), (96, 40)), ())
"""Width and height of each prompt's images."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first test that uses a server waits for it."""
    here = Path(__file__).parent
    waiting = {"supervised", "address", "remote", "sampler", "engine"}
    for item in items:
        if here in item.path.parents and waiting & set(item.fixturenames):  # type: ignore[attr-defined]
            item.add_marker(pytest.mark.timeout(2 * START_S))


@dataclass
class Rig:
    """A policy, and what goes with it. Its vLLM kernels need heads of 32 at least."""

    folder: Path
    model: Any
    processor: Any
    facts: ModelFacts
    prompts: tuple[Prompt, ...]

    def sampler(self, engine: Engine, *, facts: ModelFacts | None = None, model: Any = None) -> VLLMSampler:
        """A sampler whose engine has the policy's weights."""
        weights = PolicyWeights(self.model if model is None else model)
        options: dict[str, Any] = {"decode_image": decode, "name": "test"}
        made = VLLMSampler(engine, weights, facts or self.facts, self.processor.tokenizer, **options)
        made.sync(0)
        return made

    def save(self, folder: Path) -> None:
        config = copy.deepcopy(self.model.config)
        config.architectures = [type(self.model).__name__]
        config.save_pretrained(folder)
        self.processor.save_pretrained(folder)


@pytest.fixture(scope="session")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    return build_rig("qwen2_5_vl", tmp_path_factory.mktemp("vllm"))


def build_rig(family: str, folder: Path) -> Rig:
    build_tiny(family, folder, vocab_size=512, hidden_size=128)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(folder)
    facts = model_facts(model, processor)
    return Rig(folder, model, processor, facts, prompts_of(Encoder(processor, facts=facts)))


def prompts_of(encoder: Encoder) -> tuple[Prompt, ...]:
    """Prompts with one image, with two, and with none."""
    prompts = []
    for index, (question, sizes) in enumerate(zip(QUESTIONS, SIZES, strict=True)):
        images = [noise(size, 10 * index + place) for place, size in enumerate(sizes)]
        parts = [*({"type": "image"} for _ in images), {"type": "text", "text": question}]
        prompts.append(
            encoder.prompt(read_row({"prompt": [{"role": "user", "content": parts}], "images": images}, index))
        )
    return tuple(prompts)


@pytest.fixture(scope="session")
def local(rig: Rig) -> LocalEngine:
    return LocalEngine(rig.save, limit_mm_per_prompt=IMAGES, **ENGINE)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Supervised:
    """A server as a user starts one, by `boresight vllm-serve`, which starts it again when it dies."""

    def __init__(self, folder: Path, log: Path, *further: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        boresight = Path(sys.executable).parent / "boresight"
        command = [boresight, "vllm-serve", "--model", folder, "--port", self.port, *FLAGS, *further]
        with log.open("wb") as said:
            self.process = subprocess.Popen(
                [str(word) for word in command],
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"},
            )

    def server(self) -> int:
        """vLLM's process, which leads its session."""
        (pid,) = children(self.process.pid)
        return pid

    def engine_core(self) -> int:
        """The process that holds the model."""
        return next(pid for pid in children(self.server()) if "EngineCore" in Path(f"/proc/{pid}/cmdline").read_text())

    def kill(self) -> None:
        """All of vLLM, and not the supervisor."""
        os.killpg(self.server(), signal.SIGKILL)

    def close(self) -> int:
        """Ctrl-C; what the shell is told."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(60)


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def in_session(leader: int) -> list[int]:
    """Processes of a session that are there, and no mere entries of dead ones."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
            if int(session) == leader and state != "Z":
                found.append(int(stat.parent.name))
    return found


FLAGS: tuple[Any, ...] = (
    "--host", "127.0.0.1", "--enforce_eager", "--limit-mm-per-prompt", json.dumps(IMAGES), "--max_num_seqs", 32,
    "--dtype=float32", "--vllm_max_model_len", 384, "--gpu-memory-utilization", 0.1,
    "--distributed-executor-backend", "uni",  # one process less
)  # fmt: skip
"""In whatever spelling."""


@pytest.fixture(scope="session")
def supervised(rig: Rig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervised]:
    """Of the same model. In the end Ctrl-C ends it in order, and nothing of it stays."""
    log = tmp_path_factory.mktemp("server") / "said.txt"
    made = Supervised(rig.folder, log)
    yield made
    server = made.server()
    assert made.close() == 0, log.read_text()[-2000:]
    assert in_session(server) == []


@pytest.fixture(scope="session")
def address(supervised: Supervised) -> str:
    return supervised.url


@pytest.fixture(scope="session")
def remote(address: str) -> Iterator[ServerEngine]:
    engine = ServerEngine(address, timeout_s=START_S)
    yield engine
    engine.close()


START_S = 900.0
"""Seconds that a server may take to start: much more than it needs on a machine that has nothing else to do."""


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C raises, also where a shell that started the tests in the background has them ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


KINDS = ("transformers", "colocate", "server")
Samplers = Callable[..., Sampler]


@pytest.fixture(params=KINDS)
def sampler(request: pytest.FixtureRequest, rig: Rig) -> Samplers:
    """Builds a sampler of the policy, of each kind."""

    def build(**facts: Any) -> Sampler:
        known = replace(rig.facts, **facts)
        if request.param == "transformers":
            return HFSampler(lambda: rig.model, known, rig.processor.tokenizer)
        return rig.sampler(
            request.getfixturevalue({"colocate": "local", "server": "remote"}[request.param]), facts=known
        )

    return build


@pytest.fixture(params=KINDS[1:])
def engine(request: pytest.FixtureRequest) -> Engine:
    return request.getfixturevalue({"colocate": "local", "server": "remote"}[request.param])


@pytest.fixture
def kept(rig: Rig) -> Iterator[Rig]:
    """The rig, its weights as they were afterwards."""
    before = {name: tensor.clone() for name, tensor in rig.model.state_dict().items()}
    yield rig
    rig.model.load_state_dict(before)
    rig.model.requires_grad_(True)


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stand]:
    """A server that answers as vLLM's does where a test does not say otherwise. Its clients wait little for one that is dying."""
    monkeypatch.setattr(client, "DYING_S", 0.01)
    yield from running(Stand())

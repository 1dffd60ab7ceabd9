"""Real vLLM, once in this process and once as a server, for all tests of this folder.

They share a worker of pytest-xdist (`xdist_group`), so that each engine is started once.
"""

from __future__ import annotations

import copy
import os
import socket
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
from boresight.demo.tiny import build_tiny
from boresight.model.export import PolicyWeights
from boresight.model.load import model_facts
from boresight.rollout.hf import HFSampler
from boresight.rollout.vllm.engine import Engine
from boresight.rollout.vllm.local import LocalEngine
from boresight.rollout.vllm.sampler import VLLMSampler
from boresight.rollout.vllm.serve import Server, server_command
from boresight.rollout.vllm.server import ServerEngine
from boresight.types import ModelFacts, Prompt, Sampler
from tests.rollout.conftest import noise

ENGINE = {"dtype": "float32", "max_model_len": 256, "max_num_seqs": 32, "gpu_memory_utilization": 0.1}
PICTURES = {"image": 2, "video": 0}

QUESTIONS = ("what color is the shape?", "which of the two is larger, and why?", "say anything")
SIZES = (((64, 96),), ((48, 64), (96, 40)), ())
"""Width and height of each prompt's pictures."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("vllm"))


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
        options: dict[str, Any] = {"decode_picture": decode, "name": "test"}
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
    """Prompts with one picture, with two, and with none."""
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
    return LocalEngine(rig.save, limit_mm_per_prompt=PICTURES, **ENGINE)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_server(folder: Path, port: int) -> Server:
    flags = [
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--enforce-eager",
        "--limit-mm-per-prompt",
        '{"image":2,"video":0}',
    ]
    flags += [part for name, value in ENGINE.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    return Server(server_command(str(folder), flags), quiet=True)


@pytest.fixture(scope="session")
def address(rig: Rig) -> Iterator[str]:
    """Of a server of the same model."""
    port = free_port()
    server = start_server(rig.folder, port)
    yield f"http://127.0.0.1:{port}"
    server.close()


@pytest.fixture(scope="session")
def remote(address: str) -> Iterator[ServerEngine]:
    engine = ServerEngine(address, timeout_s=280)
    yield engine
    engine.close()


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

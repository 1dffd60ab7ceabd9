"""An adapter that travels by itself is applied as the trainer applies it, all of it, and is known to be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from boresight.data.images import decode
from boresight.errors import ConfigError, EngineRestartedError, SyncError
from boresight.model.adapter_export import PolicyAdapter
from boresight.model.export import PolicyWeights
from boresight.rollout.vllm.engine import Engine
from boresight.rollout.vllm.local import LocalEngine
from boresight.rollout.vllm.sampler import VLLMSampler
from boresight.rollout.vllm.server import ServerEngine
from boresight.sampling import SamplingSettings

from .conftest import ENGINE, IMAGES, START_S, Rig, Supervised
from .test_contract import furthest

SETTINGS = SamplingSettings(4, 10, seed=5)
LANGUAGE = r".*language_model.*(q_proj|v_proj|down_proj)"
TOWER = r".*visual.*(attn.qkv|mlp.down_proj)"

Adapted = Callable[..., Any]


@pytest.fixture
def adapted(kept: Rig) -> Iterator[Adapted]:
    """Gives the rig's model an adapter that changes what it says."""
    made = []

    def build(**options: Any) -> Any:
        config = LoraConfig(**{"r": 4, "target_modules": LANGUAGE, "init_lora_weights": False, **options})
        made.append(get_peft_model(kept.model, config))
        return made[0]

    yield build
    for model in made:
        model.unload()


@pytest.fixture(scope="module")
def local_lora(rig: Rig) -> LocalEngine:
    return LocalEngine(rig.save, limit_mm_per_prompt=IMAGES, enable_lora=True, max_lora_rank=8, **ENGINE)


@pytest.fixture(scope="module")
def remote_lora(rig: Rig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerEngine]:
    log = tmp_path_factory.mktemp("server") / "said.txt"
    server = Supervised(rig.folder, log, "--enable-lora", "--max-lora-rank", "8")
    engine = ServerEngine(server.url, timeout_s=START_S)
    yield engine
    engine.close()
    assert server.close() == 0, log.read_text()[-2000:]


@pytest.fixture(params=["colocate", "server"])
def engine(request: pytest.FixtureRequest) -> Engine:
    return request.getfixturevalue({"colocate": "local_lora", "server": "remote_lora"}[request.param])


class Watched:
    """An engine whose calls are counted, and whose adapter may be tampered with on the way."""

    def __init__(self, engine: Engine, tamper: Callable[[Path], None] = lambda folder: None) -> None:
        self.engine = engine
        self.tamper = tamper
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def load(self, tensors: Any, version: str, **options: Any) -> None:
        self.calls.append("weights")
        self.engine.load(tensors, version, **options)

    def load_adapter(self, save: Callable[[Path], None], version: str) -> None:
        self.calls.append("adapter")

        def tampered(folder: Path) -> None:
            save(folder)
            self.tamper(folder)

        self.engine.load_adapter(tampered, version)


def sampler_of(rig: Rig, model: Any, engine: Any, name: str = "test") -> VLLMSampler:
    options: dict[str, Any] = {"decode_image": decode, "name": name, "adapter": PolicyAdapter(model)}
    weights = PolicyWeights(model, adapters=False)
    return VLLMSampler(engine, weights, rig.facts, rig.processor.tokenizer, **options)


@torch.no_grad()
def move_adapter(model: Any) -> None:
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.mul_(-1.5 if "lora_B" in name else 0.8)


def test_the_base_goes_once_and_then_the_adapter_alone(engine: Engine, kept: Rig, adapted: Adapted) -> None:
    """With an alpha, a rank and a scaling that differ from module to module."""
    model = adapted(lora_alpha=6, use_rslora=True, rank_pattern={"q_proj": 8}, alpha_pattern={"down_proj": 3})
    wire = Watched(engine)
    sampler = sampler_of(kept, model, wire)
    first = sampler.sync(0)
    assert first is not None
    before = sampler.sample(kept.prompts, SETTINGS)
    assert furthest(kept, before, model=model) < 1e-3
    with model.disable_adapter():
        assert furthest(kept, before, model=model) > 0.05  # without the adapter it would say something else
    num_modules = 2 * 3  # layers, modules of each
    for step in (1, 2):
        move_adapter(model)
        sampler.outdate()
        report = sampler.sync(step)
        assert report is not None
        assert (report.num_sent, report.num_compared) == (2 * num_modules, num_modules)
        assert furthest(kept, sampler.sample(kept.prompts, SETTINGS), model=model) < 1e-3
    assert wire.calls == ["weights", "adapter", "adapter", "adapter"]
    assert first.num_compared > num_modules
    assert furthest(kept, before, model=model) > 0.05


def test_an_adapter_that_starts_at_zero_is_bound_all_the_same(engine: Engine, kept: Rig, adapted: Adapted) -> None:
    model = adapted(init_lora_weights=True)
    sampler = sampler_of(kept, model, engine)
    sampler.sync(0)
    assert furthest(kept, sampler.sample(kept.prompts, SETTINGS), model=model) < 1e-3


def test_modules_that_the_engine_binds_nothing_to_are_named(engine: Engine, kept: Rig, adapted: Adapted) -> None:
    """vLLM passes over a tower's adapters without a word unless it was started to apply them."""
    model = adapted(target_modules=f"({LANGUAGE})|({TOWER})")
    sampler = sampler_of(kept, model, engine)
    with pytest.raises(SyncError, match=r"visual.blocks.\d.*to nothing \(6 of 10 .* vllm_lora_sync='merged'"):
        sampler.sync(0)


@pytest.mark.parametrize("part", ["lora_A", "lora_B"])
def test_factors_that_changed_on_the_way_are_noticed(
    local_lora: Engine, kept: Rig, adapted: Adapted, part: str
) -> None:
    def tamper(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        tensors = load_file(path)
        name = next(name for name in tensors if f"layers.1.self_attn.v_proj.{part}" in name)
        tensors[name][1, 2] += 1.0
        save_file(tensors, path)

    sampler = sampler_of(kept, adapted(), Watched(local_lora, tamper))
    with pytest.raises(SyncError, match=r"layers.1.self_attn.v_proj differ"):
        sampler.sync(0)


def test_another_trainers_adapter_is_noticed_and_replaced(engine: Engine, kept: Rig, adapted: Adapted) -> None:
    model = adapted()
    ours, theirs = (sampler_of(kept, model, engine, name) for name in ("ours", "theirs"))
    ours.sync(0)
    theirs.sync(0)
    with pytest.raises(EngineRestartedError, match="holds the weights 'theirs/"):
        ours.sample(kept.prompts, SETTINGS)
    ours.outdate()
    ours.sync(0)
    groups = ours.sample(kept.prompts, SETTINGS)
    assert furthest(kept, groups, model=model) < 1e-3


def test_a_server_that_lost_the_adapter_gets_it_again(remote_lora: ServerEngine, kept: Rig, adapted: Adapted) -> None:
    model = adapted()
    sampler = sampler_of(kept, model, remote_lora)
    sampler.sync(0)
    (name,) = remote_lora._adapters()
    remote_lora.client.send("POST", "/v1/unload_lora_adapter", json={"lora_name": name})
    with pytest.raises(EngineRestartedError, match="has lost the adapter"):
        sampler.sample(kept.prompts, SETTINGS)
    sampler.outdate()
    sampler.sync(0)
    groups = sampler.sample(kept.prompts, SETTINGS)
    assert furthest(kept, groups, model=model) < 1e-3


def test_a_rank_above_the_engines_is_refused_with_the_flag(local_lora: Engine, kept: Rig, adapted: Adapted) -> None:
    with pytest.raises(ConfigError, match=r"rank 8, and this one has rank 12: .* --enable-lora --max-lora-rank 16"):
        sampler_of(kept, adapted(r=12), local_lora)


def test_an_engine_without_adapters_is_refused_with_the_flag(local: Engine, kept: Rig, adapted: Adapted) -> None:
    with pytest.raises(ConfigError, match=r"takes no adapters, and this one has rank 4: .* --max-lora-rank 8, or"):
        sampler_of(kept, adapted(), local)

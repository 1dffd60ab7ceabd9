"""A server of two data-parallel replicas: each is sent the policy's weights, and each is verified."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from boresight.errors import SyncError
from boresight.model.export import PolicyWeights
from boresight.rollout.vllm.protocol.messages import EXTENSION, GetFacts
from boresight.rollout.vllm.serve import Server, server_command
from boresight.rollout.vllm.server import ServerEngine
from boresight.rollout.vllm.sync import WeightSync
from boresight.sampling import SamplingSettings

from . import second_replica
from .conftest import FLAGS, START_S, Rig, free_port
from .test_contract import furthest
from .test_sync import move

ROOT = Path(__file__).parents[3]

pytestmark = pytest.mark.soak  # its server takes two minutes of two cores to start


@pytest.fixture(scope="module")
def spoil(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("spoil") / "parameter"


@pytest.fixture(scope="module")
def replicas(rig: Rig, spoil: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerEngine]:
    log, port = tmp_path_factory.mktemp("server") / "said.txt", free_port()
    flags = [str(flag) for flag in FLAGS] + ["--port", str(port), "--data-parallel-size", "2"]
    command = server_command(
        str(rig.folder), [flag.replace("--vllm_max_model_len", "--max-model-len") for flag in flags]
    )
    spoiling = f"{second_replica.__name__}.{second_replica.SpoilingExtension.__name__}"
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv(second_replica.SPOIL, str(spoil))
        environment.setenv("PYTHONPATH", str(ROOT))
        server = Server([spoiling if word == EXTENSION else word for word in command], log=log)
    try:
        engine = ServerEngine(f"http://127.0.0.1:{port}", timeout_s=START_S, alive=server.is_alive)
        yield engine
        engine.close()
    except BaseException:
        print(log.read_text()[-3000:])
        raise
    finally:
        server.close()


@pytest.mark.timeout(2 * START_S)
def test_each_replica_samples_from_the_policy_of_now(kept: Rig, replicas: ServerEngine) -> None:
    facts = replicas.answers(GetFacts())
    assert len({each.instance_id for each in facts}) == 2
    sampler = kept.sampler(replicas)
    before = sampler.sample(kept.prompts, SamplingSettings(4, 10, seed=5))
    assert furthest(kept, before) < 1e-3  # three requests at once, which vLLM deals to both
    move(kept)
    assert furthest(kept, before) > 0.05
    sampler.outdate()
    sampler.sync(1)
    assert furthest(kept, sampler.sample(kept.prompts, SamplingSettings(4, 10, seed=5))) < 1e-3


@pytest.mark.timeout(2 * START_S)
@pytest.mark.parametrize(
    "part", ["language_model.model.layers.1.input_layernorm.weight", "visual.blocks.0.norm1.weight"]
)
def test_one_wrong_number_in_the_second_replica_is_found(
    rig: Rig, replicas: ServerEngine, spoil: Path, part: str
) -> None:
    WeightSync(replicas, PolicyWeights(rig.model)).push("right")  # the control
    spoil.write_text(part)
    with pytest.raises(
        SyncError, match=r"replica 1 of the vLLM server at .* does not hold the weights that were sent"
    ) as caught:
        WeightSync(replicas, PolicyWeights(rig.model)).push("wrong")
    assert part in str(caught.value)
    assert not spoil.exists()

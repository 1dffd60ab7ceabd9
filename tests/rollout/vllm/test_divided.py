"""A server whose model is divided over two workers. (One engine over two training processes: test_ranks.py.)"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from boresight.errors import SyncError
from boresight.model.export import PolicyWeights
from boresight.rollout.vllm.protocol.messages import GetFacts
from boresight.rollout.vllm.server import ServerEngine
from boresight.rollout.vllm.sync import WeightSync
from boresight.sampling import SamplingSettings

from .conftest import START_S, Rig, Supervised
from .test_contract import furthest
from .test_sync import Stream, Wire

DIVIDED = ("--tensor-parallel-size", "2", "--distributed-executor-backend", "mp")

pytestmark = pytest.mark.soak  # its server takes two minutes of two cores to start


@pytest.fixture(scope="module")
def divided(rig: Rig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerEngine]:
    log = tmp_path_factory.mktemp("server") / "said.txt"
    server = Supervised(rig.folder, log, *DIVIDED)
    engine = ServerEngine(server.url, timeout_s=START_S)
    assert engine.call(GetFacts()).world_size == 2
    yield engine
    engine.close()
    assert server.close() == 0, log.read_text()[-2000:]


@pytest.mark.timeout(2 * START_S)
def test_what_its_workers_hold_is_the_policy(rig: Rig, divided: ServerEngine, remote: ServerEngine) -> None:
    groups = rig.sampler(divided).sample(rig.prompts, SamplingSettings(4, 10, seed=5))
    assert furthest(rig, groups) < 1e-3
    weights = PolicyWeights(rig.model)
    counts = [WeightSync(engine, weights).push("again").num_compared for engine in (divided, remote)]
    assert counts[0] == counts[1]


@pytest.mark.timeout(2 * START_S)
@pytest.mark.parametrize(
    ("part", "place"),
    [
        ("model.layers.1.self_attn.q_proj.weight", (-1, 0)),  # whose rows are divided
        ("model.layers.1.mlp.down_proj.weight", (1, -1)),  # whose columns are
        ("visual.blocks.0.attn.qkv.weight", (-1, 0)),
        ("model.embed_tokens.weight", (-1, 0)),
    ],
)
def test_one_number_in_the_second_workers_half(
    rig: Rig, divided: ServerEngine, part: str, place: tuple[int, int]
) -> None:
    def tamper(stream: Stream) -> Stream:
        for name, tensor in stream:
            if name == part:
                tensor = tensor.clone()
                tensor[place] += 1.0
            yield name, tensor

    assert part in PolicyWeights(rig.model).listed
    with pytest.raises(SyncError, match="does not hold the weights that were sent") as caught:
        WeightSync(Wire(divided, tamper), PolicyWeights(rig.model)).push("wrong")
    assert part in str(caught.value)

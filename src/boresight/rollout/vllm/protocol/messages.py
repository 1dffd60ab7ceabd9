"""The names under which vLLM finds boresight, and the calls that a trainer makes of vLLM's workers, each with its answer.

A call is a record: its type names the method (`inside.worker.Extension`) and the type of the answer, its fields are the arguments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, TypeVar

ENGINE = "boresight"
"""The weight transfer engine that reads memory or files."""
NCCL_ENGINE = "boresight_nccl"
"""The weight transfer engine over NCCL."""
LOAD_FORMAT = "boresight"
"""The load format that reads no weights, since the trainer sends them all."""
EXTENSION = "boresight.rollout.vllm.inside.worker.Extension"
"""The methods that vLLM's workers get."""
BAN = "boresight.rollout.vllm.inside.worker:BanIds"
"""The logits processor."""
PLUGIN = "boresight.rollout.vllm.inside.plugin"
"""vLLM's plugin, which pyproject.toml names as an entry point."""
BANNED = "boresight_banned"
"""The key of a request's `extra_args` that `BAN` reads."""
STARTED_BY = "BORESIGHT_STARTED_BY"
"""The environment variable that holds the id of the process that a server must not outlive."""

Answer = TypeVar("Answer", covariant=True)


class WorkerCall(Generic[Answer]):
    """One call of vLLM's workers, `collective_rpc(method, json)`."""

    __slots__ = ()
    method: ClassVar[str]
    answer: ClassVar[type[Any]]
    """The type of the answer, again: a type parameter is not there at run time."""


# ---- What an engine is -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What a trainer must know before it relies on an engine."""

    instance_id: str
    """Differs from process to process: a server that was started again has another."""
    transport: Literal["file", "nccl"] | None
    """How weights arrive. None: by none of boresight's ways."""
    world_size: int
    num_stages: int
    """Pipeline stages."""
    num_replicas: int
    """Data-parallel copies."""
    dtype: str
    logprobs_mode: str
    max_model_len: int
    max_num_seqs: int
    max_lora_rank: int | None
    """None: it takes no adapters."""
    bans_ids: bool
    """Whether the logits processor `BAN` is there."""


@dataclass(frozen=True, slots=True)
class GetFacts(WorkerCall[EngineFacts]):
    """What the engine is, and how it is set."""

    method: ClassVar[str] = "boresight_facts"
    answer: ClassVar[type[Any]] = EngineFacts


# ---- Updates of weights ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class UpdateReport:
    """Where the tensors of an update went. Tensors have their saved names; modules and parameters have the engine's."""

    received: list[str]
    """Tensors that became a part of some parameter."""
    not_received: list[str]
    """Tensors that no parameter took."""
    left_out: list[str]
    """Tensors of layers that this engine does not build."""
    partly_covered: dict[str, list[str]]
    """Modules that got some of their tensors, which then keep all they had → what was missing."""
    untouched: list[str]
    """Parameters that got nothing."""


@dataclass(frozen=True, slots=True)
class LastUpdate:
    """The report of the last finished update."""

    report: UpdateReport | None
    """None: no update was finished since the engine started, or one is under way."""


@dataclass(frozen=True, slots=True)
class GetLastUpdate(WorkerCall[LastUpdate]):
    """What became of the last update."""

    method: ClassVar[str] = "boresight_last_update"
    answer: ClassVar[type[Any]] = LastUpdate


@dataclass(frozen=True, slots=True)
class ParameterSources:
    """What the engine's parameters are made of."""

    sources: dict[str, list[str]]
    """Every parameter that was ever sent → the saved names that make it up, in the order of its rows."""


@dataclass(frozen=True, slots=True)
class GetParameterSources(WorkerCall[ParameterSources]):
    """What the engine's parameters are made of."""

    method: ClassVar[str] = "boresight_parameter_sources"
    answer: ClassVar[type[Any]] = ParameterSources


@dataclass(frozen=True, slots=True)
class AbandonedUpdate:
    """What was left of an unfinished update."""

    was_active: bool
    """Whether there was one."""
    instance_id: str
    """As in `EngineFacts`."""


@dataclass(frozen=True, slots=True)
class AbandonUpdate(WorkerCall[AbandonedUpdate]):
    """Undo an update that a trainer started and never finished."""

    method: ClassVar[str] = "boresight_abandon_update"
    answer: ClassVar[type[Any]] = AbandonedUpdate


# ---- Verification ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a matrix does to fixed vectors."""

    rows: int
    columns: int
    """Of the whole matrix, also where workers hold parts of it."""
    value: float
    """r₂ · (W r₁ + b), see `tensors.projected`."""


@dataclass(frozen=True, slots=True)
class Fingerprints:
    """Fingerprints of parameters."""

    parameters: dict[str, Fingerprint | None]
    """None for a parameter that has no fingerprint of its own. Unknown names are left out."""


@dataclass(frozen=True, slots=True)
class GetFingerprints(WorkerCall[Fingerprints]):
    """Fingerprints of these parameters (keys of `ParameterSources`)."""

    method: ClassVar[str] = "boresight_fingerprints"
    answer: ClassVar[type[Any]] = Fingerprints
    parameters: list[str]


@dataclass(frozen=True, slots=True)
class FactorSizes:
    """The sizes of an adapter's module: A is [rank, columns] and B is [rows, rank]."""

    rows: int
    rank: int
    columns: int


@dataclass(frozen=True, slots=True)
class FactorFingerprints:
    """r₂ · A r₁ and r₂ · B r₁, see `tensors.projected`."""

    down: float
    up: float


@dataclass(frozen=True, slots=True)
class AdapterFingerprints:
    """Fingerprints of the adapter that came last."""

    modules: dict[str, FactorFingerprints | None] | None
    """By saved name; None for a module to which the engine bound nothing. None for all: no adapter is active."""


@dataclass(frozen=True, slots=True)
class GetAdapterFingerprints(WorkerCall[AdapterFingerprints]):
    """Fingerprints of these modules of the adapter that came last, by saved name."""

    method: ClassVar[str] = "boresight_adapter_fingerprints"
    answer: ClassVar[type[Any]] = AdapterFingerprints
    modules: dict[str, FactorSizes]


CALLS: tuple[type[WorkerCall[Any]], ...] = (
    GetFacts,
    GetLastUpdate,
    GetParameterSources,
    AbandonUpdate,
    GetFingerprints,
    GetAdapterFingerprints,
)
"""All of them."""

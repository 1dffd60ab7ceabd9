"""The names under which vLLM finds boresight, and the calls that a trainer sends to vLLM's workers, each with its answer.

A call is a record. Its type gives the method (`inside.worker.Extension`) and the type of the answer; its fields are the arguments.
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
"""The class whose methods vLLM adds to its workers."""
BAN = "boresight.rollout.vllm.inside.worker:BanIds"
"""The logits processor."""
PLUGIN = "boresight.rollout.vllm.inside.plugin"
"""The vLLM plugin, an entry point in pyproject.toml."""
BANNED = "boresight_banned"
"""The key of a request's `extra_args` that `BAN` reads."""
REPLICAS_PATH = "/boresight/replicas"
"""The server's path to the answers of all data-parallel replicas."""
ASK_REPLICAS = "boresight.rollout.vllm.inside.replicas.AskReplicas"
"""The server's middleware that answers it."""
KEY = "BORESIGHT_SERVER_KEY"
"""The environment variable with the key that the server asks of every request, and that the trainer sends with it."""
KEY_CHECK = "boresight.rollout.vllm.inside.key.RequireKey"
"""The server's middleware that checks it. vLLM's own `--api-key` guards neither the control calls nor the token interface."""
STARTED_BY = "BORESIGHT_STARTED_BY"
"""The environment variable with the id of the process that a server must not outlive."""

Answer = TypeVar("Answer", covariant=True)


class WorkerCall(Generic[Answer]):
    """One call to vLLM's workers, `collective_rpc(method, json)`."""

    __slots__ = ()
    method: ClassVar[str]
    answer: ClassVar[type[Any]]
    """The type of the answer, repeated because the type parameter does not exist at run time."""


# ---- What an engine is -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What a trainer must know before it relies on an engine."""

    instance_id: str
    """Unique to the engine's process, so a restarted server has a new one."""
    transport: Literal["file", "nccl"] | None
    """How weights arrive. None: by no transport of boresight."""
    world_size: int
    num_stages: int
    """Pipeline stages."""
    num_coupled: int
    """Data-parallel replicas of a mixture of experts, which share experts. Replicas of other models are independent, and not counted."""
    dtype: str
    logprobs_mode: str
    max_model_len: int
    max_num_seqs: int
    max_lora_rank: int | None
    """None: the engine accepts no adapters."""
    bans_ids: bool
    """Whether the engine uses the logits processor `BAN`."""


@dataclass(frozen=True, slots=True)
class GetFacts(WorkerCall[EngineFacts]):
    """The engine's instance and its settings."""

    method: ClassVar[str] = "boresight_facts"
    answer: ClassVar[type[Any]] = EngineFacts


# ---- Updates of weights ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class UpdateReport:
    """Where the tensors of an update went. Tensors have their saved names; modules and parameters have the engine's names."""

    received: list[str]
    """Tensors that were loaded into a parameter."""
    not_received: list[str]
    """Tensors that were loaded into no parameter."""
    left_out: list[str]
    """Tensors of layers that this engine does not build."""
    partly_covered: dict[str, list[str]]
    """Modules that received only some of their tensors, and so keep their old weights → the missing tensors."""
    untouched: list[str]
    """Parameters that received nothing."""


@dataclass(frozen=True, slots=True)
class LastUpdate:
    """The report of the last finished update."""

    report: UpdateReport | None
    """None: no update has finished since the engine started, or one is in progress."""


@dataclass(frozen=True, slots=True)
class GetLastUpdate(WorkerCall[LastUpdate]):
    """The report of the last update."""

    method: ClassVar[str] = "boresight_last_update"
    answer: ClassVar[type[Any]] = LastUpdate


@dataclass(frozen=True, slots=True)
class ParameterSources:
    """The saved tensors that make up the engine's parameters."""

    sources: dict[str, list[str]]
    """Every parameter that was ever sent → the saved names of its parts, in the order of its rows."""


@dataclass(frozen=True, slots=True)
class GetParameterSources(WorkerCall[ParameterSources]):
    """The saved tensors that make up the engine's parameters."""

    method: ClassVar[str] = "boresight_parameter_sources"
    answer: ClassVar[type[Any]] = ParameterSources


@dataclass(frozen=True, slots=True)
class AbandonedUpdate:
    """The result of undoing an unfinished update."""

    was_active: bool
    """Whether an update was unfinished."""
    instance_id: str
    """As in `EngineFacts`."""


@dataclass(frozen=True, slots=True)
class AbandonUpdate(WorkerCall[AbandonedUpdate]):
    """Undo an update that a trainer started but did not finish."""

    method: ClassVar[str] = "boresight_abandon_update"
    answer: ClassVar[type[Any]] = AbandonedUpdate


# ---- Verification ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """A number that identifies a matrix, from its product with fixed vectors."""

    rows: int
    columns: int
    """The size of the whole matrix, even if workers hold parts of it."""
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
    """Fingerprints of the adapter that was loaded last."""

    modules: dict[str, FactorFingerprints | None] | None
    """By saved name; None for a module to which the engine bound no factors. None instead of the dict: no adapter is active."""


@dataclass(frozen=True, slots=True)
class GetAdapterFingerprints(WorkerCall[AdapterFingerprints]):
    """Fingerprints of these modules of the adapter that was loaded last, by saved name."""

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
"""All calls."""

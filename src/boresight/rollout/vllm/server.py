"""An engine behind HTTP: stock vLLM, started by `boresight vllm-serve`."""

from __future__ import annotations

import importlib
import itertools
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

from boresight.errors import ConfigError, EngineError, EngineGoneError, EngineRestartedError
from boresight.rollout.outputs import EngineOutput
from boresight.rollout.vllm.client import ServerClient
from boresight.rollout.vllm.engine import TESTED_LOCK, EngineProtocolError, Request, read_answer
from boresight.rollout.vllm.inference import PATH as GENERATE
from boresight.rollout.vllm.inference import engine_output, request_body
from boresight.rollout.vllm.options import VLLMOptions
from boresight.rollout.vllm.protocol.codec import to_dict, to_json
from boresight.rollout.vllm.protocol.messages import (
    REPLICAS_PATH,
    AbandonUpdate,
    EngineFacts,
    GetFacts,
    WorkerCall,
)
from boresight.rollout.vllm.protocol.tensors import TensorLocation, Tensors, memory_folder
from boresight.rollout.vllm.sync_folder import own_folder, remove_left_behind, saved_files

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

MAX_ATTACHED = 3
"""How often a server's checks are attempted, if it restarts during them."""

NEEDED = {
    "/collective_rpc": "VLLM_SERVER_DEV_MODE=1",
    "/start_weight_update": f"a vLLM that accepts weights ({TESTED_LOCK}, or any version from 0.30)",
    GENERATE: "--enable-scale-out",
}
"""Paths that training calls → what a server needs to have them."""


class ServerEngine:
    """A vLLM server, which may restart at any time, and may serve another trainer afterwards.

    Every call has a deadline. If the server becomes unavailable, the call waits until it is up again. Its weights are then unknown, so
    the call raises `EngineRestartedError`.

    Args:
        url: the server's address.
        timeout_s: how long to wait for a server that is not up.
        request_timeout_s: the time limit for one call, or a batch of completions.
        sync_dir: a folder that both sides can access, for weights by file; None: memory (/dev/shm), or the temporary folder.
        group_port: the port of the NCCL group, for weights by NCCL.
        alive: whether the trainer's own server still runs, so that nothing waits for a dead one.

    Raises:
        EngineError: no server is up in time.
        ConfigError: the server lacks a path or setting that training needs.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 240.0,
        request_timeout_s: float = 600.0,
        sync_dir: str | None = None,
        group_port: int = 51216,
        alive: Callable[[], bool] | None = None,
    ) -> None:
        self.client = ServerClient(url, timeout_s=timeout_s, request_timeout_s=request_timeout_s, alive=alive)
        self.where = self.client.where
        self._group_port = group_port
        self._sync_dir = Path(sync_dir) if sync_dir else memory_folder()
        self._nccl: Any = None
        self._nccl_instance_id = ""
        self._adapter: str | None = None
        """The server's name of the adapter to sample with."""
        self._adapter_folder: tempfile.TemporaryDirectory[str] | None = None
        self._num_adapters = itertools.count()
        self.client.wait()
        self.transport = self._attach().transport

    # ---- Attaching --------------------------------------------------------------------------------------------------------------

    def _attach(self) -> EngineFacts:
        """Check that the server has what training needs, and undo what an earlier trainer left unfinished."""
        for attempt in itertools.count(1):
            try:
                facts = self._checked_facts()
                self._tidy()
            except EngineRestartedError:
                if attempt == MAX_ATTACHED:
                    raise
            else:
                return facts
        raise AssertionError

    def _checked_facts(self) -> EngineFacts:
        """The server's facts, after a check that it has what training needs. The error for others gives the fix."""
        paths = self.client.send("GET", "/openapi.json").get("paths", {})
        for path, needs in NEEDED.items():
            if path not in paths:
                raise ConfigError(
                    f"{self.where} has no {path}: it needs {needs}. Start it with boresight vllm-serve --model …."
                )
        try:
            facts, *others = self.answers(GetFacts())
        except (EngineRestartedError, EngineGoneError, EngineProtocolError):
            raise
        except EngineError as error:
            raise ConfigError(
                f"{self.where} has no boresight plugin: start it with boresight vllm-serve --model …. ({error})"
            ) from error
        if facts.transport is None:
            raise ConfigError(
                f"{self.where} uses a weight transfer that keeps no record: start it with boresight vllm-serve --model …."
            )
        if facts.num_stages > 1:
            raise ConfigError(
                f"{self.where} has --pipeline-parallel-size {facts.num_stages}, with which a sync cannot be verified: divide a model by "
                "--tensor-parallel-size."
            )
        several = "start several servers and list them (--vllm_server_base_url A B …)."
        if facts.num_coupled > 1:
            raise ConfigError(
                f"{self.where} has --data-parallel-size {facts.num_coupled} and a mixture of experts, whose replicas each hold some of the "
                f"experts, so a sync cannot be verified: {several}"
            )
        if others and facts.transport == "nccl":
            raise ConfigError(
                f"{self.where} has --data-parallel-size {1 + len(others)}, and weights by NCCL reach one replica: drop --nccl, or {several}"
            )
        return facts

    def _tidy(self) -> None:
        """Undo what an earlier trainer left behind: an unfinished sync, its files, a pause, or sleep."""
        remove_left_behind(self._sync_dir)
        if self.call(AbandonUpdate()).was_active:
            logger.warning("%s was in the middle of a sync that its last trainer did not finish.", self.where)
        if self.client.send("GET", "/is_paused")["is_paused"]:
            logger.warning("%s was paused, and is resumed.", self.where)
            self.client.send("POST", "/resume")
        if self.client.send("GET", "/is_sleeping")["is_sleeping"]:
            logger.warning("%s was asleep, and is woken.", self.where)
            self.wake()

    # ---- Sampling ---------------------------------------------------------------------------------------------------------------

    def generate(self, requests: Sequence[Request]) -> list[EngineOutput]:
        if not requests:
            return []
        try:
            responses = self.client.send_all(
                [("POST", GENERATE, {"json": request_body(request, self._adapter)}) for request in requests]
            )
        except (EngineRestartedError, EngineGoneError):
            raise
        except EngineError as error:
            # A restarted server has lost the adapter.
            if self._adapter is not None and self._adapter not in self._adapters():
                raise EngineRestartedError(f"{self.where} has lost the adapter.") from error
            raise
        return [engine_output(response, self.where) for response in responses]

    # ---- Weights ----------------------------------------------------------------------------------------------------------------

    def call(self, call: WorkerCall[Result]) -> Result:
        body = {"method": call.method, "args": [to_json(call)]}
        return read_answer(call, self.client.send("POST", "/collective_rpc", json=body)["results"][0], self.where)

    def answers(self, call: WorkerCall[Result]) -> list[Result]:
        body = {"method": call.method, "args": [to_json(call)]}
        results = self.client.send("POST", REPLICAS_PATH, json=body)["results"]
        return [read_answer(call, each, self.where) for each in results]

    def load(self, tensors: Tensors, version: str, *, in_flight: bool = False) -> None:
        instance_id = self.call(AbandonUpdate()).instance_id
        if self.transport == "nccl":
            with self._paused() if in_flight else nullcontext():
                self._broadcast(tensors, instance_id)
                self.client.send("POST", "/update_weight_version", json={"new_version": version})
            return
        try:
            with own_folder(self._sync_dir) as folder:
                files = saved_files(tensors, Path(folder))
                first = next(files, None)  # written while requests are still being completed
                with self._paused() if in_flight else nullcontext():
                    self.client.send("POST", "/start_weight_update")
                    for path in itertools.chain([] if first is None else [first], files):
                        info = to_dict(TensorLocation(path=str(path)))
                        self.client.send("POST", "/update_weights", json={"update_info": info})
                    self.client.send("POST", "/finish_weight_update", json={"weight_version": version})
        except (EngineRestartedError, EngineGoneError):
            raise
        except EngineError as error:
            if self.call(GetFacts()).instance_id != instance_id:
                raise EngineRestartedError(f"{self.where} was restarted during a sync.") from error
            self.call(AbandonUpdate())
            raise EngineError(
                f"{error} If a file is missing: the server must see the trainer's {self._sync_dir}; set vllm_sync_dir to a folder that "
                "both can access."
            ) from error

    @contextmanager
    def _paused(self) -> Iterator[None]:
        """A context in which no token is sampled. Requests under way stay, and go on afterwards."""
        self.client.send("POST", "/pause", params={"mode": "keep", "clear_cache": "false"})
        try:
            yield
        finally:
            self.client.send("POST", "/resume")

    def load_adapter(self, save: Callable[[Path], None], version: str) -> None:
        folder = own_folder(self._sync_dir)
        save(Path(folder.name))
        name = f"boresight/{version}/{next(self._num_adapters)}"
        try:
            self.client.send("POST", "/v1/load_lora_adapter", json={"lora_name": name, "lora_path": folder.name})
        except (EngineRestartedError, EngineGoneError):
            raise
        except EngineError as error:
            raise EngineError(
                f"{error} The server must see the trainer's {self._sync_dir} (or set vllm_sync_dir to a folder that both can access) and "
                "be started by boresight vllm-serve; if vLLM cannot serve the adapter, set vllm_lora_sync='merged'."
            ) from error
        for old in self._adapters():
            if old != name:
                self.client.send("POST", "/v1/unload_lora_adapter", json={"lora_name": old})
        self._adapter, self._adapter_folder = name, folder
        self.client.send("POST", "/update_weight_version", json={"new_version": version})

    def _adapters(self) -> list[str]:
        """Names of the adapters that trainers have loaded."""
        served = self.client.send("GET", "/v1/models")["data"]
        return [each["id"] for each in served if each["id"].startswith("boresight/")]

    def _broadcast(self, tensors: Tensors, instance_id: str) -> None:
        if self._nccl is None or self._nccl_instance_id != instance_id:  # a group with a dead member cannot be used
            self._nccl_instance_id = instance_id
            workers = self.client.send("GET", "/get_world_size")["world_size"]
            nccl = importlib.import_module("boresight.rollout.vllm.nccl")  # here, because it imports vLLM
            self._nccl = nccl.Broadcast(self.client.url, workers, self._group_port, self.client.request_timeout_s)
        self._nccl.send(tensors)

    def is_up(self) -> bool:
        return self.client.is_up()

    def version(self) -> str:
        return self.client.send("GET", "/weight_info")["weight_version"]

    def reset_caches(self, *, images: bool) -> None:
        self.client.send("POST", "/reset_prefix_cache")
        if images:
            self.client.send("POST", "/reset_encoder_cache")

    def sleep(self) -> None:
        self.client.send("POST", "/sleep", params={"level": 1})

    def wake(self) -> None:
        self.client.send("POST", "/wake_up")

    def close(self) -> None:
        """Remove the adapter's folder. The server keeps running for the next trainer."""
        if self._adapter_folder is not None:
            self._adapter_folder.cleanup()


def addresses(options: VLLMOptions) -> list[str]:
    """The servers' addresses, from their base URLs or from host and port."""
    given = options.vllm_server_base_url
    if given is None:
        return [f"http://{options.vllm_server_host}:{options.vllm_server_port}"]
    return [given] if isinstance(given, str) else list(given)

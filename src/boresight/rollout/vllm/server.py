"""An engine behind HTTP: stock vLLM, started by `boresight vllm-serve`."""

from __future__ import annotations

import importlib
import itertools
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from boresight.errors import ConfigError, EngineError, EngineRestartedError
from boresight.rollout.vllm.client import ServerClient
from boresight.rollout.vllm.engine import TESTED_LOCK, EngineOutput, EngineProtocolError, Request, read_answer
from boresight.rollout.vllm.inference import PATH as GENERATE
from boresight.rollout.vllm.inference import engine_output, request_body
from boresight.rollout.vllm.protocol.codec import to_dict, to_json
from boresight.rollout.vllm.protocol.messages import AbandonUpdate, EngineFacts, GetFacts, WorkerCall
from boresight.rollout.vllm.protocol.tensors import TensorLocation, Tensors, memory_folder
from boresight.rollout.vllm.sync_folder import own_folder, remove_left_behind, saved_files

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

MAX_ATTACHED = 3
"""How often a server is checked again, because it went away meanwhile."""

NEEDED = {
    "/collective_rpc": "VLLM_SERVER_DEV_MODE=1",
    "/start_weight_update": f"a vLLM that takes weights ({TESTED_LOCK}, or any from 0.30)",
    GENERATE: "--enable-scale-out",
}
"""Paths that training calls, and what makes a server have them."""


class ServerEngine:
    """A vLLM server, which may be restarted at any time, and serve another trainer afterwards.

    Every call has a deadline. A server that went away is waited for. What it holds when it is up again is unknown, which
    `EngineRestartedError` says.

    Args:
        url: its address.
        timeout_s: how long to wait for a server that is not up.
        request_timeout_s: how long one call may take, or a batch of completions.
        sync_dir: a folder that both sides see, for weights by file; None: memory (/dev/shm), or the temporary folder.
        group_port: for weights by NCCL.
        alive: whether a server of one's own is still there, so that a dead one is not waited for.

    Raises:
        EngineError: no server is up in time.
        ConfigError: it lacks what training needs.
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
        """What the server calls the adapter that completions are sampled with."""
        self._adapter_folder: tempfile.TemporaryDirectory[str] | None = None
        self._num_adapters = itertools.count()
        self.client.wait()
        self.transport = self._attach().transport

    # ---- Attaching --------------------------------------------------------------------------------------------------------------

    def _attach(self) -> EngineFacts:
        """Make sure that training can rely on this server, and undo what an earlier trainer left unfinished."""
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
        """The facts of a server that has what training needs. Others are refused with what to do."""
        paths = self.client.send("GET", "/openapi.json").get("paths", {})
        for path, needs in NEEDED.items():
            if path not in paths:
                raise ConfigError(
                    f"{self.where} has no {path}: it needs {needs}. Start it with boresight vllm-serve --model …."
                )
        try:
            facts = self.call(GetFacts())
        except (EngineRestartedError, EngineProtocolError):
            raise
        except EngineError as error:
            raise ConfigError(
                f"{self.where} does not know boresight: start it with boresight vllm-serve --model …. ({error})"
            ) from error
        if facts.transport is None:
            raise ConfigError(
                f"{self.where} takes weights in a way that keeps no record: start it with boresight vllm-serve --model …."
            )
        for flag, count in (
            ("--pipeline-parallel-size", facts.num_stages),
            ("--data-parallel-size", facts.num_replicas),
        ):
            if count > 1:
                raise ConfigError(
                    f"{self.where} has {flag} {count}, over which no sync can be verified: start it with --tensor-parallel-size alone."
                )
        return facts

    def _tidy(self) -> None:
        """Undo what an earlier trainer left: an unfinished sync, its files, a pause, sleep."""
        remove_left_behind(self._sync_dir)
        if self.call(AbandonUpdate()).was_active:
            logger.warning("%s was in the middle of a sync that its trainer never finished.", self.where)
        if self.client.send("GET", "/is_paused")["is_paused"]:
            logger.warning("%s was paused, and goes on.", self.where)
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
        except EngineRestartedError:
            raise
        except EngineError as error:
            # A server that was restarted does not know the adapter any more.
            if self._adapter is not None and self._adapter not in self._adapters():
                raise EngineRestartedError(f"{self.where} has lost the adapter.") from error
            raise
        return [engine_output(response, self.where) for response in responses]

    # ---- Weights ----------------------------------------------------------------------------------------------------------------

    def call(self, call: WorkerCall[Result]) -> Result:
        body = {"method": call.method, "args": [to_json(call)]}
        return read_answer(call, self.client.send("POST", "/collective_rpc", json=body)["results"][0], self.where)

    def load(self, tensors: Tensors, version: str) -> None:
        instance_id = self.call(AbandonUpdate()).instance_id
        if self.transport == "nccl":
            self._broadcast(tensors, instance_id)
            self.client.send("POST", "/update_weight_version", json={"new_version": version})
            return
        try:
            with own_folder(self._sync_dir) as folder:
                self.client.send("POST", "/start_weight_update")
                for path in saved_files(tensors, Path(folder)):
                    info = to_dict(TensorLocation(path=str(path)))
                    self.client.send("POST", "/update_weights", json={"update_info": info})
                self.client.send("POST", "/finish_weight_update", json={"weight_version": version})
        except EngineRestartedError:
            raise
        except EngineError as error:
            if self.call(GetFacts()).instance_id != instance_id:
                raise EngineRestartedError(f"{self.where} was restarted during a sync.") from error
            self.call(AbandonUpdate())
            raise EngineError(
                f"{error} Where it says that a file is missing: the server must see the trainer's {self._sync_dir}; name a folder that "
                "both see with vllm_sync_dir."
            ) from error

    def load_adapter(self, save: Callable[[Path], None], version: str) -> None:
        folder = own_folder(self._sync_dir)
        save(Path(folder.name))
        name = f"boresight/{version}/{next(self._num_adapters)}"
        try:
            self.client.send("POST", "/v1/load_lora_adapter", json={"lora_name": name, "lora_path": folder.name})
        except EngineRestartedError:
            raise
        except EngineError as error:
            raise EngineError(
                f"{error} The server must see the trainer's {self._sync_dir} (else name a folder that both see with vllm_sync_dir) and be "
                "started by boresight vllm-serve; where vLLM cannot serve the adapter, set vllm_lora_sync='merged'."
            ) from error
        for old in self._adapters():
            if old != name:
                self.client.send("POST", "/v1/unload_lora_adapter", json={"lora_name": old})
        self._adapter, self._adapter_folder = name, folder
        self.client.send("POST", "/update_weight_version", json={"new_version": version})

    def _adapters(self) -> list[str]:
        """Names of adapters that trainers have loaded."""
        served = self.client.send("GET", "/v1/models")["data"]
        return [each["id"] for each in served if each["id"].startswith("boresight/")]

    def _broadcast(self, tensors: Tensors, instance_id: str) -> None:
        if self._nccl is None or self._nccl_instance_id != instance_id:  # a group of which a part has died is of no use
            self._nccl_instance_id = instance_id
            workers = self.client.send("GET", "/get_world_size")["world_size"]
            nccl = importlib.import_module("boresight.rollout.vllm.nccl")  # here, because it imports vLLM
            self._nccl = nccl.Broadcast(self.client.url, workers, self._group_port, self.client.request_timeout_s)
        self._nccl.send(tensors)

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
        """Leave the server to the next trainer."""
        if self._adapter_folder is not None:
            self._adapter_folder.cleanup()


def address(options: Mapping[str, Any]) -> str:
    """The server's address, from base URL or host and port."""
    return options["vllm_server_base_url"] or f"http://{options['vllm_server_host']}:{options['vllm_server_port']}"

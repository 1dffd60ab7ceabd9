"""An engine behind HTTP: stock vLLM, started by `boresight vllm-serve`."""

from __future__ import annotations

import base64
import io
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from boresight.errors import ConfigError
from boresight.rollout.vllm.engine import (
    TESTED_LOCK,
    Answer,
    EngineError,
    EngineRestartedError,
    Request,
    Tensors,
)

logger = logging.getLogger(__name__)

MAX_CONCURRENT = 64
"""Requests under way at a time; the server queues more than it can run by itself."""
PARCEL_BYTES = 2**31
"""Weights that one file of a sync holds at most."""
SAY_EVERY = 10.0
"""Seconds between two lines that say what is being waited for."""


class ServerEngine:
    """A vLLM server, which may be started anew at any time, and serve another trainer afterwards.

    Every call has a deadline. A server that does not answer is waited for; when it is up again it holds other weights, which
    `EngineRestartedError` says.

    Args:
        url: its address.
        timeout_s: how long to wait for a server that is not up.
        request_timeout_s: how long one call may take.
        sync_dir: a folder that both sides see, for weights by file; None: memory (/dev/shm), or the temporary folder.
        group_port: for weights by NCCL.
        alive: says whether a server of one's own is still there, so that a dead one is not waited for.

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
        alive: Any = None,
    ) -> None:
        try:
            import httpx
        except ImportError as error:
            raise ConfigError("vllm_mode='server' needs httpx: pip install 'boresight[server]'") from error
        self._httpx = httpx
        self.url = url.rstrip("/")
        self.where = f"the vLLM server at {self.url}"
        self.timeout_s = timeout_s
        self._alive = alive
        self._client = httpx.Client(
            base_url=self.url,
            timeout=httpx.Timeout(request_timeout_s, connect=10.0),
            limits=httpx.Limits(max_connections=MAX_CONCURRENT),
            trust_env=False,  # a proxy has no business between trainer and engine
        )
        self._request_timeout_s = request_timeout_s
        self._group_port = group_port
        self._sync_dir = Path(sync_dir) if sync_dir else _memory_folder()
        self._nccl: Any = None
        self.wait()
        self._check_abilities()
        # What a trainer before this one left unfinished.
        if self.call("boresight_abandon")["was_active"]:
            logger.warning("%s was in the middle of a sync that its trainer never finished.", self.where)
        self.transport: str = self.call("boresight_facts")["transport"]

    # ---- Being there ------------------------------------------------------------------------------------------------------------

    def wait(self) -> None:
        """Until the server is up.

        Raises:
            EngineError: it is not within `timeout_s`.
        """
        start = said = time.monotonic()
        while not self._is_up():
            now = time.monotonic()
            if self._alive is not None and not self._alive():
                raise EngineError(f"{self.where} has ended.")
            if now - start > self.timeout_s:
                raise EngineError(
                    f"{self.where} was not up within vllm_server_timeout={self.timeout_s:g} s. Start it with boresight vllm-serve "
                    "--model …, or raise the timeout."
                )
            if now - said > SAY_EVERY:
                said = now
                logger.warning("waiting for %s: %.0f of %.0f s", self.where, now - start, self.timeout_s)
            time.sleep(0.5)

    def _is_up(self) -> bool:
        try:
            return self._client.get("/health", timeout=5.0).status_code == 200
        except self._httpx.TransportError:
            return False

    def _check_abilities(self) -> None:
        """Refuse, with what to do, a server that training cannot rely on."""
        paths = self._send("GET", "/openapi.json").get("paths", {})
        wanted = {
            "/collective_rpc": "VLLM_SERVER_DEV_MODE=1",
            "/start_weight_update": f"a vLLM that takes weights ({TESTED_LOCK}, or any from 0.30)",
            "/inference/v1/generate": "--enable-scale-out",
        }
        for path, needs in wanted.items():
            if path not in paths:
                raise ConfigError(
                    f"{self.where} has no {path}: it needs {needs}. Start it with boresight vllm-serve --model …."
                )
        try:
            facts = self.call("boresight_facts")
        except EngineError as error:
            raise ConfigError(
                f"{self.where} does not know boresight: start it with boresight vllm-serve --model …. ({error})"
            ) from error
        if facts["transport"] is None:
            raise ConfigError(
                f"{self.where} takes weights in a way that keeps no record: start it with boresight vllm-serve --model …."
            )

    def _send(self, method: str, path: str, **options: Any) -> Any:
        """One call and its JSON answer.

        Raises:
            EngineRestartedError: the server was gone, and is up again.
            EngineError: it refused, took too long, or did not come back.
        """
        try:
            response = self._client.request(method, path, **options)
        except self._httpx.TimeoutException as error:
            raise EngineError(
                f"{self.where} did not answer {path} within vllm_request_timeout={self._request_timeout_s:g} s."
            ) from error
        except self._httpx.TransportError as error:
            logger.warning("%s is gone (%s).", self.where, error or type(error).__name__)
            self.wait()
            raise EngineRestartedError(f"{self.where} was gone and is up again.") from error
        if response.status_code >= 500 and not self._is_up():
            self.wait()
            raise EngineRestartedError(f"{self.where} failed ({response.text[:200]}) and is up again.")
        if response.status_code >= 400:
            raise EngineError(f"{self.where} refused {path} ({response.status_code}): {response.text[:1000]}")
        return response.json() if response.content else {}

    # ---- Sampling ---------------------------------------------------------------------------------------------------------------

    def generate(self, requests: Sequence[Request]) -> list[Answer]:
        with ThreadPoolExecutor(min(MAX_CONCURRENT, len(requests)), "boresight-vllm") as pool:
            futures = [pool.submit(self._complete, request) for request in requests]
            try:
                return [future.result() for future in futures]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                self._abort()
                raise

    def _complete(self, request: Request) -> Answer:
        parts = [{"type": "image_url", "url": _data_uri(picture)} for picture in request.pictures]
        answer = self._send(
            "POST",
            "/inference/v1/generate",
            json={
                "token_ids": list(request.ids),
                "sampling_params": dict(request.sampling),
                "return_token_ids": True,
            }
            | ({"content_parts": parts} if parts else {}),
        )
        choices = sorted(answer["choices"], key=lambda choice: choice["index"])
        return Answer(
            answer["prompt_token_ids"],
            [(each["token_ids"], [one["logprob"] for one in each["logprobs"]["content"]]) for each in choices],
        )

    def _abort(self) -> None:
        """Let the server drop what nobody waits for any more."""
        try:
            self._client.post("/abort_requests", json={}, timeout=5.0)
        except self._httpx.HTTPError:
            logger.debug("%s could not be told to stop.", self.where)

    # ---- Weights ----------------------------------------------------------------------------------------------------------------

    def call(self, method: str, argument: str = "{}") -> Any:
        return self._send("POST", "/collective_rpc", json={"method": method, "args": [argument]})["results"][0]

    def load(self, tensors: Tensors, version: str) -> None:
        if self.transport == "nccl":
            self._broadcast(tensors)
            self._send("POST", "/update_weight_version", json={"new_version": version})
            return
        # A folder of this process's: whoever sees it finds nothing of other trainers' in it.
        folder = Path(tempfile.mkdtemp(prefix="boresight-sync-", dir=self._sync_dir))
        try:
            self._send("POST", "/start_weight_update")
            for number, part in enumerate(_parcels(tensors)):
                path = folder / f"{number}.safetensors"
                save_file(part, path)
                self._send("POST", "/update_weights", json={"update_info": {"path": str(path)}})
                path.unlink()
            self._send("POST", "/finish_weight_update", json={"weight_version": version})
        except EngineRestartedError:
            raise
        except EngineError as error:
            self.call("boresight_abandon")
            raise EngineError(
                f"{error} Where it says that a file is missing: the server must see the trainer's {self._sync_dir}; name a folder that "
                "both see with vllm_sync_dir."
            ) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _broadcast(self, tensors: Tensors) -> None:
        """By vLLM's own NCCL transfer. It needs GPUs: untested here."""
        from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
        from vllm.distributed.weight_transfer.clients import HTTPVLLMWeightSyncClient
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        class Source(WeightSource):
            made: Tensors = staticmethod(tensors)

            def metadata(self) -> list[ParamMeta]:
                return [ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self.made()]

            def __iter__(self) -> Any:
                return iter(self.made())

        if self._nccl is None:
            workers = self._send("GET", "/get_world_size")["world_size"]
            self._nccl = WeightTransferTrainerFactory.trainer_init(
                NCCLTrainerInitInfo(
                    rank=0,
                    master_address=os.environ.get("VLLM_HOST_IP", "127.0.0.1"),
                    master_port=self._group_port,
                    world_size=1 + workers,
                ),
                client=HTTPVLLMWeightSyncClient(self.url, timeout=self._request_timeout_s),
                source=Source(),
            )
        self._nccl.source = Source()
        self._nccl.send_weights()

    def version(self) -> str:
        return self._send("GET", "/weight_info")["weight_version"]

    def reset_caches(self, *, pictures: bool) -> None:
        self._send("POST", "/reset_prefix_cache")
        if pictures:
            self._send("POST", "/reset_encoder_cache")

    def sleep(self) -> None:
        self._send("POST", "/sleep", params={"level": 1})

    def wake(self) -> None:
        self._send("POST", "/wake_up")

    def close(self) -> None:
        """Leave the server to the next trainer."""
        self._client.close()


def _parcels(tensors: Tensors) -> Any:
    """Dictionaries of up to `PARCEL_BYTES`, on the CPU, each tensor with memory of its own."""
    part: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors():
        if part and size + tensor.nbytes > PARCEL_BYTES:
            yield part
            part, size = {}, 0
        part[name] = torch.empty_like(tensor, device="cpu", memory_format=torch.contiguous_format).copy_(tensor)
        size += tensor.nbytes
    if part:
        yield part


def _memory_folder() -> Path:
    shared = Path("/dev/shm")
    return shared if os.access(shared, os.W_OK) else Path(tempfile.gettempdir())


def _data_uri(picture: Any) -> str:
    stream = io.BytesIO()
    picture.save(stream, format="PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def address(options: Mapping[str, Any]) -> str:
    """The server's address, from base URL or host and port."""
    return options["vllm_server_base_url"] or f"http://{options['vllm_server_host']}:{options['vllm_server_port']}"

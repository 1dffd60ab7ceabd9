"""An engine behind HTTP: stock vLLM, started by `boresight vllm-serve`."""

from __future__ import annotations

import base64
import importlib
import io
import itertools
import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from boresight.errors import ConfigError, EngineError, EngineRestartedError
from boresight.rollout.vllm.calls import Call, Calls, LostError, OverdueError
from boresight.rollout.vllm.engine import TESTED_LOCK, Answer, Request, Tensors
from boresight.rollout.vllm.shelf import memory_folder

logger = logging.getLogger(__name__)

PARCEL_BYTES = 2**31
"""Weights that one file of a sync holds at most."""
SAY_EVERY = 10.0
"""Seconds between two lines that say what is being waited for."""
DYING_S = 1.0
"""Seconds that a server is given to die before it is asked whether it is up."""
HEALTH_S = 5.0
"""Seconds in which a server that is up says so."""
MAX_ATTACHED = 3
"""How often a server is asked anew what it can do, because it went away meanwhile."""
UNAVAILABLE = (502, 503, 504)
"""What a dying engine, or a gateway before it, answers."""

IN_WORDS = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter")
"""Where vLLM says in plain words that it is done."""


class ServerEngine:
    """A vLLM server, which may be started anew at any time, and serve another trainer afterwards.

    Every call has a deadline. A server that went away is waited for; what it holds when it is up again must be asked, which
    `EngineRestartedError` says.

    Args:
        url: its address.
        timeout_s: how long to wait for a server that is not up.
        request_timeout_s: how long one call may take, or a batch of completions.
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
        alive: Callable[[], bool] | None = None,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"vllm_server_base_url={url!r} is no address: write http://{url}.")
        self.url = url.rstrip("/")
        self.where = f"the vLLM server at {self.url}"
        self.timeout_s = timeout_s
        self._alive = alive
        self._calls = Calls(self.url, request_timeout_s)
        self._group_port = group_port
        self._sync_dir = Path(sync_dir) if sync_dir else memory_folder()
        self._nccl: Any = None
        self._adapter: str | None = None
        """What the server calls the adapter that completions are sampled with."""
        self._adapter_folder: tempfile.TemporaryDirectory[str] | None = None
        self._num_adapters = itertools.count()
        self._nccl_life = ""
        self.wait()
        self.transport = self._attach()

    # ---- Being there ------------------------------------------------------------------------------------------------------------

    def wait(self, *, gone: bool = False) -> None:
        """Until the server is up.

        Args:
            gone: it was up before. One that is dying may still say that it is well, so it gets a moment.

        Raises:
            EngineError: it is not within `timeout_s`.
        """
        start = said = time.monotonic()
        time.sleep(DYING_S if gone else 0.0)
        while not self._is_up():
            now = time.monotonic()
            if self._alive is not None and not self._alive():
                raise EngineError(f"{self.where} has ended.")
            if now - start > self.timeout_s:
                raise EngineError(
                    f"{self.where} {'went away and did not come back' if gone else 'was not up'} within "
                    f"vllm_server_timeout={self.timeout_s:g} s. Start it with boresight vllm-serve --model …, or raise the timeout."
                )
            if now - said > SAY_EVERY:
                said = now
                logger.warning("waiting for %s: %.0f of %.0f s", self.where, now - start, self.timeout_s)
            time.sleep(0.5)

    def _is_up(self) -> bool:
        try:
            (response,) = self._calls.together([("GET", "/health", {})], deadline_s=HEALTH_S)
        except (LostError, OverdueError):
            return False
        return response.status_code == 200

    def _attach(self) -> str:
        """Make sure that training can rely on this server, and undo what a trainer before left unfinished; how weights arrive."""
        for attempt in itertools.count(1):
            try:
                transport = self._checked_transport()
                self._tidy()
            except EngineRestartedError:
                if attempt == MAX_ATTACHED:
                    raise
            else:
                return transport
        raise AssertionError

    def _checked_transport(self) -> str:
        """How weights arrive at a server that has what training needs. Others are refused with what to do."""
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
        except EngineRestartedError:
            raise
        except EngineError as error:
            raise ConfigError(
                f"{self.where} does not know boresight: start it with boresight vllm-serve --model …. ({error})"
            ) from error
        if facts["transport"] is None:
            raise ConfigError(
                f"{self.where} takes weights in a way that keeps no record: start it with boresight vllm-serve --model …."
            )
        for flag, count in (("--pipeline-parallel-size", facts["stages"]), ("--data-parallel-size", facts["copies"])):
            if count > 1:
                raise ConfigError(
                    f"{self.where} has {flag} {count}, over which no sync is proved: start it with --tensor-parallel-size alone."
                )
        return facts["transport"]

    def _tidy(self) -> None:
        """Undo what a trainer before this one left: a sync that it never finished, its files, a pause, sleep."""
        for left in self._sync_dir.glob(f"{_own_folders()}*"):
            pid = int(left.name.removeprefix(_own_folders()).partition("-")[0])
            if not _is_running(pid):
                shutil.rmtree(left, ignore_errors=True)
        if self.call("boresight_abandon")["was_active"]:
            logger.warning("%s was in the middle of a sync that its trainer never finished.", self.where)
        if self._send("GET", "/is_paused")["is_paused"]:
            logger.warning("%s was paused, and goes on.", self.where)
            self._send("POST", "/resume")
        if self._send("GET", "/is_sleeping")["is_sleeping"]:
            logger.warning("%s was asleep, and is woken.", self.where)
            self.wake()

    def _send(self, method: str, path: str, **options: Any) -> Any:
        """One call and its JSON answer; see `_send_all`."""
        return self._send_all([(method, path, options)])[0]

    def _send_all(self, calls: Sequence[Call]) -> list[Any]:
        """Calls side by side, and their JSON answers.

        Raises:
            EngineRestartedError: the server went away, and is up again.
            EngineError: it refused, took too long, or did not come back.
        """
        try:
            return [
                self._read(call[1], response) for call, response in zip(calls, self._calls.together(calls), strict=True)
            ]
        except OverdueError as error:
            raise EngineError(
                f"{self.where} did not answer {calls[0][1]} within vllm_request_timeout={self._calls.deadline_s:g} s. If it only needs "
                "longer, raise the timeout; if it hangs, start it anew."
            ) from error
        except LostError as error:
            logger.warning("%s went away (%s).", self.where, error)
            self.wait(gone=True)
            raise EngineRestartedError(f"{self.where} went away ({error}), and is up again.") from error

    def _read(self, path: str, response: Any) -> Any:
        said = f"{response.status_code} to {path}: {response.text[:1000]}"
        if response.status_code in UNAVAILABLE or (response.status_code >= 500 and not self._is_up()):
            raise LostError(said)
        if response.status_code >= 400:
            raise EngineError(f"{self.where} answered {said}")
        if path in IN_WORDS:
            return {}
        try:
            return response.json() if response.content else {}
        except ValueError as error:
            raise EngineError(f"{self.where} answered {said}, which is no JSON. Is another program there?") from error

    # ---- Sampling ---------------------------------------------------------------------------------------------------------------

    def generate(self, requests: Sequence[Request]) -> list[Answer]:
        if not requests:
            return []
        named = {"model": self._adapter} if self._adapter else {}
        calls = [("POST", "/inference/v1/generate", {"json": _body(request) | named}) for request in requests]
        try:
            answers = self._send_all(calls)
        except EngineRestartedError:
            raise
        except EngineError as error:
            # A server that was started anew knows the adapter no longer.
            if self._adapter is not None and self._adapter not in self._adapters():
                raise EngineRestartedError(f"{self.where} has lost the adapter.") from error
            raise
        return [self._answer(answer) for answer in answers]

    def _answer(self, answer: Mapping[str, Any]) -> Answer:
        try:
            choices = sorted(answer["choices"], key=lambda choice: choice["index"])
            ends = {choice["finish_reason"] for choice in choices}
            read = Answer(
                answer["prompt_token_ids"],
                [(each["token_ids"], [one["logprob"] for one in each["logprobs"]["content"]]) for each in choices],
            )
        except (KeyError, TypeError) as error:
            raise EngineError(f"{self.where} answered /inference/v1/generate with {str(answer)[:1000]}") from error
        if cut := ends - {"stop", "length"}:
            raise EngineRestartedError(f"{self.where} broke completions off ({', '.join(map(str, cut))}).")
        return read

    # ---- Weights ----------------------------------------------------------------------------------------------------------------

    def call(self, method: str, argument: str = "{}") -> Any:
        return self._send("POST", "/collective_rpc", json={"method": method, "args": [argument]})["results"][0]

    def load(self, tensors: Tensors, version: str) -> None:
        life = self.call("boresight_abandon")["life"]
        if self.transport == "nccl":
            self._broadcast(tensors, life)
            self._send("POST", "/update_weight_version", json={"new_version": version})
            return
        # A folder of this process's: whoever sees it finds nothing of other trainers' in it.
        folder = Path(tempfile.mkdtemp(prefix=f"{_own_folders()}{os.getpid()}-", dir=self._sync_dir))
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
            if self.call("boresight_facts")["life"] != life:
                raise EngineRestartedError(f"{self.where} was started anew during a sync.") from error
            self.call("boresight_abandon")
            raise EngineError(
                f"{error} Where it says that a file is missing: the server must see the trainer's {self._sync_dir}; name a folder that "
                "both see with vllm_sync_dir."
            ) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def load_adapter(self, save: Callable[[Path], None], version: str) -> None:
        folder = tempfile.TemporaryDirectory(prefix=f"{_own_folders()}{os.getpid()}-", dir=self._sync_dir)
        save(Path(folder.name))
        name = f"boresight/{version}/{next(self._num_adapters)}"
        try:
            self._send("POST", "/v1/load_lora_adapter", json={"lora_name": name, "lora_path": folder.name})
        except EngineRestartedError:
            raise
        except EngineError as error:
            raise EngineError(
                f"{error} The server must see the trainer's {self._sync_dir} (else name a folder that both see with vllm_sync_dir) and be "
                "started by boresight vllm-serve; where vLLM cannot serve the adapter, set vllm_lora_sync='merged'."
            ) from error
        for old in self._adapters():
            if old != name:
                self._send("POST", "/v1/unload_lora_adapter", json={"lora_name": old})
        self._adapter, self._adapter_folder = name, folder
        self._send("POST", "/update_weight_version", json={"new_version": version})

    def _adapters(self) -> list[str]:
        """Names of adapters that trainers have brought."""
        served = self._send("GET", "/v1/models")["data"]
        return [each["id"] for each in served if each["id"].startswith("boresight/")]

    def _broadcast(self, tensors: Tensors, life: str) -> None:
        if self._nccl is None or self._nccl_life != life:  # a group of which a part has died is of no use
            self._nccl_life = life
            workers = self._send("GET", "/get_world_size")["world_size"]
            inside = importlib.import_module("boresight.rollout.vllm.nccl")
            self._nccl = inside.Broadcast(self.url, workers, self._group_port, self._calls.deadline_s)
        self._nccl.send(tensors)

    def version(self) -> str:
        return self._send("GET", "/weight_info")["weight_version"]

    def reset_caches(self, *, images: bool) -> None:
        self._send("POST", "/reset_prefix_cache")
        if images:
            self._send("POST", "/reset_encoder_cache")

    def sleep(self) -> None:
        self._send("POST", "/sleep", params={"level": 1})

    def wake(self) -> None:
        self._send("POST", "/wake_up")

    def close(self) -> None:
        """Leave the server to the next trainer."""
        if self._adapter_folder is not None:
            self._adapter_folder.cleanup()
        self._calls.close()


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


def _body(request: Request) -> dict[str, Any]:
    """A request as vLLM reads it."""
    body = {"token_ids": list(request.ids), "sampling_params": dict(request.sampling), "return_token_ids": True}
    parts = [{"type": "image_url", "url": _data_uri(image)} for image in request.images]
    return body | ({"content_parts": parts} if parts else {})


def _own_folders() -> str:
    """How the names of folders begin in which trainers of this machine put weights; a process id follows."""
    return f"boresight-sync-{socket.gethostname()}-"


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's
    return True


def _data_uri(image: Any) -> str:
    stream = io.BytesIO()
    image.save(stream, format="PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def address(options: Mapping[str, Any]) -> str:
    """The server's address, from base URL or host and port."""
    return options["vllm_server_base_url"] or f"http://{options['vllm_server_host']}:{options['vllm_server_port']}"

"""An engine in the training process, on the training process's device."""

from __future__ import annotations

import importlib
import itertools
import logging
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import distributed

from boresight.errors import ConfigError, EngineError
from boresight.rollout.outputs import EngineOutput
from boresight.rollout.vllm.cleanup import OPEN_ENGINES, prepare_process
from boresight.rollout.vllm.engine import TESTED_LOCK, Request, read_answer
from boresight.rollout.vllm.protocol.codec import to_dict, to_json
from boresight.rollout.vllm.protocol.messages import BAN, ENGINE, EXTENSION, LOAD_FORMAT, PLUGIN, WorkerCall
from boresight.rollout.vllm.protocol.tensors import SHARED_TENSORS, TensorLocation, Tensors, memory_folder

Result = TypeVar("Result")

ON_CPU = {"enforce_eager": True, "enable_chunked_prefill": False}
"""Engine options on a CPU. In vLLM 0.32 on a CPU, a chunked prefill fails if its request has a seed, because the random generator has no
offset to restore."""

FOR_CHILDREN = ("LD_PRELOAD", "LD_LIBRARY_PATH", "LOCAL_WORLD_SIZE")
"""Environment variables that vLLM sets for its own workers. Other processes that training starts, such as reward workers, would load a
second OpenMP because of them, and may abort on exit."""


class LocalEngine:
    """vLLM's `LLM` in this process.

    It reads no weights. It starts with random weights and may not sample before a sync has sent all of them, so that a tensor that never
    arrives is not masked by a checkpoint's.

    Args:
        save: writes config and processor, but no weights, into the folder that vLLM loads. The processor is the trainer's own, so that
            both sides have the same image budget.
        options: further engine arguments of vLLM.

    Raises:
        ConfigError: vLLM is missing or too old.
    """

    where = "the vLLM engine in this process"

    def __init__(self, save: Callable[[Path], None], **options: Any) -> None:
        on_cpu = not torch.cuda.is_available()
        self._prepare_environment(on_cpu)
        try:
            vllm: Any = importlib.import_module("vllm")
        except ImportError as error:
            raise ConfigError(
                f"use_vllm=True needs vLLM: pip install 'boresight[vllm]', tested with {TESTED_LOCK}. ({error})"
            ) from error
        missing = [name for name in ("start_weight_update", "finish_weight_update") if not hasattr(vllm.LLM, name)]
        if missing:
            raise ConfigError(
                f"This vLLM has no {missing[0]}, which weight updates need: install {TESTED_LOCK}, or any version from 0.30."
            )
        importlib.import_module(PLUGIN).register()
        prepare_process()
        self._vllm = vllm
        self._folder = tempfile.TemporaryDirectory(prefix="boresight-vllm-")
        save(Path(self._folder.name))
        defaults: dict[str, Any] = ON_CPU if on_cpu else {}
        # vLLM replaces this function with a no-op, and sets these variables for worker processes that it does not start here.
        set_num_threads, environment = torch.set_num_threads, {name: os.environ.get(name) for name in FOR_CHILDREN}
        try:
            self._llm: Any = vllm.LLM(
                model=self._folder.name,
                load_format=LOAD_FORMAT,
                generation_config="vllm",
                logprobs_mode="processed_logprobs",
                weight_transfer_config={"backend": ENGINE},
                worker_extension_cls=EXTENSION,
                logits_processors=[BAN],
                disable_log_stats=True,
                **{**defaults, **options},
            )
        finally:
            torch.set_num_threads = set_num_threads
            for name, value in environment.items():
                os.environ.pop(name, None)
                os.environ |= {} if value is None else {name: value}
        OPEN_ENGINES.add(self)
        # Each process that shares an engine holds a part of the model, and runs the prompts of all processes.
        self._shared: Any = (
            importlib.import_module("vllm.distributed.parallel_state").get_tp_group()
            if options.get("tensor_parallel_size", 1) > 1
            else None
        )
        self._llm.init_weight_transfer_engine({"init_info": {}})
        self._updates = itertools.count(1)
        self._adapter: Any = None
        """vLLM's record of the adapter. Its folder must stay, because vLLM may read it again."""
        self._adapter_folder: tempfile.TemporaryDirectory[str] | None = None

    @staticmethod
    def _prepare_environment(on_cpu: bool) -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # otherwise weights would be copied to another process
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        if on_cpu:
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # vLLM must not bind the trainer's threads
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])

    def generate(self, requests: Sequence[Request]) -> list[EngineOutput]:
        """All processes that share the engine must call this. Each gets the outputs of its own requests."""
        if self._shared is not None:
            everyones: list[Any] = [None] * self._shared.world_size
            distributed.all_gather_object(everyones, list(requests), group=self._shared.cpu_group)
            before = sum(map(len, everyones[: self._shared.rank_in_group]))
            outputs = self._generate([request for each in everyones for request in each])
            return outputs[before : before + len(requests)]
        return self._generate(requests)

    def _generate(self, requests: Sequence[Request]) -> list[EngineOutput]:
        if not requests:
            return []
        prompts = [
            {"prompt_token_ids": list(request.ids)}
            | ({"multi_modal_data": {"image": list(request.images)}} if request.images else {})
            for request in requests
        ]
        params = [self._params(request.sampling) for request in requests]
        try:
            outputs = self._llm.generate(prompts, params, use_tqdm=False, lora_request=self._adapter)
        except Exception as error:
            raise EngineError(f"{self.where} failed while sampling: {type(error).__name__}: {error}") from error
        return [
            EngineOutput(
                output.prompt_token_ids,
                [
                    (
                        list(one.token_ids),
                        [logp[id].logprob for id, logp in zip(one.token_ids, one.logprobs, strict=True)],
                    )
                    for one in output.outputs
                ],
            )
            for output in outputs
        ]

    def _params(self, sampling: Mapping[str, Any]) -> Any:
        options = dict(sampling)
        if "structured_outputs" in options:
            structured = self._vllm.sampling_params.StructuredOutputsParams
            options["structured_outputs"] = structured(**options["structured_outputs"])
        return self._vllm.SamplingParams(**options)

    def call(self, call: WorkerCall[Result]) -> Result:
        return read_answer(call, self._llm.collective_rpc(call.method, args=(to_json(call),))[0], self.where)

    def answers(self, call: WorkerCall[Result]) -> list[Result]:
        return [self.call(call)]

    def load(self, tensors: Tensors, version: str, *, in_flight: bool = False) -> None:
        """Load tensors from this process's memory, without a copy."""
        assert not in_flight
        name = f"{id(self)}/{next(self._updates)}"
        SHARED_TENSORS[name] = tensors
        try:
            self._llm.start_weight_update()
            self._llm.update_weights({"update_info": to_dict(TensorLocation(shared=name))})
            self._llm.finish_weight_update(version)
        except Exception as error:
            raise EngineError(f"{self.where} failed to load new weights: {error}") from error
        finally:
            del SHARED_TENSORS[name]

    def load_adapter(self, save: Callable[[Path], None], version: str) -> None:
        from vllm.lora.request import LoRARequest  # here, because vLLM is optional

        folder = tempfile.TemporaryDirectory(prefix="boresight-adapter-", dir=memory_folder())
        save(Path(folder.name))
        number = next(self._updates)
        request = LoRARequest(f"{version}/{number}", number, folder.name)
        engine = self._llm.llm_engine
        try:
            engine.add_lora(request)
        except Exception as error:
            raise EngineError(
                f"{self.where} failed to load the adapter: {error} Where vLLM cannot serve it, set vllm_lora_sync='merged'."
            ) from error
        # vLLM may have evicted the old adapter already, and then it cannot be removed.
        if self._adapter is not None and self._adapter.lora_int_id in engine.list_loras():
            engine.remove_lora(self._adapter.lora_int_id)
        self._adapter, self._adapter_folder = request, folder
        engine.set_weight_version(version)

    def is_up(self) -> bool:
        return True

    def version(self) -> str:
        return self._llm.get_weight_version()

    def reset_caches(self, *, images: bool) -> None:
        self._llm.reset_prefix_cache()
        if images:
            self._llm.llm_engine.reset_encoder_cache()

    def sleep(self) -> None:
        self._llm.sleep(level=1)

    def wake(self) -> None:
        self._llm.wake_up()

    def close(self) -> None:
        """Free the engine's memory. It cannot be used afterwards."""
        OPEN_ENGINES.discard(self)
        self._llm.llm_engine.engine_core.shutdown()
        self._adapter = self._adapter_folder = None
        self._folder.cleanup()


def check_sleep() -> None:
    """Check that vLLM can put engines to sleep on this machine.

    Raises:
        ConfigError: this machine has no GPU whose memory vLLM can free.
    """
    from vllm.platforms import current_platform  # here, because vLLM is optional

    if not current_platform.is_sleep_mode_available():
        raise ConfigError(
            f"vllm_enable_sleep_mode=True frees GPU memory, which vLLM cannot on this machine ({current_platform.device_type}): drop it."
        )

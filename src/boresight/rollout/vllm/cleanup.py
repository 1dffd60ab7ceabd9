"""The clean-up after an engine in the training process, which leaves what training and other engines use.

vLLM takes the process for its own: an engine that is shut down, or merely garbage-collected, destroys the process groups of every other
engine in the process, and the one that training runs over. Here they stay for as long as someone may need them.
"""

from __future__ import annotations

import gc
import importlib
from typing import Any
from weakref import WeakSet

import torch

OPEN_ENGINES: WeakSet[Any] = WeakSet()
"""The engines of this process that are in use."""


class CleanUp:
    """Replaces vLLM's own `cleanup_dist_env_and_memory`.

    Args:
        keep_distributed: torch.distributed was initialized before the first engine, and is not an engine's to end.
    """

    def __init__(self, *, keep_distributed: bool) -> None:
        self.keep_distributed = keep_distributed

    def __call__(self, shutdown_ray: bool = False) -> None:
        state: Any = importlib.import_module("vllm.distributed.parallel_state")
        if not OPEN_ENGINES:
            state.destroy_model_parallel()
            if not self.keep_distributed:
                state.destroy_distributed_environment()
        gc.unfreeze()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def prepare_process() -> None:
    """Call before an engine starts: collects engines that nobody holds any more, and replaces vLLM's clean-up."""
    core: Any = importlib.import_module("vllm.v1.engine.core")
    if not isinstance(core.cleanup_dist_env_and_memory, CleanUp):
        core.cleanup_dist_env_and_memory = CleanUp(keep_distributed=torch.distributed.is_initialized())
    # An engine hides all objects, itself too, from the garbage collector (`gc.freeze`).
    gc.unfreeze()
    gc.collect()

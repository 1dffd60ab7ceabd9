"""The clean-up after an engine in the training process, which keeps what training and other engines use.

vLLM assumes that it owns the process. An engine that is shut down, or garbage-collected, destroys the process groups of all other
engines in the process, and that of training. The clean-up here keeps them as long as they may be needed.
"""

from __future__ import annotations

import gc
import importlib
from typing import Any
from weakref import WeakSet

import torch

OPEN_ENGINES: WeakSet[Any] = WeakSet()
"""The engines in use in this process."""


class CleanUp:
    """Replaces vLLM's own `cleanup_dist_env_and_memory`.

    Args:
        keep_distributed: torch.distributed was initialized before the first engine, so no engine may destroy it.
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
    """Collect unreferenced engines and replace vLLM's clean-up. Call this before an engine starts."""
    core: Any = importlib.import_module("vllm.v1.engine.core")
    if not isinstance(core.cleanup_dist_env_and_memory, CleanUp):
        core.cleanup_dist_env_and_memory = CleanUp(keep_distributed=torch.distributed.is_initialized())
    # An engine excludes all objects, itself included, from garbage collection (`gc.freeze`).
    gc.unfreeze()
    gc.collect()

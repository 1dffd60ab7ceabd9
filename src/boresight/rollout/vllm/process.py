"""What engines share with all else in one process: torch.distributed, and vLLM's groups over it.

vLLM takes the process for its own. An engine of its that is shut down, or merely collected as garbage, destroys the groups of every other
engine in the process, and the process group that training runs over. Here they stay for as long as someone may need them.
"""

from __future__ import annotations

import gc
import importlib
from typing import Any
from weakref import WeakSet

import torch

OPEN: WeakSet[Any] = WeakSet()
"""The engines of this process that are in use."""


class Groups:
    """In the place of vLLM's own `cleanup_dist_env_and_memory`.

    Args:
        found: torch.distributed was there before the first engine, and is not an engine's to end.
    """

    def __init__(self, found: bool) -> None:
        self.found = found

    def __call__(self, shutdown_ray: bool = False) -> None:
        state: Any = importlib.import_module("vllm.distributed.parallel_state")
        if not OPEN:
            state.destroy_model_parallel()
            if not self.found:
                state.destroy_distributed_environment()
        gc.unfreeze()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def make_room() -> None:
    """Before an engine starts: let go of forgotten ones, and see that no engine's end is another's."""
    core: Any = importlib.import_module("vllm.v1.engine.core")
    if not isinstance(core.cleanup_dist_env_and_memory, Groups):
        core.cleanup_dist_env_and_memory = Groups(torch.distributed.is_initialized())
    # An engine takes all there is, itself too, out of the collector's sight (`gc.freeze`).
    gc.unfreeze()
    gc.collect()

"""The names under which vLLM finds what boresight puts into it."""

from __future__ import annotations

ENGINE = "boresight"
"""Of the weight transfer engine, by memory or file."""
NCCL_ENGINE = "boresight_nccl"
"""Of the one by NCCL."""
LOAD_FORMAT = "boresight"
"""Of first weights that are none, since the trainer sends them all."""
EXTENSION = "boresight.rollout.vllm.worker.Extension"
"""Of the methods that its workers get."""
BAN = "boresight.rollout.vllm.worker:BanIds"
"""Of the logits processor."""
BANNED = "boresight_banned"
"""The key of a request's `extra_args` that `BAN` reads."""
STARTED_BY = "BORESIGHT_STARTED_BY"
"""The environment variable by which a server knows the process that it must not outlive."""

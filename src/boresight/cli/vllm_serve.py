"""`boresight vllm-serve`: an unmodified vLLM server for trainers."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from boresight.rollout.vllm import serve

HELP = "serve a model with vLLM, for trainers with vllm_mode=server"


def add_options(parser: argparse.ArgumentParser) -> None:
    """boresight's own options. All others are passed on to vLLM."""
    parser.epilog = (
        "All other flags are vLLM's own (--tensor-parallel-size, --gpu-memory-utilization, --max-model-len, --host, --port, …), in "
        "either spelling, with or without TRL's prefix vllm_."
    )
    parser.add_argument("--model", required=True, help="a folder or a hub id: the model that will be trained")
    parser.add_argument(
        "--min_pixels", "--min-pixels", type=int, help="smallest area of an image in pixels, as for the trainer"
    )
    parser.add_argument(
        "--max_pixels", "--max-pixels", type=int, help="largest area of an image in pixels, as for the trainer"
    )
    parser.add_argument(
        "--max_restarts",
        "--max-restarts",
        type=int,
        default=serve.MAX_RESTARTS,
        help=f"maximum restarts of a crashed server within {serve.RESTART_WINDOW_S / 60:g} minutes (default: %(default)s)",
    )
    parser.add_argument("--nccl", action="store_true", help="receive weights over NCCL (GPUs) instead of from files")


def run(options: argparse.Namespace, further: Sequence[str] = ()) -> int:
    """Serve until interrupted. A crashed server is restarted."""
    command = serve.server_command(
        options.model,
        [_vllm_flag(word) for word in further],
        nccl=options.nccl,
        min_pixels=options.min_pixels,
        max_pixels=options.max_pixels,
    )
    return serve.serve(command, max_restarts=options.max_restarts)


def _vllm_flag(word: str) -> str:
    """vLLM's spelling of a flag: ``--vllm_model_impl`` and ``--model_impl`` are ``--model-impl``."""
    if not word.startswith("--"):
        return word
    flag, equals, value = word.partition("=")
    return flag.replace("_", "-").replace("--vllm-", "--", 1) + equals + value

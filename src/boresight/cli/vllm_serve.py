"""`boresight vllm-serve`: an unmodified vLLM server for trainers."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from boresight.cli.config_file import as_words, read_yaml
from boresight.errors import ConfigError
from boresight.rollout.vllm import serve

HELP = "serve a model with vLLM, for trainers with vllm_mode=server"


def add_options(parser: argparse.ArgumentParser) -> None:
    """boresight's own options. All others are passed on to vLLM."""
    parser.epilog = (
        "All other flags are vLLM's own (--tensor-parallel-size, --gpu-memory-utilization, --max-model-len, --host, --port, …), in "
        "either spelling, with or without TRL's prefix vllm_."
    )
    parser.add_argument("--config", help="a YAML file of these options and vLLM's; the command line overrides it")
    parser.add_argument("--model", help="a folder or a hub id: the model that will be trained")
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
        help=f"maximum restarts of a crashed server within {serve.RESTART_WINDOW_S / 60:g} minutes (default: {serve.MAX_RESTARTS})",
    )
    parser.add_argument("--nccl", action="store_true", help="receive weights over NCCL (GPUs) instead of from files")


def run(options: argparse.Namespace, further: Sequence[str] = ()) -> int:
    """Serve until interrupted. A crashed server is restarted.

    Raises:
        ConfigError: no model is named, or the file of options cannot be read.
    """
    words = [*_from_file(options), *further] if options.config else further
    if options.model is None:
        raise ConfigError("vllm-serve needs --model: a folder or a hub id.")
    command = serve.server_command(
        options.model,
        [_vllm_flag(word) for word in words],
        nccl=options.nccl,
        min_pixels=options.min_pixels,
        max_pixels=options.max_pixels,
    )
    return serve.serve(
        command, max_restarts=serve.MAX_RESTARTS if options.max_restarts is None else options.max_restarts
    )


def _from_file(options: argparse.Namespace) -> list[str]:
    """Fill boresight's own options from the file where the command line has none, and return the words of vLLM's."""
    words: list[str] = []
    for name, value in read_yaml(options.config).items():
        if name not in vars(options):
            # vLLM's switches have no value: true is the flag, false its `no` form.
            flag = f"--{name.replace('_', '-')}"
            words += (
                [flag if value else flag.replace("--", "--no-", 1)]
                if isinstance(value, bool)
                else as_words(name, value)
            )
        elif getattr(options, name) is None or getattr(options, name) is False:  # 0 was typed
            setattr(options, name, value)
    return words


def _vllm_flag(word: str) -> str:
    """vLLM's spelling of a flag: ``--vllm_model_impl`` and ``--model_impl`` are ``--model-impl``."""
    if not word.startswith("--"):
        return word
    flag, equals, value = word.partition("=")
    return flag.replace("_", "-").replace("--vllm-", "--", 1) + equals + value

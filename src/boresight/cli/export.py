"""`boresight export`: a run as a model folder, merged or as it is, verified, with a model card."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "write a run's model as a folder, merged or as it is, verify it, and write its model card"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The run, and where its model goes."""
    parser.add_argument(
        "run_folder",
        metavar="RUN",
        help="a run folder (its model, else its newest whole checkpoint), or a checkpoint",
    )
    parser.add_argument("--output", required=True, metavar="FOLDER", help="a new folder")
    parser.add_argument("--merge", action="store_true", help="merge the adapter into the weights of its base model")
    parser.add_argument(
        "--base",
        metavar="MODEL",
        help="the model that training began with, if the run does not say: a folder or a hub id",
    )
    parser.add_argument(
        "--push_to_hub",
        metavar="REPO",
        help="upload the folder to this repository of the hub, as transformers' push_to_hub does",
    )
    parser.add_argument(
        "--skip_vllm",
        action="store_true",
        help="do not load the folder with vLLM, which is done where vLLM is installed",
    )
    parser.add_argument("--private", action="store_true", help="make the repository private, if it is new")


def run(options: argparse.Namespace) -> None:
    """Export, and print what was verified."""
    from transformers.utils import logging

    from boresight.errors import ConfigError
    from boresight.export.job import export, push, source_of
    from boresight.rollout.vllm.saved import vllm_is_here
    from boresight.terminal import printable

    if options.private and not options.push_to_hub:
        raise ConfigError("--private has no effect without --push_to_hub REPO: add it, or drop --private.")
    logging.disable_progress_bar()
    exported = export(
        source_of(Path(options.run_folder), options.base),
        Path(options.output),
        merge=options.merge,
        with_vllm=vllm_is_here() and not options.skip_vllm,
    )
    for line in (f"{exported.folder} is written.", *exported.lines):
        print(printable(f"boresight: {line}"))
    if options.push_to_hub:
        print(f"boresight: uploaded to {push(exported.folder, options.push_to_hub, private=options.private or None)}")

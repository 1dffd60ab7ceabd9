"""Benchmarks in this process, which they leave as they found it."""

from __future__ import annotations

import importlib
import logging as standard_logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers.utils import logging

from tests import forks

ROOT = Path(__file__).parents[2]

Main = Callable[..., Any]


@pytest.fixture
def benchmark_main(monkeypatch: pytest.MonkeyPatch) -> Iterator[Main]:
    """Runs a script of benchmarks/ by its name, with `--quick` and further arguments. Processes that it starts are forked."""
    environment = dict(os.environ)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    start = subprocess.run

    def forked(command: list[str], **options: Any) -> Any:
        if command[0] != sys.executable or options.get("stdout", subprocess.PIPE) != subprocess.PIPE:
            return start(command, **options)
        is_launched = command[1:3] == ["-m", "torch.distributed.run"]
        words = command[5:] if is_launched else command[1:]
        assert words[0].endswith(".py") and "-m" not in words
        done = forks.run(
            *words, ranks=2 if is_launched else 1, cwd=options.get("cwd", Path.cwd()), env=options.get("env")
        )
        assert not (options.get("check") and done.returncode), done.stderr
        return done

    monkeypatch.setattr(subprocess, "run", forked)

    def run(script: str, *arguments: str) -> None:
        importlib.import_module(script).main(["--quick", *arguments])

    yield run
    os.environ.clear()
    os.environ.update(environment)
    standard_logging.disable(standard_logging.NOTSET)
    logging.enable_progress_bar()
    datasets.enable_progress_bars()

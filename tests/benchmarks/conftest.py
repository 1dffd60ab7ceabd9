"""Benchmarks in this process, which they leave as they found it."""

from __future__ import annotations

import importlib
import logging as standard_logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers.utils import logging

ROOT = Path(__file__).parents[2]

Main = Callable[..., Any]


@pytest.fixture
def benchmark_main(monkeypatch: pytest.MonkeyPatch) -> Iterator[Main]:
    """Runs a script of benchmarks/ by its name, with `--quick` and further arguments."""
    environment = dict(os.environ)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))

    def run(script: str, *arguments: str) -> None:
        importlib.import_module(script).main(["--quick", *arguments])

    yield run
    os.environ.clear()
    os.environ.update(environment)
    standard_logging.disable(standard_logging.NOTSET)
    logging.enable_progress_bar()
    datasets.enable_progress_bars()

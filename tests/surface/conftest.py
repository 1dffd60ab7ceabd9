"""What the article promised, tried as a user would: its code in a file of its own, only the import changed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from boresight.demo.tiny import build_tiny


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny("qwen2_5_vl", tmp_path_factory.mktemp("surface"), vocab_size=512)


@pytest.fixture
def run_script(tmp_path: Path, model_folder: Path) -> Callable[[str], str]:
    """Runs a script in a folder of its own and returns what it printed; MODEL is the tiny model's folder."""

    def run(source: str) -> str:
        file = tmp_path / "script.py"
        file.write_text(source)
        environment = {**os.environ, "MODEL": str(model_folder), "OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [sys.executable, str(file)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run

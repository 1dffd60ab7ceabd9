"""`boresight vllm-serve` with a file of options; tests/rollout/vllm/test_serve.py starts the server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from boresight.cli import main
from boresight.rollout.vllm.serve import MAX_RESTARTS


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The command and the restarts of the server that would be started."""
    found: dict[str, Any] = {}

    def serve(command: list[str], *, max_restarts: int) -> int:
        found.update(command=" ".join(command), max_restarts=max_restarts)
        return 0

    monkeypatch.setattr("boresight.rollout.vllm.serve.serve", serve)
    return found


def test_the_command_line_overrides_the_file(served: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(
        "model: some/model\nmax_pixels: 4000\nmax_restarts: 5\ntensor_parallel_size: 2\nvllm_max_model_len: 512\n"
        "enforce_eager: true\nenable_prefix_caching: false\n"
    )
    assert main(["vllm-serve", "--config", str(file)]) == 0
    for words in (
        "--model some/model", "--tensor-parallel-size=2", "--max-model-len=512", "--enforce-eager", "--no-enable-prefix-caching",
        '"max_pixels": 4000',
    ):  # fmt: skip
        assert words in served["command"]
    assert served["max_restarts"] == 5
    typed = ["--model", "other", "--max_restarts", "0", "--max_pixels", "100", "--tensor-parallel-size", "1"]
    assert main(["vllm-serve", "--config", str(file), *typed]) == 0
    assert "--model other" in served["command"] and '"max_pixels": 100' in served["command"]
    assert served["command"].index("--tensor-parallel-size=2") < served["command"].index("--tensor-parallel-size 1")
    assert served["max_restarts"] == 0


def test_a_file_without_a_model(served: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "serve.yaml").write_text("port: 8001\n")
    assert main(["vllm-serve", "--config", str(tmp_path / "serve.yaml")]) == 2
    assert "vllm-serve needs --model" in capsys.readouterr().err
    assert main(["vllm-serve", "--config", str(tmp_path / "serve.yaml"), "--model", "m"]) == 0
    assert "--port=8001" in served["command"] and served["max_restarts"] == MAX_RESTARTS

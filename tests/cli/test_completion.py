"""Completion in a real shell."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from boresight.cli import main
from boresight.cli.completion import SHELLS
from boresight.cli.methods import METHODS


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("completion")
    found = {shell: folder / shell for shell in SHELLS}
    with pytest.MonkeyPatch.context() as patch:
        for shell, path in found.items():
            patch.setattr("builtins.print", lambda text, path=path: path.write_text(text))
            assert main(["completion", shell]) == 0
    return found


def completed(script: Path, *words: str) -> list[str]:
    """What bash offers for the last word."""
    line = f"""
        source {shlex.quote(str(script))}
        COMP_WORDS=(boresight {" ".join(map(shlex.quote, words))}) COMP_CWORD={len(words)}
        _boresight
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("gr",), ["grpo"]),
        (("grpo", "--vllm_mod"), ["--vllm_mode", "--vllm_model_impl"]),
        (("grpo", "--vllm_mode", ""), ["colocate", "server"]),
        (("grpo", "--loss_type", "dr"), ["dr_grpo"]),
        (("sft", "--no_gradient"), ["--no_gradient_checkpointing"]),
        (("sft", "--reward_f"), []),
        (("doctor", "grp"), ["grpo"]),
        (("doctor", "dpo", "--precompute_ref_l"), ["--precompute_ref_log_probs"]),
        (("doctor", "--pla"), ["--plan"]),
        (("export", "--mer"), ["--merge"]),
        (("completion", ""), []),
    ],
)
def test_bash_offers(
    scripts: dict[str, Path],
    words: tuple[str, ...],
    offered: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert completed(scripts["bash"], *words) == offered


def test_a_value_that_is_free_is_completed_as_a_file(
    scripts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "train.csv").touch()
    monkeypatch.chdir(tmp_path)
    assert completed(scripts["bash"], "grpo", "--dataset_name", "tr") == ["train.csv"]


def test_refused_options_are_not_offered(scripts: dict[str, Path]) -> None:
    offered = set(completed(scripts["bash"], "grpo", "--"))
    assert "--num_generations" in offered
    assert not offered & {f"--{name}" for name in METHODS["grpo"].unsupported}


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_read_their_script(scripts: dict[str, Path], shell: str) -> None:
    text = scripts[shell].read_text()
    assert "--vllm_mode" in text or "-l vllm_mode" in text
    if path := shutil.which(shell):
        subprocess.run([path, "-n", str(scripts[shell])], check=True)

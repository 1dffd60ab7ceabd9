from __future__ import annotations

import os
from pathlib import Path

import pytest

from boresight.files import missing_path, share_as_umask, write_whole


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path):
    path = tmp_path / "made" / "file.txt"
    assert write_whole(path, "first ✓") == path
    assert write_whole(path, b"\x00second") == path
    assert path.read_bytes() == b"\x00second"
    assert list(path.parent.iterdir()) == [path]


def test_half_of_a_surrogate_pair_is_a_question_mark(tmp_path: Path):
    assert write_whole(tmp_path / "file.txt", "a\ud83db").read_bytes() == b"a?b"


def test_a_write_that_fails_leaves_the_file_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_whole(tmp_path / "file.txt", "whole")

    def full(_: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, "half")
    assert path.read_text() == "whole"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_weights_get_the_mode_of_other_new_files(tmp_path: Path, umask: int, mode: int):
    weights, other = tmp_path / "model.safetensors", tmp_path / "secret.txt"
    for path in (weights, other):
        path.touch(mode=0o600)
    before = os.umask(umask)
    try:
        share_as_umask(tmp_path)
    finally:
        os.umask(before)
    assert weights.stat().st_mode & 0o777 == mode
    assert other.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "secret.txt"]


def test_a_path_that_leads_nowhere_names_the_folder_looked_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "grpo").mkdir(parents=True)
    assert missing_path("runs/grpo") is None
    assert missing_path("runs/grqo") == f"(looked in {tmp_path / 'runs'}). Did you mean 'grpo'?"
    assert missing_path("./nothing") == f"(looked in {tmp_path})."
    assert missing_path("a/b/c") == f"(looked in {tmp_path / 'a' / 'b'}, which does not exist)."
    assert missing_path("rows.csv", [".csv"]) == f"(looked in {tmp_path})."


def test_what_may_be_a_hub_id_is_not_called_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert missing_path("Qwen/Qwen2.5-VL-3B-Instruct") is None
    assert missing_path("gpt2") is None

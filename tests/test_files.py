from __future__ import annotations

from pathlib import Path

import pytest

from boresight.files import write_whole


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

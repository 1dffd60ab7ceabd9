"""The key of a server on this machine, which its user's trainers find and nobody else can read."""

from __future__ import annotations

from pathlib import Path

import pytest

from boresight.rollout.vllm import keys
from boresight.rollout.vllm.keys import drop_key, find_key, new_key
from boresight.rollout.vllm.protocol.messages import KEY


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(KEY, raising=False)
    folder = tmp_path / "keys"
    monkeypatch.setattr(keys, "folder", lambda: folder)
    return folder


def test_a_server_of_this_machine_has_a_key_of_its_own(own_folder: Path) -> None:
    key = new_key(8123)
    assert len(key) >= 40 and key != new_key(8124)
    for url in ("http://127.0.0.1:8123", "http://localhost:8123/v1"):
        assert find_key(url) == key
    assert find_key("http://127.0.0.1:8125") is None
    assert find_key("http://10.0.0.2:8123") is None
    assert (own_folder / "8123").stat().st_mode & 0o777 == 0o600
    assert own_folder.stat().st_mode & 0o777 == 0o700


def test_a_server_that_is_restarted_has_another() -> None:
    before = new_key(8123)
    after = new_key(8123)
    assert before != after == find_key("http://127.0.0.1:8123")
    drop_key(8123)
    drop_key(8123)  # nothing is left to forget
    assert find_key("http://127.0.0.1:8123") is None


def test_the_key_of_the_environment_is_that_of_all(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "secret")
    assert new_key(8123) == "secret" == find_key("http://10.0.0.2:8000")
    assert not own_folder.exists()

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.stand_ins import StandIns, build_models, write_datasets


@pytest.fixture(scope="session")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> StandIns:
    folder = tmp_path_factory.mktemp("stand_ins")
    return StandIns(build_models(folder / "models"), write_datasets(folder / "datasets"))


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a user who has just begun."""
    monkeypatch.chdir(tmp_path)
    return tmp_path

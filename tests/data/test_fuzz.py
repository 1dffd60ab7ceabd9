"""1,000 malformed rows and as many damaged images: each is read, or refused by name. `make fuzz` goes on for 20 minutes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from boresight.data import Encoder, read_row
from boresight.data.check import examine
from boresight.data.sources import RowDataset
from boresight.trainer.checks import RowCheck
from tests.data.fuzz import damaged_image, damaged_row, run, unnamed, whole_images

SWEEP = settings(
    max_examples=1000, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
NUMBERS = st.integers(0, 2**32)


@SWEEP
@given(number=NUMBERS)
def test_a_malformed_row_is_read_or_named(number: int) -> None:
    assert unnamed(lambda chance: read_row(damaged_row(chance), 7), str(number)) is None


@pytest.mark.filterwarnings("ignore")
def test_damaged_images_are_decoded_or_named() -> None:
    from boresight.data.images import decode, load_image

    images = [*whole_images().values()]
    assert len(images) > 20

    def attempt(chance: Random) -> None:
        decode(load_image(damaged_image(chance, images), where="row 7"), where="row 7")

    assert [found for number in range(1000) if (found := unnamed(attempt, str(number))) is not None] == []


def test_malformed_rows_are_refused_with_their_numbers_before_training(encoder: Callable[..., Encoder]) -> None:
    """The check before training, which also encodes: nothing is raised, and every reason begins with its row."""
    rows: list[Any] = [damaged_row(Random(number)) for number in range(400)]
    check = RowCheck(encoder(), partial(Encoder.demonstration, max_length=64), seconds=5)
    report = examine(RowDataset([row if isinstance(row, dict) else {} for row in rows]), check)
    assert report.num_rows == 400
    assert 100 < len(report.bad) < 400
    assert [reason for row, (reason, _) in report.bad.items() if not reason.startswith(f"row {row}")] == []


def test_what_names_no_row_is_found(tmp_path: Path) -> None:
    """The fuzzer itself: an error without its row is a finding, and one with it is none."""

    def raises(error: Exception) -> Callable[[Random], None]:
        def attempt(chance: Random) -> None:
            raise error

        return attempt

    from boresight.errors import DataError

    assert unnamed(raises(TypeError("'int' object is not iterable")), "0") is not None
    assert unnamed(raises(DataError("the row is bad")), "0") is not None
    assert unnamed(raises(DataError("row 7: bad")), "0") is None


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore")
def test_20_minutes(tmp_path: Path) -> None:
    counts, found = run(20, seed=0, log=tmp_path / "case")
    print(dict(counts))
    assert found == {}

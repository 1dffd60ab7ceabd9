"""Where records come from: objects, files, folders and the hub, all as one kind of data set of rows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import datasets
import pyarrow
import torch.utils.data
from PIL import Image

from boresight.data.check import Check, examine
from boresight.data.faithful import decoded, readable_features
from boresight.data.image_columns import IMAGE_COLUMNS
from boresight.data.images import load_image
from boresight.data.paths import undecoded, undecoded_stream
from boresight.data.schema import CONVERSATION_COLUMNS, map_images, read_row, without_images
from boresight.data.stored import Reading, stored_rows, take_split
from boresight.errors import DataError, ImageError
from boresight.types import Row

Records = datasets.Dataset | datasets.IterableDataset | Sequence[Mapping[str, Any]]
"""What holds records: a `datasets` object, or a list of mappings, which stays a list."""


def load_rows(source: Any, *, split: str | Sequence[str] | None = None, **reading: Any) -> Records:
    """The records of `source`.

    Args:
        source: a `datasets` object (map-style or iterable, or a dictionary of splits), a list of mappings, the path
            of a JSON, JSON Lines, Parquet or CSV file, a folder (saved by `save_to_disk`, of images with a
            ``metadata.csv`` or ``metadata.jsonl``, or of data files), or a hub id. Relative paths of images are
            taken from the file's folder where they exist there.
        split: which split to take where there are several, or which part of one, such as ``train[:1000]``. Of several names,
            the first that there is, where there is more than one. None takes the only one, or ``train``.
        reading: of a file, a folder or a hub id only: `name`, the hub data set's configuration; `columns`, our name of
            a column → the data set's; `image_root`, where paths of images start; `streaming`, to read rows as they come; `data_dir` and
            `data_files`, the files to read of a folder or a hub id, as `datasets.load_dataset` takes them, also with the source ``csv``,
            ``json`` or ``parquet``.

    Raises:
        DataError: nothing is there, it cannot be read, or the split or a column does not exist.
    """
    if isinstance(source, str | Path):
        return stored_rows(str(source), Reading(split, **reading))
    if ignored := [name for name in ("data_dir", "data_files") if reading.get(name) is not None]:
        raise DataError(
            f"{ignored[0]} has no effect on a {type(source).__name__}: it names files of a folder or of a hub id."
        )
    if isinstance(source, datasets.DatasetDict | datasets.IterableDatasetDict):
        return take_split(source, split, "the data set")
    if isinstance(source, datasets.Dataset | datasets.IterableDataset):
        return source
    if isinstance(source, Sequence):
        return [_encoded_once(record, index) for index, record in enumerate(source)]
    raise DataError(
        f"A {type(source).__name__} is no data set. Give a datasets object, a list of mappings, a file, a folder, "
        "or a hub id."
    )


def check_rows(records: Records, *, check: Check | None = None) -> int:
    """Read every row before training starts; of images the header alone.

    Args:
        records: what `load_rows` returned.
        check: called with every row; it raises a DataError for what else may be wrong (`Encoder.count_tokens` knows the template's
            rules).

    Returns:
        How many rows were read.

    Raises:
        DataError: some rows are bad. The message counts them, and says of the first ten what is wrong and what to do.
    """
    report = examine(rows_of(records), check)
    report.refuse()
    return report.num_rows


def rows_of(records: Any) -> RowDataset | RowStream:
    """The records as rows: by number, or as they come."""
    return RowStream(records) if isinstance(records, datasets.IterableDataset) else RowDataset(records)


class KeptRows(Sequence[Mapping[str, Any]]):
    """Some records of a data set, numbered anew, of which some are read without their images.

    Args:
        records: all records.
        kept: the numbers of those that are kept, in order.
        as_text: the numbers of those that are read without images.
    """

    def __init__(
        self,
        records: datasets.Dataset | Sequence[Mapping[str, Any]],
        kept: Sequence[int],
        as_text: Collection[int] = frozenset(),
    ) -> None:
        self.records = records
        self.kept = kept
        self.as_text = frozenset(as_text)

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return KeptRows(self.records, self.kept[index], self.as_text)
        number = self.kept[index]
        record = self.records[number]
        return without_images(record, f"row {number}") if number in self.as_text else record

    def select(self, indices: Iterable[int]) -> KeptRows:
        """Some of these records, as `datasets.Dataset.select`."""
        return KeptRows(self.records, [self.kept[index] for index in indices], self.as_text)


class RowDataset(torch.utils.data.Dataset[Row]):
    """Records as rows, read when asked for; images stay encoded.

    Columns of `datasets.Image` features that hold a row's images are read without decoding them, and nothing is
    rewritten on disk. A user's own transform (`with_transform`) is respected.
    """

    def __init__(self, records: datasets.Dataset | Sequence[Mapping[str, Any]]) -> None:
        self.records = records
        self._raw: datasets.Dataset | None = None
        self._all = RowDataset(records.records) if isinstance(records, KeptRows) else None
        if isinstance(records, datasets.Dataset) and records.format["type"] is None:
            self._features = readable_features(_encoded_features(records.features))
            self._raw = records.with_format("arrow")

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Row:
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        index %= len(self)
        return read_row(self.record(index), index)

    def record(self, index: int) -> Mapping[str, Any]:
        """The record, its images still encoded."""
        if self._all is not None and isinstance(self.records, KeptRows):
            number = self.records.kept[index]
            record = self._all.record(number)
            return without_images(record, f"row {index}") if number in self.records.as_text else record
        if self._raw is None:
            return self.records[index]  # pyright: ignore[reportReturnType]
        record = cast("pyarrow.Table", self._raw[index]).to_pylist()[0]
        return decoded(record, self._features)


class RowStream(torch.utils.data.IterableDataset[Row]):
    """The records of an iterable data set as rows, numbered as they come (in each worker of its own).

    Args:
        records: the records.
        check: called with every row; it raises a DataError for what is wrong beyond the record itself. Whoever iterates over the same
            stream with the same check gets the same rows.
        on_bad_row: what becomes of rows that cannot be used: `DataOptions.on_bad_row`.
        set_aside: called with the number of a row that is dropped or loses its images, the reason, and what is done with it.
    """

    def __init__(
        self,
        records: datasets.IterableDataset,
        *,
        check: Check | None = None,
        on_bad_row: str = "error",
        set_aside: Callable[[int, str, str], object] | None = None,
    ) -> None:
        self.records = undecoded_stream(records)
        self.check = check
        self.on_bad_row = on_bad_row
        self.set_aside = set_aside

    def __iter__(self) -> Iterator[Row]:
        for index, record in enumerate(self.records):
            row = self._read(record, index)
            if row is not None:
                yield row

    def _read(self, record: Any, index: int) -> Row | None:
        try:
            return self._checked(record, index)
        except DataError as error:
            if self.on_bad_row == "error":
                raise
            row = None
            if self.on_bad_row == "keep_text" and isinstance(error, ImageError):
                with suppress(DataError):
                    row = self._checked(without_images(record, f"row {index}"), index)
            if self.set_aside is not None:
                self.set_aside(index, str(error), "dropped" if row is None else "kept as text")
            return row

    def _checked(self, record: Any, index: int) -> Row:
        row = read_row(record, index)
        if self.check is not None and self.on_bad_row != "error":
            self.check(row)
        return row


def _encoded_features(features: datasets.Features) -> datasets.Features:
    columns = (*IMAGE_COLUMNS, *CONVERSATION_COLUMNS)
    return datasets.Features({name: undecoded(item) if name in columns else item for name, item in features.items()})


def _encoded_once(record: Any, index: int) -> Mapping[str, Any]:
    if not isinstance(record, Mapping):
        raise DataError(f"row {index}: a record is a mapping of columns, not a {type(record).__name__}.")

    def encoded(value: Any) -> Any:
        return load_image(value, where=f"row {index}") if isinstance(value, Image.Image) else value

    return map_images(record, encoded)

"""Several data sets as one, each under its own column names and with its own share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import datasets

from boresight.data.columns import as_conversations, as_text, column_names
from boresight.data.faithful import select_columns, stored, values_of, with_column
from boresight.data.schema import IMAGE_COLUMNS, TEXT_COLUMNS
from boresight.data.sources import load_rows
from boresight.data.stored import DataFiles
from boresight.errors import ConfigError, DataError, nearest

Check = Callable[[Sequence[str]], None]
"""Is called with the columns of a data set, and raises where they are not those that a method learns from."""


@dataclass(frozen=True, slots=True)
class DatasetConfig:
    """One data set, perhaps a part of a mixture. The names are TRL's, but for `image_root` and the columns'."""

    path: Any
    """What `load_rows` reads: a file, a folder, a hub id, or a `datasets` object."""
    name: str | None = None
    data_dir: str | None = None
    """A folder inside `path`; where `path` is csv, json or parquet, the folder of the files."""
    data_files: DataFiles | None = None
    """Paths or patterns of the files to read, relative to that folder; of each split, where it is a mapping."""
    split: str | None = None
    columns: Sequence[str] | None = None
    """The columns to keep."""
    fraction: float | None = None
    """Its share of the mixture; every part has one, or none has. No row is used twice, so the mixture is as large as that allows."""
    image_root: str | None = None
    image_column: str | None = None
    prompt_column: str | None = None
    completion_column: str | None = None
    chosen_column: str | None = None
    rejected_column: str | None = None
    solution_column: str | None = None

    @property
    def renames(self) -> dict[str, str]:
        """boresight's name of a column → this data set's."""
        pairs = {
            each.name.removesuffix("_column"): getattr(self, each.name)
            for each in fields(self)
            if each.name.endswith("_column")
        }
        return {ours: theirs for ours, theirs in pairs.items() if theirs is not None}


@dataclass
class DatasetMixtureConfig:
    """Data sets that are learned from as one. The names are TRL's, but for `system_prompt`.

    `TrlParser` reads it from a script's flags and file.

    Raises:
        ConfigError: a part is a mapping with an unknown option, or without a path.
    """

    datasets: list[DatasetConfig] = field(default_factory=list)
    """The parts; mappings become `DatasetConfig`."""
    streaming: bool = False
    """Read rows as they come instead of loading them first."""
    test_split_size: float | None = None
    """A share of the rows (below 1), or so many of them, set aside at random for evaluation."""
    system_prompt: str | None = None
    """What the system says before every conversation."""

    def __post_init__(self) -> None:
        self.datasets = [_part(given) if isinstance(given, Mapping) else given for given in self.datasets]


def _part(given: Mapping[str, Any]) -> DatasetConfig:
    """A part from a mapping of its options, as a file has it."""
    check_part(given)
    return DatasetConfig(**given)


def check_part(given: Mapping[str, Any]) -> None:
    """Check a part that a file configures.

    Raises:
        ConfigError: it has an unknown option, or no path.
    """
    known = [option.name for option in fields(DatasetConfig)]
    for name in given:
        if name not in known:
            raise ConfigError(
                f"datasets: a part has no option {name!r}.{nearest(name, known)} Options: {', '.join(known)}."
            )
    if "path" not in given:
        raise ConfigError("datasets: every part needs a path: a file, a folder or a hub id.")


def get_dataset(mixture: DatasetMixtureConfig, *, seed: int = 42, check: Check | None = None) -> dict[str, Any]:
    """The rows of a mixture by split: `train`, its data sets in their order, and `test` where rows are set aside.

    Args:
        seed: decides which rows are set aside.
        check: is called with the columns of each data set.

    Raises:
        DataError: nothing is there, a split or a column is not, or the data sets do not fit together.
        ConfigError: shares that cannot be meant.
    """
    if not mixture.datasets:
        raise ConfigError("A mixture needs at least one data set: datasets=[DatasetConfig(path)].")
    tables = []
    for part in mixture.datasets:
        records = read_dataset(part, streaming=mixture.streaming, system_prompt=mixture.system_prompt, check=check)
        if part.columns is not None:
            if missing := [name for name in part.columns if name not in column_names(records)]:
                raise DataError(f"{part.path} has no column {missing[0]!r}, only {', '.join(column_names(records))}.")
            records = select_columns(records, part.columns)
        tables.append(records)
    tables = _shares(tables, mixture.datasets)
    train = tables[0] if len(tables) == 1 else _joined(tables, mixture.datasets)
    return {"train": train} if mixture.test_split_size is None else _divided(train, mixture.test_split_size, seed)


def read_dataset(
    part: DatasetConfig, *, streaming: bool = False, system_prompt: str | None = None, check: Check | None = None
) -> Any:
    """The rows of one data set as a trainer takes them: conversations where columns of plain text were named.

    Raises:
        DataError: as `load_rows`, or what `check` raises.
    """
    records: Any = load_rows(
        part.path,
        split=part.split,
        name=part.name,
        data_dir=part.data_dir,
        data_files=part.data_files,
        columns=part.renames,
        image_root=part.image_root,
        streaming=streaming,
    )
    if check is not None:
        check(column_names(records))
    return readable(records, part.renames, system_prompt)


def readable(records: Any, columns: Mapping[str, str], system_prompt: str | None) -> Any:
    """The records with conversations where columns of a table were named, and after what the system says."""
    records = as_text(records, [name for name in columns if name in TEXT_COLUMNS])
    return as_conversations(records, prompt="prompt" in columns, system_prompt=system_prompt)


def _joined(tables: Sequence[Any], parts: Sequence[DatasetConfig]) -> Any:
    try:
        return datasets.concatenate_datasets(_alike(tables))
    except (TypeError, ValueError) as error:
        shown = "; ".join(
            f"{part.path}: {', '.join(column_names(table))}" for part, table in zip(parts, tables, strict=True)
        )
        raise DataError(
            f"The data sets of the mixture do not fit together ({error}). Their columns: {shown}. Keep those in common with columns: […]."
        ) from error


def _divided(records: Any, size: float, seed: int) -> dict[str, Any]:
    """The rows in two, some of them set aside."""
    if not isinstance(records, datasets.Dataset):
        raise ConfigError("test_split_size needs rows that can be counted: do not stream them, or name a test split.")
    if not 0 < size < len(records) or (size > 1 and size != int(size)):
        raise ConfigError(
            f"test_split_size={size:g} is neither a share below 1 nor a number of the {len(records)} rows."
        )
    divided = records.train_test_split(test_size=size if size < 1 else int(size), seed=seed)
    return {"train": divided["train"], "test": divided["test"]}


def _alike(tables: Sequence[Any]) -> list[Any]:
    """The tables with columns of one type however they were stored, their images still encoded."""
    names = {name: None for table in tables for name in column_names(table)}
    for name in names:
        tables = [_image_column(table, name) for table in tables] if name in IMAGE_COLUMNS else tables
        found = [table.features[name] for table in tables if table.features and name in table.features]
        if any(feature != found[0] for feature in found):
            tables = [_as_json(table, name) for table in tables]
    return list(tables)


def _image_column(records: Any, name: str) -> Any:
    feature = (records.features or {}).get(name)
    if isinstance(feature, datasets.Json):
        values = [value if isinstance(value, list) else [value] for value in values_of(records, name)]
        records = with_column(records, name, [[item for item in value if item is not None] for value in values])
        return records.cast_column(name, datasets.List(datasets.Image(decode=False)))
    if isinstance(feature, datasets.List):
        return records.cast_column(name, datasets.List(datasets.Image(decode=False)))
    if isinstance(feature, datasets.Image | datasets.Value):
        return records.cast_column(name, datasets.Image(decode=False))
    return records


def _as_json(records: Any, name: str) -> Any:
    """The records with a column stored as JSON, which holds values of every type, text as text."""
    feature = (records.features or {}).get(name)
    if (
        feature is None
        or isinstance(feature, datasets.Json | datasets.Image)
        or not isinstance(records, datasets.Dataset)
    ):
        return records
    values = [stored(value, "json") for value in values_of(records, name)]
    order, rest = records.column_names, records.remove_columns([name])
    return select_columns(rest.add_column(name, values, feature=datasets.Json()), order)  # pyright: ignore[reportCallIssue, reportArgumentType]


def _shares(tables: list[Any], parts: Sequence[DatasetConfig]) -> list[Any]:
    """Each table cut to its share; the largest mixture in which no row comes twice."""
    fractions = [part.fraction for part in parts if part.fraction is not None]
    if not fractions:
        return tables
    if len(fractions) < len(parts) or min(fractions) <= 0:
        raise ConfigError(
            f"datasets: every part has a fraction above 0, or none has; they are {[part.fraction for part in parts]}."
        )
    if not all(isinstance(table, datasets.Dataset) for table in tables):
        raise ConfigError("datasets: fractions need rows that can be counted: do not stream them.")
    shares = [fraction / sum(fractions) for fraction in fractions]
    total = min(len(table) / share for table, share in zip(tables, shares, strict=True))
    return [table.select(range(round(share * total))) for table, share in zip(tables, shares, strict=True)]

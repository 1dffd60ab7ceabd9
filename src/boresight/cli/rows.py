"""The rows that a command's flags name: one data set or a mixture, to train on and to evaluate on."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import datasets

from boresight.data.columns import as_conversations, as_text, column_names, is_text
from boresight.data.schema import IMAGE_COLUMNS
from boresight.data.sources import load_rows
from boresight.errors import ConfigError, DataError, nearest

if TYPE_CHECKING:
    from boresight.cli.command import Command


@dataclass(frozen=True, slots=True)
class Part:
    """One data set of a mixture, as `datasets:` in a file of options names it. The names are TRL's, but for the columns'."""

    path: str
    name: str | None = None
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
        """Our name of a column → this data set's."""
        pairs = {
            field.name.removesuffix("_column"): getattr(self, field.name)
            for field in fields(self)
            if field.name.endswith("_column")
        }
        return {ours: theirs for ours, theirs in pairs.items() if theirs is not None}


def load_datasets(command: Command) -> tuple[Any, Any]:
    """The rows to train on, and those to evaluate on, or None where nobody asked for an evaluation.

    Raises:
        DataError: nothing is there, a split or a column is not, or the rows have not what the method learns from.
        ConfigError: a part of a mixture has an unknown or contradictory option.
    """
    asked = command.data
    evaluates = command.training.eval_strategy != "no"
    if command.parts:
        train = mixture(command)
        if evaluates and asked.test_split_size is None:
            raise ConfigError("A mixture has no test split: add --test_split_size 0.1, or drop --eval_strategy.")
        return _divided(train, asked.test_split_size, command) if asked.test_split_size is not None else (train, None)
    source = str(asked.dataset_name)
    train = _read(command, source, asked.dataset_train_split, command.columns)
    if is_text(train, "prompt") and os.environ.get("RANK", "0") == "0":
        print(
            "boresight: the prompts are plain text and reach the model as they are, without its chat template. "
            "--prompt_column prompt makes them what a user says."
        )
    if not evaluates:
        return train, None
    if asked.test_split_size is not None:
        return _divided(train, asked.test_split_size, command)
    try:
        test = _read(command, source, asked.dataset_test_split or "test", command.columns)
    except DataError as error:
        if "has no split" not in str(error):
            raise
        raise DataError(
            f"{error} To evaluate, name one with --dataset_test_split, or add --test_split_size 0.1."
        ) from error
    return train, test


def mixture(command: Command) -> Any:
    """The data sets of a mixture as one, in their order."""
    parts = [_part(said) for said in command.parts]
    tables = []
    for part in parts:
        records = _read(command, part.path, part.split, {**command.columns, **part.renames}, part)
        if part.columns is not None:
            if missing := [name for name in part.columns if name not in column_names(records)]:
                raise DataError(f"{part.path} has no column {missing[0]!r}, only {', '.join(column_names(records))}.")
            records = records.select_columns(list(part.columns))
        tables.append(_alike(records))
    tables = _shares(tables, parts)
    try:
        return datasets.concatenate_datasets(tables)
    except ValueError as error:
        shown = "; ".join(
            f"{part.path}: {', '.join(column_names(table))}" for part, table in zip(parts, tables, strict=True)
        )
        raise DataError(
            f"The data sets of the mixture do not fit together ({error}). Their columns: {shown}. Keep those in common with columns: […]."
        ) from error


def _part(said: Mapping[str, Any]) -> Part:
    known = [field.name for field in fields(Part)]
    for name in said:
        if name not in known:
            raise ConfigError(
                f"datasets: a part has no option {name!r}.{nearest(name, known)} Options: {', '.join(known)}."
            )
    if "path" not in said:
        raise ConfigError("datasets: every part has a path: a file, a folder or a hub id.")
    return Part(**said)


def _read(
    command: Command, source: str, split: str | None, columns: Mapping[str, str], part: Part | None = None
) -> Any:
    """The rows of one data set, ready for the trainer."""
    asked = command.data
    records: Any = load_rows(
        built_in(source, split),
        split=split,
        name=asked.dataset_config if part is None else part.name,
        columns=columns,
        image_root=asked.image_root if part is None or part.image_root is None else part.image_root,
        streaming=asked.dataset_streaming,
    )
    command.check_columns(column_names(records))
    return readable(records, columns, asked.system_prompt)


def readable(records: Any, columns: Mapping[str, str], system_prompt: str | None) -> Any:
    """The records with conversations where columns of a table were named, and after what the system says."""
    records = as_text(records, [name for name in columns if name != "image"])
    return as_conversations(records, prompt="prompt" in columns, system_prompt=system_prompt)


def built_in(source: str, split: str | None) -> Any:
    """The built-in data set of that name (`demo.built_in.NAMES`) with the one split that is asked for; else the source as it is."""
    from boresight.demo.built_in import NAMES, load_built_in

    if source not in NAMES:
        return source
    which = (split or "train").partition("[")[0]
    return datasets.DatasetDict({which: load_built_in(source, split=which)})


def _divided(records: Any, size: float, command: Command) -> tuple[Any, Any]:
    """A part of the rows set aside, drawn with the run's seed."""
    if not isinstance(records, datasets.Dataset):
        raise ConfigError(
            "--test_split_size needs rows that can be counted: drop --dataset_streaming, or use --dataset_test_split."
        )
    if not 0 < size < len(records) or (size > 1 and size != int(size)):
        raise ConfigError(
            f"--test_split_size {size:g} is neither a share below 1 nor a number of the {len(records)} rows."
        )
    divided = records.train_test_split(test_size=size if size < 1 else int(size), seed=command.training.seed)
    return divided["train"], divided["test"]


def _alike(records: Any) -> Any:
    """The records with images and texts of one type however they were stored, the images still encoded."""
    for name, feature in (records.features or {}).items():
        is_image = name in IMAGE_COLUMNS
        if isinstance(feature, datasets.List) and is_image:
            records = records.cast_column(name, datasets.List(datasets.Image(decode=False)))
        elif isinstance(feature, datasets.Image | datasets.Value) and is_image:
            records = records.cast_column(name, datasets.Image(decode=False))
        elif isinstance(feature, datasets.Value) and feature.dtype == "large_string":
            records = records.cast_column(name, datasets.Value("string"))
    return records


def _shares(tables: list[Any], parts: Sequence[Part]) -> list[Any]:
    """Each table cut to its share; the largest mixture in which no row comes twice."""
    fractions = [part.fraction for part in parts]
    if all(fraction is None for fraction in fractions):
        return tables
    if any(fraction is None or fraction <= 0 for fraction in fractions):
        raise ConfigError(f"datasets: every part has a fraction above 0, or none has; they are {fractions}.")
    if not all(isinstance(table, datasets.Dataset) for table in tables):
        raise ConfigError("datasets: fractions need rows that can be counted: drop --dataset_streaming.")
    whole = sum(fractions)  # pyright: ignore[reportArgumentType, reportCallIssue]
    shares = [fraction / whole for fraction in fractions]  # pyright: ignore[reportOptionalOperand]
    total = min(len(table) / share for table, share in zip(tables, shares, strict=True))
    return [table.select(range(round(share * total))) for table, share in zip(tables, shares, strict=True)]

"""The training and evaluation rows that a command's flags name."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import datasets

from boresight.cli.command import Command
from boresight.data.columns import is_text
from boresight.data.formats import columns_given
from boresight.data.mixture import DatasetConfig, DatasetMixtureConfig, check_part, get_dataset, read_dataset
from boresight.demo.built_in import NAMES, load_built_in
from boresight.errors import ConfigError, DataError, SplitError


def load_datasets(command: Command) -> tuple[Any, Any]:
    """The training rows and the evaluation rows, the latter None without an evaluation.

    Raises:
        DataError: the data, a split or a column does not exist, or the rows lack columns that the method needs.
        ConfigError: a part of a mixture has an unknown or contradictory option.
    """
    asked = command.data
    evaluates = command.training.eval_strategy != "no"
    if command.parts and evaluates and asked.test_split_size is None:
        raise ConfigError("A mixture has no test split: add --test_split_size 0.1, or drop --eval_strategy.")
    mixture = mixture_of(command)
    check = partial(check_columns, command)
    splits = get_dataset(mixture, seed=command.training.seed, check=check)
    if not command.parts and is_text(splits["train"], "prompt") and os.environ.get("RANK", "0") == "0":
        print(
            "boresight: the prompts are plain text and are passed to the model unchanged, without its chat template. "
            "--prompt_column prompt turns them into user messages."
        )
    if not evaluates or "test" in splits:
        return splits["train"], splits.get("test")
    test = data_set(asked.dataset_name, asked.dataset_test_split or "test", command)
    try:
        rows = read_dataset(test, streaming=asked.dataset_streaming, system_prompt=asked.system_prompt, check=check)
    except SplitError as error:
        raise SplitError(
            f"{error} To evaluate, name one with --dataset_test_split, or add --test_split_size 0.1."
        ) from error
    return splits["train"], rows


def mixture_of(command: Command) -> DatasetMixtureConfig:
    """The data sets to train on."""
    asked = command.data
    parts = [part_of(given, command) for given in command.parts]
    return DatasetMixtureConfig(
        parts or [data_set(asked.dataset_name, asked.dataset_train_split, command)],
        streaming=asked.dataset_streaming,
        test_split_size=asked.test_split_size,
        system_prompt=asked.system_prompt,
    )


def data_set(source: str | None, split: str | None, command: Command) -> DatasetConfig:
    """The data set of this name, configured by the flags."""
    asked = command.data
    named: dict[str, Any] = {f"{ours}_column": theirs for ours, theirs in command.columns.items()}
    path = built_in(str(source), split)
    if not isinstance(path, str) and (asked.data_dir or asked.data_files):
        raise ConfigError(
            f"--data_dir and --data_files have no effect on the built-in data set {source}: leave them out."
        )
    return DatasetConfig(
        path,
        asked.dataset_config,
        data_dir=asked.data_dir,
        data_files=asked.data_files,
        split=split,
        image_root=asked.image_root,
        **named,
    )


def part_of(given: Mapping[str, Any], command: Command) -> DatasetConfig:
    """A part of a mixture, configured by the file of options. Flags set the columns and the image root that the file leaves out."""
    check_part(given)
    part = replace(data_set(given["path"], given.get("split"), command), name=None)
    return replace(part, **{name: value for name, value in given.items() if name != "path" and value is not None})


def built_in(source: str, split: str | None) -> Any:
    """The requested split of the built-in data set of this name (`demo.built_in.NAMES`); any other source unchanged."""
    if source not in NAMES:
        return source
    which = (split or "train").partition("[")[0]
    return datasets.DatasetDict({which: load_built_in(source, split=which)})


def check_columns(command: Command, found: Sequence[str]) -> None:
    """Check that the rows have the columns that the method needs.

    Raises:
        DataError: columns are missing; the message lists the columns found and the flags that map them.
    """
    ways = command.method.learns_from
    given = columns_given(found)
    if getattr(command.training, "dataset_text_field", "text") in found:
        given.add("text")
    if any(set(wanted) <= given for wanted in ways):
        return
    flags = " ".join(f"--{name}_column NAME" for name in ways[-1] if name not in found)
    raise DataError(
        f"{command.name} learns from {' or '.join(' + '.join(names) for names in ways)}, and the rows have the columns {', '.join(found)}. "
        f"Map them with: {flags}."
    )

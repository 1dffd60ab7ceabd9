"""What is read from transformers' source is what its class has."""

from __future__ import annotations

from dataclasses import fields
from enum import Enum
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from transformers import TrainingArguments

from boresight.options import declarations, default_of
from boresight.trainer.options import DPOOptions, GRPOOptions, SFTOptions
from boresight.trainer.training_arguments import LOG_LEVELS, training_arguments, with_training_arguments

READ = {declared.name: declared for declared in training_arguments()}
REAL = {field.name: field for field in fields(TrainingArguments)}
HINTS = get_type_hints(TrainingArguments)


def test_the_same_options_in_the_same_order() -> None:
    assert [*READ] == [*REAL]


@pytest.mark.parametrize("name", REAL)
def test_an_option_is_read_as_it_is(name: str) -> None:
    read, real = READ[name], REAL[name]
    assert read.default == default_of(real)
    assert type(read.default) is type(default_of(real))
    assert read.help == " ".join(str(real.metadata["help"]).split()).replace("%%", "%")
    parts = get_args(HINTS[name]) if get_origin(HINTS[name]) in (Union, UnionType) else (HINTS[name],)
    assert {*read.kinds} == {plain(part) for part in parts}
    enums = [part for part in parts if isinstance(part, type) and issubclass(part, Enum)]
    choices = [str(choice.value) for enum in enums for choice in enum] or [*real.metadata.get("choices", ())]
    if name in ("log_level", "log_level_replica"):  # which transformers computes, and we write out
        assert (read.choices, tuple(choices)) == ((), LOG_LEVELS)
    else:
        assert read.choices == tuple(choices)


def plain(kind: Any) -> Any:
    """The type with a word in the place of every class that is none of Python's."""
    if get_origin(kind) is list:
        return list[plain(get_args(kind)[0])]
    if get_origin(kind) is dict:
        return dict
    known = kind in (str, int, float, bool, dict, NoneType) or get_origin(kind) is Literal
    return kind if known else str


@pytest.mark.parametrize("cls", [SFTOptions, DPOOptions, GRPOOptions])
def test_an_option_declared_anew_keeps_its_place(cls: type) -> None:
    """The words and the default are ours, the heading is transformers'."""
    both = {declared.name: declared for declared in with_training_arguments(cls)}
    ours = {declared.name: declared for declared in declarations(cls)}
    assert both.keys() == ours.keys() | READ.keys()
    assert (both["learning_rate"].heading, both["learning_rate"].default) == (
        READ["learning_rate"].heading,
        ours["learning_rate"].default,
    )
    assert both["max_length" if cls is not GRPOOptions else "max_prompt_length"].heading == "trainer"
    assert both["save_steps"].help.startswith("Optimizer steps between checkpoints")
    assert both["log_level"].choices == LOG_LEVELS
    assert all(declared.help.endswith(".") for declared in both.values())

"""Copies of a reward function's arguments, so that what it changes reaches nobody else."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any


def own_copies(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with copies of all values that a function could change, equal parts copied once."""
    memo: dict[int, Any] = {}
    return {name: _own_copy(value, memo) for name, value in arguments.items()}


def _own_copy(value: Any, memo: dict[int, Any]) -> Any:
    if type(value) in _FIXED or callable(value):
        return value
    if id(value) in memo:
        return memo[id(value)]
    if type(value) is list:
        copied = memo[id(value)] = [each if type(each) in _FIXED else _own_copy(each, memo) for each in value]
        return copied
    if type(value) is dict:
        copied = memo[id(value)] = {key: _own_copy(each, memo) for key, each in value.items()}
        return copied
    try:
        return copy.deepcopy(value, memo)
    except Exception:  # a handle of a library, which cannot be copied
        return value


_FIXED = frozenset({str, bytes, int, float, bool, type(None)})

"""The checks of options that their declarations imply (`options`)."""

from __future__ import annotations

import json
import math
import types
from collections.abc import Collection, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, cast, get_args, get_origin

from boresight.errors import ConfigError, nearest
from boresight.options import Declaration, Ignored, Range, declarations

OFF = {"max_grad_norm"}
"""Numbers of transformers for which it takes an undeclared None as "off"."""


def read_json(config: object, declared: Collection[Declaration]) -> None:
    """Replace JSON strings, which the command line passes, by dictionaries.

    Raises:
        ConfigError: a value is not a JSON object.
    """
    for each in declared:
        value = getattr(config, each.name)
        if each.is_json and isinstance(value, str):
            setattr(config, each.name, _json_object(each.name, value))


def _json_object(name: str, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        raise ConfigError(f'{name}={text!r} is not a JSON object: write it like {{"key": 1}}.')
    return cast("dict[str, Any]", found)


def check_options(config: object, ranges: Mapping[str, Range] | None = None) -> None:
    """Check every value, in the order of the options.

    Args:
        config: an instance of a dataclass of options.
        ranges: ranges of options that a library declares without one.

    Raises:
        ConfigError: a value has the wrong type, is not one of the choices, is out of range, or has no effect with the other options; the
            message names the option and the fix.
    """
    for declared in declarations(type(config)):
        value = getattr(config, declared.name)
        if value is None and (declared.allows_none or not (declared.range or declared.choices)):
            _check_none(declared)
            continue
        _check_switch(declared, value)
        if declared.ignored is not None and value != declared.default:
            _check_ignored(declared, declared.ignored, value)
            _check_type(declared, value)
            continue
        _check_choice(declared, value)
        _check_number(declared, value, declared.range or (ranges or {}).get(declared.name))
        _check_type(declared, value)
        if float in declared.kinds and int not in declared.kinds and isinstance(value, int):
            setattr(config, declared.name, float(value))
        if value != declared.default:
            for need in declared.needs:
                if not need.is_met(config):
                    raise ConfigError(f"{declared.name}={value!r} has no effect: {need}, or drop it.")


def ignored_options(config: object) -> list[str]:
    """A sentence for each option that was set, was accepted, and changes nothing."""
    return [
        f"{declared.name}={value!r} changes nothing: {declared.ignored.reason}."
        for declared in declarations(type(config))
        if declared.ignored is not None and (value := getattr(config, declared.name)) != declared.default
    ]


def _check_none(declared: Declaration) -> None:
    is_number = bool(declared.kinds) and {*declared.kinds} <= {int, float}
    if is_number and not (declared.allows_none or declared.default is None or declared.name in OFF):
        raise ConfigError(f"{declared.name}=None is not a number: leave it out for its default, {declared.default}.")


def _check_ignored(declared: Declaration, ignored: Ignored, value: Any) -> None:
    if ignored.values is not None and value not in ignored.values:
        accepted = " or ".join(repr(each) for each in (declared.default, *ignored.values))
        raise ConfigError(f"{declared.name}={value!r} is not supported: {ignored.reason}. Leave it at {accepted}.")


def _check_switch(declared: Declaration, value: Any) -> None:
    if declared.is_switch and not (isinstance(value, bool) or (isinstance(value, Integral) and value in (0, 1))):
        raise ConfigError(f"{declared.name}={value!r} is neither True nor False: write one of them, without quotes.")


def _check_choice(declared: Declaration, value: Any) -> None:
    if not declared.choices:
        return
    known = declared.choices
    for each in cast("Collection[Any]", value) if isinstance(value, list | tuple) else [value]:
        if each not in known:
            hint = nearest(each, known) if isinstance(each, str) else ""
            raise ConfigError(f"{declared.name}={each!r} is not one of {', '.join(map(repr, known))}.{hint}")


_TYPES: Mapping[Any, tuple[type, str]] = {
    str: (str, "a text"),
    bool: (bool, "True or False"),
    int: (Integral, "an integer"),
    float: (Real, "a number"),
    dict: (Mapping, "a dictionary"),
    types.NoneType: (types.NoneType, "None"),
}
"""Type of an annotation → what its values are, and how a message names it."""


_PLAIN = (bool, int, float, str, bytes, list, tuple, dict, types.NoneType)


def _check_type(declared: Declaration, value: Any) -> None:
    """Refuse a value of a type that the option does not have, and a number that is not finite."""
    lists = [kind for kind in declared.kinds if get_origin(kind) is list]
    many = isinstance(value, list | tuple) and (bool(lists) or list in declared.kinds)
    values = cast("Sequence[Any]", value if many else [value])
    for each in values:
        if isinstance(each, int | float) and not _is_finite(each):
            raise ConfigError(f"{declared.name}={_shown(each)} is not a finite number.")
    if value == declared.default or declared.choices:  # choices are checked by themselves, one or several
        return
    kinds = [get_args(kind)[0] for kind in lists] if many else [kind for kind in declared.kinds if kind not in lists]
    kinds = [get_origin(kind) or kind for kind in kinds]
    if any(kind not in _TYPES for kind in kinds):
        return
    wanted = " or ".join(dict.fromkeys([*(_TYPES[kind][1] for kind in kinds), *["a list"] * bool(lists and not many)]))
    for each in values:
        # A configuration that is copied holds what the library made of a value, which is of a type of its own.
        if isinstance(each, _PLAIN) and not (declared.is_switch and each in (0, 1)) and not _is_of(each, kinds):
            raise ConfigError(f"{declared.name}={_shown(each)} is not {wanted}.")


def _is_of(value: Any, kinds: Collection[Any]) -> bool:
    """Whether a value has one of these types. A switch is no number."""
    return any(isinstance(value, _TYPES[kind][0]) and (kind is bool or not isinstance(value, bool)) for kind in kinds)


def _check_number(declared: Declaration, value: Any, allowed: Range | None) -> None:
    if allowed is None:
        return
    for each in cast("Collection[Any]", value) if isinstance(value, list | tuple) else [value]:
        if isinstance(each, bool) or not isinstance(each, Real):
            raise ConfigError(f"{declared.name}={each!r} is not a number: give one {allowed}.")
        if declared.is_whole and not isinstance(each, Integral):
            raise ConfigError(f"{declared.name}={each!r} is not an integer: give one {allowed}.")
        if not _is_finite(each) or float(each) not in allowed:
            raise ConfigError(f"{declared.name}={_shown(each)}: it must be {allowed}.")


def _is_finite(value: Any) -> bool:
    """Whether a number is finite, and within the range of floating-point numbers."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:20]}…"

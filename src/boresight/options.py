"""How options are declared: once, in a dataclass next to the code that reads them.

```python
@dataclass
class SamplingOptions:
    heading: ClassVar[str] = "rollout"

    num_generations: Annotated[int, Range(at_least=2)] = option(8, "Completions of each prompt: the group's size, G.")
    vllm_mode: Annotated[Literal["colocate", "server"], Needs("use_vllm", True)] = option("colocate", "Where vLLM runs.")
```

The annotation holds everything about an option except its default and its help: its type (`Literal` or `OneOf` for choices), the range
of its values, the other options that it needs to have an effect, and the source of its default. `check_options` turns these into
errors. Flags, `--help` and the reference pages are derived from the same declarations. This module and the modules that declare options
must not import slow libraries, because `--help` imports them.
"""

from __future__ import annotations

import functools
import inspect
import json
import math
import types
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from numbers import Integral, Real
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from boresight.errors import ConfigError, nearest


@dataclass(frozen=True, slots=True)
class Range:
    """The values that a number, or each number of a list, may have. NaN and infinities are never allowed."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        bounds = {"at least": self.at_least, "above": self.above, "at most": self.at_most, "below": self.below}
        return " and ".join(f"{name} {bound:g}" for name, bound in bounds.items() if bound is not None)


@dataclass(frozen=True, slots=True)
class Needs:
    """The value that another option must have for this one to have an effect.

    A value without effect is an error, unless it is the default.

    Args:
        option: the other option's name.
        wanted: the values that it may have: a single value, a collection, a `Range`, or anything but None (`SET`).
        way_out: the fix that the error message prints; None: "set OPTION=WANTED".
    """

    option: str
    wanted: object
    way_out: str | None = None

    @property
    def values(self) -> tuple[object, ...]:
        """The accepted values, if they can be listed."""
        wanted: Any = self.wanted
        if isinstance(wanted, Collection) and not isinstance(wanted, str):
            return tuple(cast("Collection[object]", wanted))
        return (wanted,)

    def is_met(self, config: object) -> bool:
        value = getattr(config, self.option)
        if self.wanted is SET:
            return value is not None
        if isinstance(self.wanted, Range):
            return value is not None and value in self.wanted
        return value in self.values

    @property
    def options(self) -> tuple[str, ...]:
        return (self.option,)

    @property
    def condition(self) -> str:
        """The condition as text."""
        if self.wanted is SET:
            return self.option
        if isinstance(self.wanted, Range):
            return f"{self.option} {self.wanted}"
        return f"{self.option}={' or '.join(map(repr, self.values))}"

    def __str__(self) -> str:
        return f"set {self.condition}" if self.way_out is None else self.way_out


SET: Any = object()
"""For `Needs`: anything but None."""


@dataclass(frozen=True, slots=True)
class NeedsEither:
    """Several needs, of which at least one must be met."""

    needs: tuple[Needs, ...]

    @property
    def options(self) -> tuple[str, ...]:
        return tuple(need.option for need in self.needs)

    def is_met(self, config: object) -> bool:
        return any(need.is_met(config) for need in self.needs)

    @property
    def condition(self) -> str:
        return " or ".join(need.condition for need in self.needs)

    def __str__(self) -> str:
        return f"set {self.condition}"


@dataclass(frozen=True, slots=True)
class OneOf:
    """Choices that are the keys of a table; a `Literal` would repeat them. The table must be cheap to import."""

    table: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Source:
    """The source of a default that differs from TRL's, or the paper that defines an option."""

    text: str


@dataclass(frozen=True, slots=True)
class Ignored:
    """An option of another library that changes nothing here. It is accepted with the values that mean what happens anyway.

    Args:
        reason: a clause that says why it changes nothing.
        values: the accepted values; None: all.
    """

    reason: str
    values: tuple[object, ...] | None = None


def option(
    default: Any = MISSING,
    help: str = "",  # noqa: A002 -- the name that argparse and transformers use
    *,
    factory: Callable[[], Any] | None = None,
    metavar: str | None = None,
    aliases: Collection[str] = (),
) -> Any:
    """A dataclass field with the metadata that transformers' `HfArgumentParser` reads.

    Args:
        default: the default value; or pass `factory`, which creates one for each configuration.
        help: one or two sentences on what the option does.
        metavar: the placeholder for its value in `--help`.
        aliases: additional flags for it.
    """
    metadata: dict[str, Any] = {"help": help}
    if metavar is not None:
        metadata["metavar"] = metavar
    if aliases:
        metadata["aliases"] = list(aliases)
    if factory is not None:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)


def default_of(found: Field[Any]) -> Any:
    """The default value of an option; `MISSING` if the option must be set."""
    return found.default_factory() if found.default_factory is not MISSING else found.default


@dataclass(frozen=True, slots=True)
class Declaration:
    """One option as its dataclass declares it."""

    name: str
    kind: Any
    """The annotation without its metadata."""
    default: Any
    help: str
    heading: str
    """Its section in `--help` and on reference pages: the `heading` of the first class that declares it, or the name of its room if that
    class has no heading."""
    literals: tuple[str, ...] = ()
    """The choices that its type names."""
    table: Mapping[str, Any] | None = None
    """The table whose keys are its choices instead, read anew each time: a row that is added later is one of them."""
    range: Range | None = None
    needs: tuple[Needs | NeedsEither, ...] = ()
    source: str | None = None
    ignored: Ignored | None = None
    metavar: str | None = None
    aliases: tuple[str, ...] = ()

    @property
    def choices(self) -> tuple[str, ...]:
        return self.literals if self.table is None else tuple(self.table)

    @property
    def kinds(self) -> tuple[Any, ...]:
        """The members of a union, or the single type."""
        return get_args(self.kind) if get_origin(self.kind) in (Union, types.UnionType) else (self.kind,)

    @property
    def elements(self) -> tuple[Any, ...]:
        """As `kinds`, with each list type replaced by its element type."""
        return tuple(get_args(kind)[0] if get_origin(kind) is list else kind for kind in self.kinds)

    @property
    def takes_list(self) -> bool:
        return self.elements != self.kinds

    @property
    def allows_none(self) -> bool:
        return types.NoneType in self.kinds

    @property
    def is_switch(self) -> bool:
        """Whether its type is bool, or bool and None."""
        return {*self.kinds} - {types.NoneType} == {bool}

    @property
    def is_whole(self) -> bool:
        """Whether its type is int, or int and None."""
        return {*self.kinds} - {types.NoneType} == {int}

    @property
    def is_json(self) -> bool:
        """Whether it accepts a dictionary, which is written as JSON on the command line."""
        return any(kind is dict or get_origin(kind) is dict for kind in self.kinds)


@functools.cache
def declarations(cls: type) -> tuple[Declaration, ...]:
    """Every option of a dataclass, including inherited ones, in the order of its fields."""
    hints = get_type_hints(cls, include_extras=True)
    return tuple(_declaration(cls, found, hints[found.name]) for found in fields(cls))


def _declaration(cls: type, found: Field[Any], annotation: Any) -> Declaration:
    extras = get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()
    kind = get_args(annotation)[0] if extras else annotation
    table = next((extra.table for extra in extras if isinstance(extra, OneOf)), None)
    first = next(base for base in reversed(cls.__mro__) if found.name in inspect.get_annotations(base))
    return Declaration(
        name=found.name,
        kind=kind,
        default=default_of(found),
        help=" ".join(str(found.metadata.get("help", "")).split()),
        heading=getattr(first, "heading", None) or first.__module__.split(".")[1],
        literals=tuple(_literals(kind)),
        table=table,
        range=next((extra for extra in extras if isinstance(extra, Range)), None),
        needs=tuple(extra for extra in extras if isinstance(extra, Needs | NeedsEither)),
        source=next((extra.text for extra in extras if isinstance(extra, Source)), None),
        ignored=next((extra for extra in extras if isinstance(extra, Ignored)), None),
        metavar=found.metadata.get("metavar"),
        aliases=tuple(found.metadata.get("aliases", ())),
    )


def _literals(kind: Any) -> Iterator[str]:
    if get_origin(kind) is Literal:
        yield from (value for value in get_args(kind) if isinstance(value, str))
    elif get_origin(kind) in (Union, types.UnionType, list):
        for part in get_args(kind):
            yield from _literals(part)


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
        # A library may accept an undeclared None as "off", for example for max_grad_norm.
        if value is None and (declared.allows_none or not (declared.range or declared.choices)):
            continue
        if declared.ignored is not None and value != declared.default:
            _check_ignored(declared, declared.ignored, value)
            continue
        _check_switch(declared, value)
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

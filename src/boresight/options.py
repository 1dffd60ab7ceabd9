"""How options are declared: once, in a dataclass next to the code that reads them.

```python
@dataclass
class SamplingOptions:
    heading: ClassVar[str] = "rollout"

    num_generations: Annotated[int, Range(at_least=2)] = option(8, "Completions of each prompt: the group's size, G.")
    vllm_mode: Annotated[Literal["colocate", "server"], Needs("use_vllm", True)] = option("colocate", "Where vLLM runs.")
```

The annotation holds everything about an option except its default and its help: its type (`Literal` or `OneOf` for choices), the range
of its values, the other options that it needs to have an effect, and the source of its default. `option_checks` turns these into
errors. Flags, `--help` and the reference pages are derived from the same declarations. This module and the modules that declare options
must not import slow libraries, because `--help` imports them.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin, get_type_hints


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

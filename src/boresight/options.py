"""How options are declared: once, in a dataclass beside the code that reads them.

```python
@dataclass
class SamplingOptions:
    heading: ClassVar[str] = "rollout"

    num_generations: Annotated[int, Range(at_least=2)] = option(8, "Completions of each prompt: the group's size, G.")
    vllm_mode: Annotated[Literal["colocate", "server"], Needs("use_vllm", True)] = option("colocate", "Where vLLM runs.")
```

The annotation holds what there is to know of an option beside its default and its help: its type (`Literal` or `OneOf` for choices),
the range of its values, what it needs of other options to have an effect, and the source of its default. `check_options` turns that
into errors; flags, `--help` and the reference pages are derived from the same declarations. This module imports nothing heavy, and
neither may a module that declares options: `--help` reads them.
"""

from __future__ import annotations

import inspect
import math
import types
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from boresight.errors import ConfigError, nearest


@dataclass(frozen=True, slots=True)
class Range:
    """The values that a number, or each number of a list, may have. NaN and infinities are never among them."""

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
    """What another option must be for this one to have an effect.

    A value that is neither the default nor has an effect is an error; the default never is one.

    Args:
        option: the other option's name.
        wanted: the values that it may have: one of them, a collection, a `Range`, or anything but None (`SET`).
        way_out: what the error says to do; None: "set OPTION to WANTED".
    """

    option: str
    wanted: Any
    way_out: str | None = None

    def is_met(self, config: object) -> bool:
        value = getattr(config, self.option)
        if self.wanted is SET:
            return value is not None
        if isinstance(self.wanted, Range):
            return value is not None and value in self.wanted
        if isinstance(self.wanted, Collection) and not isinstance(self.wanted, str):
            return value in self.wanted
        return value == self.wanted

    def __str__(self) -> str:
        if self.way_out is not None:
            return self.way_out
        if self.wanted is SET:
            return f"set {self.option}"
        if isinstance(self.wanted, Range):
            return f"set {self.option} {self.wanted}"
        if isinstance(self.wanted, Collection) and not isinstance(self.wanted, str):
            return f"set {self.option} to one of {', '.join(map(repr, self.wanted))}"
        return f"set {self.option}={self.wanted!r}"


SET = object()
"""For `Needs`: anything but None."""


@dataclass(frozen=True, slots=True)
class OneOf:
    """Choices that a table holds, where a `Literal` would name them twice. The table must be cheap to import."""

    table: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Source:
    """Where a default is from when it is not TRL's, or what in a paper an option is."""

    text: str


def option(
    default: Any = MISSING,
    help: str = "",  # noqa: A002 -- argparse's and transformers' own word
    *,
    factory: Callable[[], Any] | None = None,
    metavar: str | None = None,
    aliases: Collection[str] = (),
) -> Any:
    """A dataclass field with what transformers' `HfArgumentParser` reads of it.

    Args:
        default: or `factory`, which makes one for each configuration.
        help: one or two sentences: what the option does.
        metavar: what stands for its value in `--help`.
        aliases: further flags for it.
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
    """The value an option has when nobody sets it; `MISSING` where it must be set."""
    return found.default_factory() if found.default_factory is not MISSING else found.default


@dataclass(frozen=True, slots=True)
class Declaration:
    """One option as its dataclass declares it."""

    name: str
    kind: Any
    """The annotation without its metadata."""
    default: Any
    help: str
    owner: type
    """The class that declares it; of several, the most derived."""
    choices: tuple[str, ...] = ()
    range: Range | None = None
    needs: tuple[Needs, ...] = ()
    source: str | None = None

    @property
    def allows_none(self) -> bool:
        return types.NoneType in get_args(self.kind)


def declarations(cls: type) -> Iterator[Declaration]:
    """Every option of a dataclass, inherited ones included, in the order of its fields."""
    hints = get_type_hints(cls, include_extras=True)
    for found in fields(cls):
        annotation = hints[found.name]
        extras = get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()
        kind = get_args(annotation)[0] if extras else annotation
        table = next((extra.table for extra in extras if isinstance(extra, OneOf)), None)
        yield Declaration(
            name=found.name,
            kind=kind,
            default=default_of(found),
            help=" ".join(str(found.metadata.get("help", "")).split()),
            owner=next(base for base in cls.__mro__ if found.name in inspect.get_annotations(base)),
            choices=tuple(_literals(kind)) if table is None else tuple(table),
            range=next((extra for extra in extras if isinstance(extra, Range)), None),
            needs=tuple(extra for extra in extras if isinstance(extra, Needs)),
            source=next((extra.text for extra in extras if isinstance(extra, Source)), None),
        )


def _literals(kind: Any) -> Iterator[str]:
    if get_origin(kind) is Literal:
        yield from get_args(kind)
    elif get_origin(kind) in (Union, types.UnionType, list):
        for part in get_args(kind):
            yield from _literals(part)


def check_options(config: object) -> None:
    """Refuse values that cannot be meant, in the order of the options.

    Raises:
        ConfigError: a value is of another kind, not one of the choices, out of range, or has no effect beside the other options; the
            message names the option and the way out.
    """
    for declared in declarations(type(config)):
        value = getattr(config, declared.name)
        if value is None and declared.allows_none:
            continue
        _check_choice(declared, value)
        _check_number(declared, value)
        if value != declared.default:
            for need in declared.needs:
                if not need.is_met(config):
                    raise ConfigError(f"{declared.name}={value!r} has no effect: {need}, or drop it.")


def _check_choice(declared: Declaration, value: Any) -> None:
    if not declared.choices:
        return
    known = declared.choices
    for each in value if isinstance(value, list | tuple) else [value]:
        if each not in known:
            hint = nearest(each, known) if isinstance(each, str) else ""
            raise ConfigError(f"{declared.name}={each!r} is not one of {', '.join(map(repr, known))}.{hint}")


def _check_number(declared: Declaration, value: Any) -> None:
    if declared.range is None:
        return
    for each in cast("Collection[Any]", value) if isinstance(value, list | tuple) else [value]:
        if isinstance(each, bool) or not isinstance(each, int | float):
            raise ConfigError(f"{declared.name}={each!r} is no number: give one {declared.range}.")
        if not math.isfinite(each) or each not in declared.range:
            raise ConfigError(f"{declared.name}={each!r}: it must be {declared.range}.")

"""Options are declared once, and one check makes the errors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, Literal

import pytest

from boresight.errors import ConfigError
from boresight.option_checks import check_options, read_json
from boresight.options import SET, Needs, NeedsEither, OneOf, Range, Source, declarations, option

TABLE: Mapping[str, Any] = {"up": 1, "down": 2}


@dataclass
class Base:
    heading: ClassVar[str] = "first"

    size: Annotated[int, Range(at_least=2), Source("a paper")] = option(4, "How   large.", metavar="N")
    share: Annotated[float | None, Range(above=0, at_most=1)] = option(None, "A share.")
    use: bool = option(False, "Whether.")


@dataclass
class Options(Base):
    heading: ClassVar[str] = "second"

    size: Annotated[int, Range(at_least=2)] = option(8, "How large it is.")
    mode: Annotated[Literal["here", "there"], Needs("use", True)] = option("here", "Where.")
    ways: Annotated[list[str], OneOf(TABLE)] = option(help="Which.", factory=lambda: ["up"])
    weights: Annotated[list[float] | None, Range(at_least=0)] = option(None, "Weights.", aliases=["--w"])
    limit: Annotated[int | None, Range(at_least=1), Needs("share", SET)] = option(None, "Limit.")
    rate: Annotated[float, Needs("size", Range(above=10), "make it larger")] = option(1.0, "Rate.")
    port: Annotated[int, NeedsEither((Needs("mode", "there"), Needs("share", (0.5, 1))))] = option(1, "Port.")
    extra: dict[str, Any] | str | None = option(None, "More.")


def test_a_declaration_is_read_from_its_field() -> None:
    read = {declared.name: declared for declared in declarations(Options)}
    assert [*read] == [field.name for field in fields(Options)]
    assert (read["size"].default, read["size"].help, read["size"].heading) == (8, "How large it is.", "first")
    assert (read["mode"].choices, read["mode"].heading) == (("here", "there"), "second")
    assert (read["ways"].choices, read["ways"].default, read["ways"].takes_list) == (("up", "down"), ["up"], True)
    assert (read["weights"].elements, read["weights"].aliases) == ((float, type(None)), ("--w",))
    (size, *_) = declarations(Base)
    assert (size.help, size.source, size.metavar, size.is_whole) == ("How large.", "a paper", "N", True)
    assert [name for name, each in read.items() if each.is_switch] == ["use"]
    assert [name for name, each in read.items() if each.is_json] == ["extra"]


def test_without_a_heading_it_is_the_rooms() -> None:
    @dataclass
    class Plain:
        beta: float = 0.0

    assert [declared.heading for declared in declarations(Plain)] == [__name__.split(".")[1]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"size": 1}, "size=1: it must be at least 2."),
        ({"size": 2.5}, "size=2.5 is not an integer: give one at least 2."),
        ({"size": True}, "size=True is not a number"),
        ({"size": "8"}, "size='8' is not a number"),
        ({"size": None}, "size=None is not a number"),
        ({"share": 0}, "share=0: it must be above 0 and at most 1."),
        ({"share": math.nan}, "share=nan: it must be"),
        ({"share": -math.inf}, "share=-inf: it must be"),
        ({"use": "false"}, "use='false' is neither True nor False"),
        ({"use": True, "mode": "ther"}, "mode='ther' is not one of 'here', 'there'. Did you mean 'there'?"),
        ({"mode": None}, "mode=None is not one of"),
        ({"mode": "there"}, "mode='there' has no effect: set use=True, or drop it."),
        ({"ways": ["up", "dwn"]}, "ways='dwn' is not one of 'up', 'down'. Did you mean 'down'?"),
        ({"weights": [1, -1]}, "weights=-1: it must be at least 0."),
        ({"limit": 3}, "limit=3 has no effect: set share, or drop it."),
        ({"rate": 2.0}, "rate=2.0 has no effect: make it larger, or drop it."),
        ({"port": 2}, "port=2 has no effect: set mode='there' or share=0.5 or 1, or drop it."),
    ],
)
def test_what_cannot_be_meant_is_named_with_the_way_out(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_options(Options(**given))
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {declared.name: declared.default for declared in declarations(Options)},
        {"use": True, "mode": "there", "port": 2},
        {"share": 1.0, "port": 2, "limit": 1},
        {"size": 11, "rate": 2.0},
        {"weights": [0.0, 1]},
        {"use": 1},
    ],
)
def test_what_can_be_meant_passes(given: dict[str, Any]) -> None:
    check_options(Options(**given))


def test_ranges_of_a_librarys_options() -> None:
    @dataclass
    class Theirs:
        max_grad_norm: float = 1.0
        decay: float = 0.5

    ranges = {"max_grad_norm": Range(at_least=0)}
    for norm in (0, 2.5, None):
        check_options(Theirs(norm), ranges)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match=r"max_grad_norm=-1: it must be at least 0"):
        check_options(Theirs(-1), ranges)
    check_options(Theirs(-1))
    with pytest.raises(ConfigError, match=r"decay=None is not a number: leave it out for its default, 0\.5"):
        check_options(Theirs(decay=None), ranges)  # pyright: ignore[reportArgumentType]


def test_json_becomes_a_dictionary() -> None:
    read = Options(extra='{"a": [1]}')
    read_json(read, declarations(Options))
    assert read.extra == {"a": [1]}
    for text in ("a=1", "[1]", "{"):
        with pytest.raises(ConfigError, match=r"^extra=.* is not a JSON object: write it like"):
            read_json(Options(extra=text), declarations(Options))

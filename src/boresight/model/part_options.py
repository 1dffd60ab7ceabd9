"""The plan by part: which of vision tower, projector and language model is trained, how, and at which learning rate."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, cast, get_args

from boresight.errors import ConfigError, nearest
from boresight.families import Part
from boresight.options import Source, option

How = Literal["frozen", "lora", "full"]
"""How a part is trained: not at all, by an adapter, or all of its weights."""

PARTS: tuple[Part, ...] = get_args(Part)
HOWS: tuple[How, ...] = get_args(How)


@dataclass
class PartOptions:
    """What is trained, by part. Neither option is in TRL."""

    heading: ClassVar[str] = "model"

    # The order of the types matters: transformers' HfArgumentParser reads the second one from a command line.
    train: Annotated[Mapping[str, str] | str | None, Source("not in TRL")] = option(
        None,
        "What is trained: vision, projector, language, each frozen (also if not named), lora or full, such as language=lora. None: all "
        "weights, or peft_config's adapter.",
        metavar="PART=HOW,…",
    )
    lr: Annotated[Mapping[str, float] | str | None, Source("not in TRL")] = option(
        None,
        "Learning rates of parts, such as vision=1e-6.",
        metavar="PART=X,…",
    )


@dataclass(frozen=True, slots=True)
class PartPlan:
    """What the user asked of each part."""

    how: Mapping[Part, How] | None = None
    """How each part is trained; None: as the model and `peft_config` say."""
    lr: Mapping[Part, float] = field(default_factory=dict[Part, float])
    """Learning rates of the parts that have their own."""

    def parts(self, how: How) -> tuple[Part, ...]:
        """The parts that are trained like this."""
        return tuple(part for part in PARTS if self.how is not None and self.how[part] == how)


def part_plan(config: PartOptions) -> PartPlan:
    """The plan that the options `train` and `lr` describe.

    Raises:
        ConfigError: a part or a way of training does not exist, a learning rate is not above 0, or the plan trains nothing.
    """
    given, rates = _pairs("train", config.train), _pairs("lr", config.lr)
    lr: dict[Part, float] = {part: _rate(part, value) for part, value in rates.items()}
    if config.train is None:
        return PartPlan(None, lr)
    for part, how in given.items():
        if how not in HOWS:
            raise ConfigError(
                f"train: {part}={how!r} is not one of {', '.join(map(repr, HOWS))}.{nearest(str(how), HOWS)}"
            )
    plan: dict[Part, How] = {part: given.get(part, "frozen") for part in PARTS}
    if set(plan.values()) == {"frozen"}:
        raise ConfigError(
            f"train={config.train!r} trains nothing, because a part that is not named is frozen: add language=lora or language=full."
        )
    for part in lr:
        if plan[part] == "frozen":
            raise ConfigError(
                f"lr: {part}={lr[part]:g} has no effect, because train freezes {part}: leave one of them out."
            )
    return PartPlan(plan, lr)


def _pairs(name: str, value: Any) -> dict[Part, Any]:
    """A mapping, `a=x,b=y`, or a JSON object (which a YAML file's mapping becomes), with its parts checked."""
    if isinstance(value, str):
        value = json.loads(value) if value.lstrip().startswith("{") else _split(name, value)
    if not isinstance(value, Mapping | None):
        raise ConfigError(f"{name}={value!r}: write it like {_example(name)}.")
    pairs = cast("dict[Part, Any]", dict(value or {}))
    for part in pairs:
        if part not in PARTS:
            raise ConfigError(
                f"{name}: {part!r} is not one of {', '.join(map(repr, PARTS))}.{nearest(str(part), PARTS)}"
            )
    return pairs


def _split(name: str, text: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for word in text.split(","):
        part, equals, value = (piece.strip() for piece in word.partition("="))
        if not (part and equals and value):
            raise ConfigError(f"{name}={text!r}: write it like {_example(name)}.")
        if part in pairs:
            raise ConfigError(f"{name}={text!r} names {part} twice: leave one of them out.")
        pairs[part] = value
    return pairs


def _example(name: str) -> str:
    return "projector=full,language=lora" if name == "train" else "vision=1e-6,language=1e-4"


def _rate(part: Part, value: Any) -> float:
    try:
        rate = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        rate = math.nan
    if not (math.isfinite(rate) and rate > 0):
        raise ConfigError(
            f"lr: {part}={value!r} is not a number above 0; to freeze a part, write {part}=frozen in train."
        )
    return rate

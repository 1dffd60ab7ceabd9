"""The same command once more, through `accelerate launch`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from boresight.cli.options import LAUNCH
from boresight.errors import ConfigError, nearest

STARTED = "BORESIGHT_LAUNCHED"
"""Set in the processes that accelerate started."""


def shipped() -> dict[str, Path]:
    """The configurations that come with boresight."""
    return {
        Path(str(file)).stem: Path(str(file))
        for file in files("boresight.cli").joinpath("accelerate").iterdir()
        if file.name.endswith(".yaml")
    }


def launch(values: dict[str, Any], program: Sequence[str], words: Sequence[str]) -> None:
    """Start the command through accelerate in the place of this process, unless accelerate has started this one.

    Args:
        values: the options, of which accelerate reads those of `LAUNCH`.
        program: what was typed before the options: `boresight` and a command, or `python` and a script.
        words: the command line.

    Raises:
        ConfigError: there is no configuration of that name.
    """
    if STARTED in os.environ:
        return
    os.environ[STARTED] = "1"
    os.execv(sys.executable, launch_words(values, program, words))


def launch_words(values: dict[str, Any], program: Sequence[str], words: Sequence[str]) -> list[str]:
    """What is started."""
    asked = values["accelerate_config"]
    found = Path(asked) if Path(asked).is_file() else shipped().get(asked)
    if found is None:
        raise ConfigError(
            f"--accelerate_config {asked}: neither a file nor one of {', '.join(sorted(shipped()))}.{nearest(asked, shipped())}"
        )
    started = ["-m", "boresight.cli", program[1]] if program[0] == "boresight" else [program[1]]
    told = [f"--{name}={values[name]}" for name in LAUNCH if values[name] is not None]
    return [sys.executable, "-m", "accelerate.commands.launch", f"--config_file={found}", *told, *started, *words]

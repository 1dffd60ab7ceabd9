"""Restarting a command through `accelerate launch`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from accelerate.commands.launch import (
    _validate_launch_command,  # merges the file and flags of `launch`; there is no public function for it
    launch_command,
    launch_command_parser,
)
from accelerate.utils import prepare_simple_launcher_cmd_env
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from boresight.cli.options import StartFlags
from boresight.errors import ConfigError, nearest

LAUNCH = ("num_processes", "num_machines", "machine_rank", "main_process_ip", "main_process_port")
"""The flags that accelerate reads."""

STARTED = "BORESIGHT_LAUNCHED"
"""Set in the processes that accelerate started."""


def shipped() -> dict[str, Path]:
    """The configurations that come with boresight."""
    return {
        Path(str(file)).stem: Path(str(file))
        for file in files("boresight.cli").joinpath("accelerate").iterdir()
        if file.name.endswith(".yaml")
    }


def launch(start: StartFlags, program: Sequence[str], words: Sequence[str]) -> None:
    """Start the command through accelerate and exit with its exit code, unless accelerate has started this process.

    Args:
        start: how to start; accelerate reads the flags in `LAUNCH`.
        program: the words before the options: `boresight` and a command, or `python` and a script.
        words: the command line.

    Raises:
        ConfigError: there is no configuration of that name.
    """
    if STARTED in os.environ:
        return
    words = launch_words(start, program, words)
    os.environ[STARTED] = "1"
    options = launch_command_parser().parse_args(words)
    checked = _validate_launch_command(launch_command_parser().parse_args(words))[0]
    if not (checked.multi_gpu or checked.use_fsdp or checked.use_deepspeed or checked.use_megatron_lm or checked.tpu):
        # A single process replaces this one, so that it receives signals and its exit code is returned.
        command, environment = prepare_simple_launcher_cmd_env(checked)
        os.execvpe(command[0], command, environment)
    try:
        launch_command(options)
    except SignalException as error:  # the workers received the signal too, and have saved a checkpoint
        sys.exit(128 + int(error.sigval))
    except ChildFailedError as error:
        sys.exit(error.get_first_failure()[1].exitcode)
    sys.exit(0)


def launch_words(start: StartFlags, program: Sequence[str], words: Sequence[str]) -> list[str]:
    """The arguments of `accelerate launch`."""
    asked = str(start.accelerate_config)
    found = Path(asked) if Path(asked).is_file() else shipped().get(asked)
    if found is None:
        raise ConfigError(
            f"--accelerate_config {asked}: neither a file nor one of {', '.join(sorted(shipped()))}.{nearest(asked, shipped())}"
        )
    started = ["-m", "boresight.cli", program[1]] if program[0] == "boresight" else [program[1]]
    arguments = [f"--{name}={value}" for name in LAUNCH if (value := getattr(start, name)) is not None]
    return [f"--config_file={found}", *arguments, *started, *words]

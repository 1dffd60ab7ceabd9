"""The process that has lmms-eval: `python -m boresight.evaluate.inside.child JOB`.

It writes lines of JSON to its standard output: {"pass", "done", "total"} while it asks, {"pass", "truncated"} after a pass, and
{"error"} where it ends early. What lmms-eval and other libraries print goes to the standard error.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from boresight.errors import BoresightError, ConfigError, cause_of

Say = Callable[..., None]


def main(path: str) -> int:
    """Run the passes of a job. Returns the exit code."""
    # Libraries print to descriptor 1: from here on, that is the standard error.
    own = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(**what: Any) -> None:
        own.write(json.dumps(what) + "\n")
        own.flush()

    try:
        run(json.loads(Path(path).read_text(encoding="utf-8")), say)
    except BoresightError as error:
        say(error=str(error))
        return 2
    except BaseException as error:
        traceback.print_exc()
        say(error=_explained(error))
        return 1
    return 0


def run(job: Mapping[str, Any], say: Say) -> None:
    """Ask each pass's model all tasks.

    Raises:
        ConfigError: lmms-eval is missing, or this environment has another boresight.
    """
    if (here := version("boresight")) != job["version"]:
        raise ConfigError(
            f"{sys.executable} has boresight {here}, and this is {job['version']}: install the same one there."
        )
    try:
        from lmms_eval.__main__ import cli_evaluate_single, parse_eval_args

        from boresight.evaluate.inside.model import Boresight
    except ImportError as error:
        from boresight.evaluate.job import INSTALL

        raise ConfigError(f"{sys.executable} cannot import lmms-eval ({error}). {INSTALL}") from error

    for number, own in enumerate(job["passes"]):
        Boresight.tell = lambda done, total, number=number: say(**{"pass": number, "done": done, "total": total})
        with tempfile.TemporaryDirectory() as scratch:
            settings = Path(scratch, "settings.json")
            settings.write_text(json.dumps(own["settings"]))
            sys.argv = ["lmms-eval", *_arguments(job, own, settings)]
            cli_evaluate_single(parse_eval_args()[1])
        say(**{"pass": number, "truncated": dict(Boresight.truncated)})


def _arguments(job: Mapping[str, Any], own: Mapping[str, Any], settings: Path) -> list[str]:
    """Of lmms-eval's own command."""
    given = {
        "model": "boresight",
        "model_args": f"settings={settings}",
        "tasks": ",".join(job["tasks"]),
        "output_path": own["folder"],
        "limit": job["limit"],
        "include_path": job["include_path"],
    }
    words = [word for name, value in given.items() if value is not None for word in (f"--{name}", str(value))]
    return [*words, "--log_samples"]


def _explained(error: BaseException) -> str:
    """An error of lmms-eval in a line."""
    while (attempt := getattr(error, "last_attempt", None)) is not None:  # what was tried several times hides its error
        error = attempt.exception()
    if isinstance(error, BoresightError):
        return str(error)
    if isinstance(error, ImportError) and (error.name or "").startswith("filelock"):
        from boresight.evaluate.job import INSTALL

        return f"lmms-eval needs an older filelock ({error}). {INSTALL}"
    if isinstance(error, AssertionError) and "generation only" in str(error):
        from boresight.evaluate.inside.model import ONLY_GENERATES

        return f"a task is not about generated answers ({error}). {ONLY_GENERATES}"
    return f"lmms-eval failed: {cause_of(error)}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

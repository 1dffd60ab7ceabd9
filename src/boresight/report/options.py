"""The options of the report room."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from boresight.options import Needs, Range, option


@dataclass
class ReportOptions:
    """What a run logs beside its metrics."""

    heading: ClassVar[str] = "report"

    log_completions: bool = option(
        False,
        "Print completions with rewards and advantages at every log, and pass them with their images to the trackers that report_to "
        "names.",
    )
    num_completions_to_print: Annotated[int | None, Range(at_least=0), Needs("log_completions", True)] = option(
        None, "Most completions to print and to pass to trackers at a log, chosen at random. None: all of the step's."
    )
    verdict_steps: Annotated[int, Range(at_least=0)] = option(
        50,
        "Every so many optimizer steps, say in words why the run learns or does not, from the log lines since the last time, and which "
        "option to turn; also in RUN/verdicts.jsonl. 0: never.",
    )

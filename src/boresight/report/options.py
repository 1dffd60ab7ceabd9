"""The options of the report room."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from boresight.options import Needs, Range, option


@dataclass
class ReportOptions:
    """What a run logs in addition to its metrics."""

    heading: ClassVar[str] = "report"

    log_completions: bool = option(
        False,
        "Print completions with rewards and advantages at every log, and send them with their images to the trackers in report_to.",
    )
    num_completions_to_print: Annotated[int | None, Range(at_least=1), Needs("log_completions", True)] = option(
        None, "Maximum completions to print and to send to trackers at a log, chosen at random. None: all of the step."
    )
    verdict_steps: Annotated[int, Range(at_least=0)] = option(
        50,
        "Optimizer steps between verdicts, which explain from the log lines since the last verdict why the run learns or does not, and "
        "which option to change. They are also written to RUN/verdicts.jsonl. 0: no verdicts.",
    )

"""The options of the report room."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class ReportConfig:
    """What a run logs beside its metrics."""

    log_completions: bool = field(
        default=False,
        metadata={
            "help": "Print completions with rewards and advantages at every log, and hand them with their images to the trackers "
            "that report_to names."
        },
    )
    num_completions_to_print: int | None = field(
        default=None,
        metadata={"help": "Most completions to print and hand on at a log, drawn at random. None: all of the step's."},
    )
    verdict_steps: int = field(
        default=50,
        metadata={
            "help": "Every so many optimizer steps, say in words why the run learns or does not, from the log lines since the last time, "
            "and which option to turn; also in RUN/verdicts.jsonl. 0: never."
        },
    )

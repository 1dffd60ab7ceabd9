"""Which metrics share a chart, and the charts' titles and units."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart of a run page.

    Args:
        title: what a reader looks for on the page.
        pattern: a regular expression for the whole names of its metrics; its first group, where there is one, names the line.
        unit: of the vertical axis.
        about: one sentence under the title.
    """

    title: str
    pattern: str
    unit: str = ""
    about: str = ""


CHARTS: tuple[Chart, ...] = (
    Chart("Reward", r"reward", about="Mean over the scored completions."),
    Chart("Reward by function", r"rewards/(?!(?:chosen|rejected|margins|accuracies)$)([^/]+)(?:/mean)?"),
    Chart("Pairs ranked right", r"rewards/(accuracies)", "share", "Chosen above rejected."),
    Chart("Implicit rewards", r"rewards/(chosen|rejected|margins)", about="β times the log-ratio to the reference."),
    Chart("Log-probability of the answers", r"logps/(chosen|rejected)", "nats"),
    Chart("KL to the reference", r"kl", "nats per token"),
    Chart("Entropy", r"entropy", "nats per token"),
    Chart("Length", r"completions/((?:mean|min|max)_length)", "tokens"),
    Chart("Truncated", r"completions/(clipped_ratio)", "share", "Stopped by the length limit."),
    Chart(
        "Nothing to learn from", r"frac_(reward_zero_std|unscored)", "share",
        "Groups whose rewards are all equal; completions without a reward.",
    ),
    Chart("Spread of the reward", r"reward_std", about="Standard deviation over all completions."),
    Chart("Clipped", r"clip_ratio/(.+)", "share", "Of the tokens that count, or of sequences."),
    Chart(
        "Drift of the sampler", r"sampling/sampling_logp_difference/(.+)", "nats per token",
        "Between the trainer's log-probability of a token and the sampler's.",
    ),
    Chart("Importance ratio of the sampler", r"sampling/importance_sampling_ratio/(.+)"),
    Chart("Loss", r"loss"),
    Chart("Loss by component", r"loss/(.+)(?<!_weighted)"),
    Chart("Loss by component, weighted", r"loss/(.+)_weighted"),
    Chart("Tokens predicted right", r"mean_token_accuracy", "share"),
    Chart("Gradient norm", r"grad_norm"),
    Chart("Learning rate", r"learning_rate"),
    Chart("Failed rewards", r"rewards/([^/]+)/failed", "share", "They raised or missed their deadline: unscored, not 0."),
)  # fmt: skip
"""In the order of the page. An evaluation's metric, `eval_<name>`, shares the chart of the training's."""

HIDDEN = re.compile(
    r"step|epoch|time/.+|work/.+|total_flos|(train|eval)_(runtime|loss|samples_per_second|steps_per_second)"
)
"""Metrics without a curve: the page shows them as time and work, or they are transformers' summaries at the end."""


ALWAYS_SHOWN = ("Reward", "Reward by function", "Loss")
"""Charts that are not folded away where they hardly change, since that is what a reader must see."""

FLAT = 1e-3
"""A line whose values differ by less than this share of their size hardly changes."""

MIN_POINTS = 3
"""Shorter lines are never called flat."""


def charts(
    names: Iterable[str], lines_of: Mapping[str, Mapping[str, Sequence[float]]] | None = None
) -> list[dict[str, Any]]:
    """The charts of a run that logged these metrics, each with its lines; at the end one for each metric that is in no chart.

    Args:
        names: the metrics, in the order in which they were first logged.
        lines_of: name → its `values`. With it, a chart whose lines all hardly change is marked `flat`, and the page folds it away.
    """
    left = [name for name in names if not HIDDEN.fullmatch(name) or name == "eval_loss"]
    found = []
    for chart in CHARTS:
        lines = [line for name in left if (line := _line(chart, name))]
        if lines:
            taken = {line["name"] for line in lines}
            left = [name for name in left if name not in taken]
            found.append(
                {"title": chart.title, "unit": chart.unit, "about": chart.about, "lines": lines, "more": False}
            )
    for name in left:
        lines = [{"name": name, "label": name, "eval": False}]
        found.append({"title": name, "unit": "", "about": "", "lines": lines, "more": True})
    for chart in found:
        chart["flat"] = not (chart["more"] or chart["title"] in ALWAYS_SHOWN) and all(
            lines_of is not None and is_flat(lines_of[line["name"]]["values"]) for line in chart["lines"]
        )
    return found


def is_flat(values: Sequence[float]) -> bool:
    """Whether a line hardly changes: its values differ by at most `FLAT` of their size."""
    return len(values) >= MIN_POINTS and max(values) - min(values) <= FLAT * max(map(abs, values))


def _line(chart: Chart, name: str) -> dict[str, Any] | None:
    match = re.fullmatch(chart.pattern, name.removeprefix("eval_"))
    if match is None:
        return None
    label = match[1] if match.re.groups else match[0]
    return {"name": name, "label": label, "eval": name.startswith("eval_")}

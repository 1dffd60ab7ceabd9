"""The rules that judge a run: from metrics to verdicts, which say why it learns or does not and which option to change."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from boresight.report.trends import TRENDS, Course, progress

Metrics = Mapping[str, float]

FIRST_VERDICT = 20
"""The step of the first verdict, where `verdict_steps` would let it wait longer."""

EQUAL_REWARDS = 0.75
"""Share of groups with equal rewards above which most of the sampling is wasted."""
TRUNCATED = 0.25
"""Share of completions stopped by the length limit; most of them have no answer yet."""
LOW_FORMAT = 0.5
"""Mean of a format reward below which most completions do not have the format."""
UNPARSED = 0.25
"""Share of completions in which an answer reward finds no answer."""
FAILED = 0.05
"""Share of completions on which a reward function fails."""
UNSCORED = 0.25
"""Share of completions without any reward."""
CLIPPED = 0.5
"""Share of the loss without a gradient. A healthy GSPO run clips some 15 % of its tokens (its figure 2)."""
SWAP_NATS = 0.01
"""Change of a token's log-probability under another image, in nats, below which the image has no influence."""
UNMOVED = 0.5
"""Share of the weights with a gradient that an optimizer step leaves unchanged, bit for bit."""
DRIFT_NATS = 0.05
"""Distance of the sampler's log-probabilities from the trainer's, in nats per token, above what rounding explains."""
REPEATED = 0.95
"""Share of completions that repeat another of their group, from which sampling has no choice."""
NEVER_RIGHT = 0.005
"""Mean of an answer reward at which next to no completion is right."""
ONE_ANSWER = 0.4
"""How far the share of the commonest answer lies above that of the commonest right answer, when answers have collapsed."""
UPDATE_SIZE = 1e-6
"""Size of an update relative to the weights, below which a thousand steps change them by less than a thousandth."""
ENTROPY_NATS = 0.01
"""Entropy per token at which all completions of a prompt are nearly the same."""


CALLS_FAIL = 0.5
"""Share of calls that are answered with an error."""

CALL_FAULTS = {
    "raised": "the tool raised, or its arguments do not fit",
    "timed_out": "they take longer than tool_timeout",
    "unknown_tool": "there is no tool of that name",
    "unreadable": "the call cannot be parsed",
    "refused": "the result cannot be used",
}
"""The metric `tools/num_<name>` → what it counts, in words."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One reason, and what to do about it."""

    name: str
    text: str


def window_means(lines: Sequence[Metrics]) -> dict[str, float]:
    """The mean of every metric over the log lines that have it."""
    names = dict.fromkeys(name for line in lines for name in line)
    found = {}
    for name in names:
        values = [line[name] for line in lines if isinstance(line.get(name), int | float)]
        if values:
            found[name] = math.fsum(values) / len(values)
    return found


def verdicts(
    metrics: Metrics,
    earlier: Sequence[Metrics] = (),
    held_out: Sequence[Metrics] = (),
    next_evaluation: int | None = None,
) -> list[Verdict]:
    """What prevents learning, the most fundamental reason first; where nothing does, the progress.

    Args:
        metrics: means over the steps that are judged, by their names in the log. A rule whose metrics are missing is skipped.
        earlier: the same of the windows before, oldest first.
        held_out: every evaluation so far, oldest first, by names without their prefix.
        next_evaluation: the step of the first evaluation, where it is still to come.

    Returns:
        At least one. "fine" needs two evaluations; without them, "not_held_out" reports what is seen on training prompts alone.
    """
    course = Course(metrics, earlier, held_out, next_evaluation)
    found = [Verdict(name, text) for name, rule in RULES.items() for text in rule(metrics)]
    found += [Verdict(name, text) for name, rule in TRENDS.items() for text in rule(course)]
    return found or [Verdict(*progress(course))]


def _steps_skipped(metrics: Metrics) -> Iterator[str]:
    if metrics.get("update/num_skipped_steps", 0) > 0:
        yield (
            "The loss or a gradient was NaN or infinite in some steps, which were skipped; the log names their rows. Lower learning_rate, "
            "set max_grad_norm, look at these rows, or compute in float32 (bf16=False, fp16=False)."
        )


def _no_gradient(metrics: Metrics) -> Iterator[str]:
    if metrics.get("grad_norm") == 0:
        yield (
            "The gradient is exactly 0: nothing is learned. Every group's rewards are equal, or every completion is left out of the "
            "loss (mask_truncated_completions), or no weight is trained."
        )


def _rewards_failed(metrics: Metrics) -> Iterator[str]:
    for name, share in _by_reward(metrics, "failed"):
        if share >= FAILED:
            yield (
                f"{name} failed on {_percent(share)} of completions, which stay unscored. Its warnings say why: fix it, raise "
                "reward_timeout, or set reward_workers so that it fails on one completion at a time."
            )


def _unscored(metrics: Metrics) -> Iterator[str]:
    failed = max((share for _, share in _by_reward(metrics, "failed")), default=0.0)
    share = metrics.get("frac_unscored", 0.0)
    if share - failed >= UNSCORED and not any(True for _ in _not_applied(metrics)):
        yield (
            f"{_percent(share)} of completions have no reward (None or NaN) and teach nothing. Add a reward that applies to them, "
            "or leave out rows whose solution the rewards cannot read."
        )


def _not_applied(metrics: Metrics) -> Iterator[str]:
    for name, share in _by_reward(metrics, "not_applied"):
        if share == 1:
            yield (
                f"{name} returned None (or NaN) for every completion, so it counts for nothing. Check "
                "its return statement and the column that it reads."
            )


def _reward_constant(metrics: Metrics) -> Iterator[str]:
    spreads = _by_reward(metrics, "std")
    if spreads and all(spread == 0 for _, spread in spreads) and metrics.get("frac_reward_zero_std", 0.0) == 1:
        values = ", ".join(f"{name} {_number(value)}" for name, value in _by_reward(metrics, "mean"))
        yield (
            f"The reward is constant: every completion of a rollout earns the same ({values}), so nothing is learned. "
            "Score some completions by hand with the function: it must tell good ones from bad ones."
        )


def _completions_equal(metrics: Metrics) -> Iterator[str]:
    share = metrics.get("completions/frac_repeated", 0.0)
    if share >= REPEATED and metrics.get("frac_reward_zero_std", 0.0) >= EQUAL_REWARDS:
        yield (
            f"{_percent(share)} of completions repeat another of their prompt word for word: there is nothing to compare. Set temperature "
            "to 1 (0 samples greedily), top_k to 0 and top_p to 1; where they are set so, the policy has collapsed: start from an "
            "earlier checkpoint with a lower learning_rate."
        )


def _rewards_equal(metrics: Metrics) -> Iterator[str]:
    share = metrics.get("frac_reward_zero_std", 0.0)
    if share >= EQUAL_REWARDS and not any(
        True for rule in (_reward_constant, _completions_equal) for _ in rule(metrics)
    ):
        yield (
            f"In {_percent(share)} of groups all completions earn the same (mean reward {_number(metrics.get('reward', math.nan))}), so "
            "they teach nothing. Set dynamic_sampling=True, raise num_generations or temperature, take prompts that are neither too easy "
            "nor too hard, or reward partial success."
        )


def _truncated(metrics: Metrics) -> Iterator[str]:
    # In SFT and DPO the same name is the share of demonstrations that max_length cut.
    share = metrics.get("completions/clipped_ratio", 0.0)
    if share < TRUNCATED:
        return
    if "completions/mean_length" in metrics:
        yield (
            f"{_percent(share)} of completions reach the length limit before they end (mean length "
            f"{metrics['completions/mean_length']:.0f} tokens), most of them without an answer. Raise max_completion_length, ask for "
            "shorter answers, or add get_soft_overlong_punishment; mask_truncated_completions=True leaves them out of the loss."
        )
    else:
        yield f"max_length cut {_percent(share)} of completions: raise it, or lower max_pixels."


def _format_failures(metrics: Metrics) -> Iterator[str]:
    for name, mean in _by_reward(metrics, "mean"):
        if "format" in name and mean < LOW_FORMAT:
            yield (
                f"{name} is {_number(mean)} on average: most completions do not have the format. Show it in the prompt, train it by SFT "
                "first, or raise its reward_weights."
            )


def _parse_failures(metrics: Metrics) -> Iterator[str]:
    for name, share in _by_reward(metrics, "unparsed"):
        if share >= UNPARSED:
            yield (
                f"{name} finds no answer in {_percent(share)} of completions, and gives them 0 whether they are right or wrong. Ask for "
                "the answer in the format it reads, add a format reward, or raise max_completion_length."
            )


def _never_right(metrics: Metrics) -> Iterator[str]:
    unparsed = dict(_by_reward(metrics, "unparsed"))
    for name, mean in _by_reward(metrics, "mean"):
        if mean <= NEVER_RIGHT and unparsed.get(name, 1.0) < UNPARSED:
            yield (
                f"{name} is {_number(mean)} although {_percent(1 - unparsed[name])} of completions have an answer: next to none is right. "
                "Compare some answers with the solution column (boresight report): it may be wrong or of another form; otherwise the rows "
                "are too hard for this model."
            )


def _one_answer(metrics: Metrics) -> Iterator[str]:
    given, right = (metrics.get(f"completions/frac_commonest_{what}", math.nan) for what in ("answer", "solution"))
    if given - right >= ONE_ANSWER:
        yield (
            f"The answers collapse onto few values: {_percent(given)} of completions give the same answer, and {_percent(right)} of the "
            "right answers are the same. Lower learning_rate, take more prompts per step (num_prompts_per_step), raise temperature, "
            "set beta, or start from a longer SFT."
        )


def _nothing_moves(metrics: Metrics) -> Iterator[str]:
    size = metrics.get("update/relative_size", math.inf)
    if size < UPDATE_SIZE and metrics.get("grad_norm") != 0:
        yield (
            f"The learning rate is far too low: an optimizer step changes the trained weights by {size:.1g} of their size. Raise "
            "learning_rate (1e-6 to 1e-5 for a whole model of billions of weights, 1e-4 for an adapter)."
        )


def _clipped(metrics: Metrics) -> Iterator[str]:
    share = max(metrics.get("clip_ratio/region_mean", 0.0), metrics.get("cispo_clip_ratio", 0.0))
    if share >= CLIPPED:
        yield (
            f"{_percent(share)} of the loss is clipped and has no gradient: the policy has moved far from the one that sampled the "
            "completions. Lower learning_rate, num_iterations or steps_per_generation, or widen epsilon and epsilon_high."
        )


def _image_ignored(metrics: Metrics) -> Iterator[str]:
    gap = metrics.get("image/swap_gap", math.inf)
    if gap < SWAP_NATS:
        yield (
            f"The image is ignored: with another row's image in its place the log-probabilities of completions move by {gap:.1g} nats "
            "per token. Take questions that cannot be answered without the image, raise max_pixels, train the projector or the vision "
            "tower, or train by SFT on such questions first."
        )


def _below_resolution(metrics: Metrics) -> Iterator[str]:
    share = metrics.get("update/frac_unmoved", 0.0)
    if share >= UNMOVED:
        yield (
            f"{_percent(share)} of the weights that had a gradient did not move: the update is below their dtype's resolution. Leave "
            "dtype unset, so that trained weights are float32, or raise learning_rate."
        )


def _sampler_drift(metrics: Metrics) -> Iterator[str]:
    gap = metrics.get("sampling/sampling_logp_difference/mean", 0.0)
    by_design = metrics.keys() & {"sampling/narrowed", "sampling/lagged"}
    if gap >= DRIFT_NATS and not by_design:
        yield (
            f"The sampler's log-probabilities are {_number(gap)} nats per token from the trainer's, more than rounding: the two "
            "see different prompts, weights or dtypes. Sample in the dtype that is trained in, and keep "
            "vllm_importance_sampling_correction=True."
        )


def _collapsed(metrics: Metrics) -> Iterator[str]:
    entropy = metrics.get("entropy", math.inf)
    if "reward" in metrics and entropy < ENTROPY_NATS:
        yield (
            f"The entropy is down to {entropy:.1g} nats per token, so the completions of a prompt are nearly the same. Raise temperature, "
            "epsilon_high, entropy_coef or beta."
        )


def _never_calls(metrics: Metrics) -> Iterator[str]:
    if metrics.get("tools/call_frequency", 1.0) == 0:
        yield (
            "The policy never calls a tool, so it cannot learn to. Train it first on demonstrations that call them (SFT), name them in the "
            "prompt, or check that the chat template shows them."
        )


def _calls_fail(metrics: Metrics) -> Iterator[str]:
    share = metrics.get("tools/failure_frequency", 0.0)
    if metrics.get("tools/call_frequency", 0.0) > 0 and share >= CALLS_FAIL:
        kinds = {name: metrics.get(f"tools/num_{name}", 0.0) for name in CALL_FAULTS}
        most = max(kinds, key=lambda name: kinds[name])
        yield (
            f"{_percent(share)} of the calls of tools fail, most of them because {CALL_FAULTS[most]}. The completions of the run page show "
            "what they were answered."
        )


RULES: dict[str, Callable[[Metrics], Iterator[str]]] = {
    "steps_skipped": _steps_skipped,
    "no_gradient": _no_gradient,
    "rewards_failed": _rewards_failed,
    "not_applied": _not_applied,
    "unscored": _unscored,
    "reward_constant": _reward_constant,
    "completions_equal": _completions_equal,
    "rewards_equal": _rewards_equal,
    "truncated": _truncated,
    "format_failures": _format_failures,
    "parse_failures": _parse_failures,
    "never_right": _never_right,
    "one_answer": _one_answer,
    "image_ignored": _image_ignored,
    "clipped": _clipped,
    "below_resolution": _below_resolution,
    "nothing_moves": _nothing_moves,
    "never_calls": _never_calls,
    "calls_fail": _calls_fail,
    "sampler_drift": _sampler_drift,
    "collapsed": _collapsed,
}
"""Name → the rule, which yields no text, one, or one for each reward function concerned."""


def _by_reward(metrics: Metrics, kind: str) -> list[tuple[str, float]]:
    """(name of the reward function, value) of the metrics `rewards/<name>/<kind>`."""
    return [
        (name.removeprefix("rewards/").removesuffix(f"/{kind}"), value)
        for name, value in metrics.items()
        if name.startswith("rewards/") and name.endswith(f"/{kind}")
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _number(value: float) -> str:
    return f"{value:.3g}"


def first_verdict(every: int) -> int:
    """The step of the first verdict of a run with `verdict_steps` = `every` > 0."""
    return min(every, FIRST_VERDICT)

"""The rules that judge a run: from metrics to verdicts, which say why it learns or does not and which option to change."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

Metrics = Mapping[str, float]

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
ENTROPY_NATS = 0.01
"""Entropy per token at which all completions of a prompt are nearly the same."""


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


def verdicts(metrics: Metrics, before: Metrics | None = None) -> list[Verdict]:
    """What prevents learning, the most fundamental reason first; where nothing does, the progress.

    Args:
        metrics: means over the steps that are judged, by their names in the log. A rule whose metrics are missing is skipped.
        before: means over the steps of the previous verdict.

    Returns:
        At least one.
    """
    found = [Verdict(name, text) for name, rule in RULES.items() for text in rule(metrics)]
    return found or [Verdict("fine", _progress(metrics, before or {}))]


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
    if share - failed >= UNSCORED:
        yield (
            f"{_percent(share)} of completions have no reward (None or NaN) and teach nothing. Add a reward that applies to them, "
            "or leave out rows whose solution the rewards cannot read."
        )


def _rewards_equal(metrics: Metrics) -> Iterator[str]:
    share = metrics.get("frac_reward_zero_std", 0.0)
    if share >= EQUAL_REWARDS:
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
    if gap >= DRIFT_NATS and "sampling/narrowed" not in metrics:  # then the distributions differ by design
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


RULES: dict[str, Callable[[Metrics], Iterator[str]]] = {
    "steps_skipped": _steps_skipped,
    "no_gradient": _no_gradient,
    "rewards_failed": _rewards_failed,
    "unscored": _unscored,
    "rewards_equal": _rewards_equal,
    "truncated": _truncated,
    "format_failures": _format_failures,
    "parse_failures": _parse_failures,
    "image_ignored": _image_ignored,
    "clipped": _clipped,
    "below_resolution": _below_resolution,
    "sampler_drift": _sampler_drift,
    "collapsed": _collapsed,
}
"""Name → the rule, which yields no text, one, or one for each reward function concerned."""


def _progress(metrics: Metrics, before: Metrics) -> str:
    name = "reward" if "reward" in metrics else "loss"
    now = f"{name} {_number(metrics.get(name, math.nan))}"
    came = f", {metrics[name] - before[name]:+.3g} since the last verdict" if name in before and name in metrics else ""
    share = metrics.get("frac_reward_zero_std")
    spread = "" if share is None else f"; {_percent(1 - share)} of groups have spread"
    return f"Nothing seen that stands in the way of learning: {now}{came}{spread}."


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

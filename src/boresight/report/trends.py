"""The rules that judge a run by its course: its metrics now beside those of earlier windows, and its evaluations.

Differences of rewards are measured in standard deviations of the reward over completions, since a reward has no unit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

Metrics = Mapping[str, float]

SHIFT = 0.5
"""Standard deviations by which the mean of a reward changes in earnest between two windows."""
CHOSEN_SHARE = 0.25
"""Fall of the chosen answers' rewards, as a share of the margin, from which the margin comes from lowering both."""
CHOSEN_NATS = 0.1
"""Fall of the chosen answers' rewards (beta times nats) that is noticed."""
LOSS_RISE = 0.2
"""Share by which a loss rises above its lowest window in earnest."""
UNSAID = 0.2
"""Rise of the share of right answers that no completion of a rollout gives."""
SIGMAS = 2.0
"""Standard errors of a difference of two evaluations beyond which it is no chance."""
OVERFIT = 0.02
"""Share by which the loss of an evaluation rises above its lowest in earnest."""


@dataclass(frozen=True, slots=True)
class Course:
    """What is judged: the window's means, those of the windows before it, and all evaluations so far, oldest first."""

    now: Metrics
    earlier: Sequence[Metrics] = ()
    held_out: Sequence[Metrics] = field(default_factory=list)
    """Metrics without their prefix."""
    next_evaluation: int | None = None
    """The step of the first evaluation, where it is still to come."""

    def best(self, name: str, *, lowest: bool = False) -> Metrics | None:
        """The earlier window in which a metric was highest, or lowest."""
        having = [window for window in self.earlier if name in window]
        if not having:
            return None
        return (min if lowest else max)(having, key=lambda window: window[name])


def shift(name: str, window: Metrics, now: Metrics, spread: str) -> float:
    """Standard deviations by which a reward rose from a window to now; NaN where one of them lacks it or has no spread."""
    scale = max(window.get(spread, math.nan), now.get(spread, math.nan))
    return (now.get(name, math.nan) - window.get(name, math.nan)) / scale if scale > 0 else math.nan


def reward_traded(course: Course) -> Iterator[str]:
    """One function's reward falls while another's rises."""
    names = [name[: -len("/mean")] for name in course.now if name.startswith("rewards/") and name.endswith("/mean")]
    for name in names:
        best = course.best(f"{name}/mean")
        if best is None or not shift(f"{name}/mean", best, course.now, f"{name}/std") <= -SHIFT:
            continue
        risen = [
            other
            for other in names
            if shift(f"{other}/mean", best, course.now, f"{other}/std") >= SHIFT and other != name
        ]
        if risen:
            others = ", ".join(f"{_short(other)} rose to {_number(course.now[other + '/mean'])}" for other in risen)
            yield (
                f"{_short(name)} fell from {_number(best[f'{name}/mean'])} to {_number(course.now[f'{name}/mean'])} while "
                f"{others}: one is bought with "
                "the other. Raise the reward_weights of the one that counts, lower learning_rate, or train the format by SFT first."
            )


def reward_falls(course: Course) -> Iterator[str]:
    """The sum of rewards falls."""
    best = course.best("reward")
    if best is not None and shift("reward", best, course.now, "reward_std") <= -SHIFT:
        yield (
            f"The reward fell from {_number(best['reward'])} to {_number(course.now['reward'])}: the updates are too large or too noisy. "
            "Lower learning_rate, add warmup_steps, take more prompts per step (num_prompts_per_step), or set beta."
        )


def loss_rises(course: Course) -> Iterator[str]:
    """The loss of SFT or of pairs rises."""
    best = course.best("loss", lowest=True)
    if "reward" in course.now or best is None:
        return
    low, now = best["loss"], course.now.get("loss", math.nan)
    if now - low > LOSS_RISE * max(abs(low), 0.1):
        yield (
            f"The loss rose from {_number(low)} to {_number(now)}: the updates are too large. Lower learning_rate, add warmup_steps, or "
            "set max_grad_norm."
        )


def chosen_falls(course: Course) -> Iterator[str]:
    """The margin of pairs grows because both answers become less likely."""
    chosen, margin = course.now.get("rewards/chosen", 0.0), course.now.get("rewards/margins", 0.0)
    if chosen <= -max(CHOSEN_NATS, CHOSEN_SHARE * margin):
        yield (
            f"The chosen answers become less likely: rewards/chosen is {_number(chosen)} (beta times nats below the reference) at a margin "
            f"of {_number(margin)}, so the model moves to answers that are in no pair. Add the sft term (loss_type, loss_weights, or "
            "the mpo method), raise beta, lower learning_rate, or stop earlier."
        )


def answers_vanish(course: Course) -> Iterator[str]:
    """Right answers that were given are given no longer."""
    name = "completions/frac_solutions_unsaid"
    best = course.best(name, lowest=True)
    if best is not None and course.now.get(name, 0.0) - best[name] >= UNSAID:
        yield (
            f"The answers collapse onto fewer values: no completion of a rollout gives {_percent(course.now[name])} of the right "
            f"answers, up from {_percent(best[name])}. Lower learning_rate, take more prompts per step (num_prompts_per_step), "
            "raise temperature, or set beta."
        )


def held_out_falls(course: Course) -> Iterator[str]:
    """The held-out reward falls, or the held-out loss rises, while training goes well."""
    if len(course.held_out) < 2:
        return
    now = course.held_out[-1]
    if "reward" in now:
        best = max(course.held_out[:-1], key=lambda each: each.get("reward", -math.inf))
        fall, error = (
            best.get("reward", math.nan) - now["reward"],
            math.hypot(held_out_error(best), held_out_error(now)),
        )
        if fall > SIGMAS * error and fall > 0:
            yield (
                f"The held-out reward fell from {_number(best['reward'])} to {_number(now['reward'])} (standard error of the difference "
                f"{_number(error)}), and the reward on training prompts is {_number(course.now.get('reward', math.nan))}: what is learned "
                "does not carry over. Keep the earlier checkpoint, train on more prompts, lower learning_rate, or set beta."
            )
    elif "loss" in now:
        lowest = min(each.get("loss", math.inf) for each in course.held_out[:-1])
        if now["loss"] > lowest * (1 + OVERFIT) and now["loss"] > course.now.get("loss", math.inf):
            yield (
                f"The held-out loss rose from {_number(lowest)} to {_number(now['loss'])} while the training loss is "
                f"{_number(course.now['loss'])}: the rows are learned by heart. Stop earlier, take fewer epochs or more rows, or lower "
                "learning_rate."
            )


def held_out_error(evaluation: Metrics) -> float:
    """The standard error of a held-out reward; 0 where the number of prompts is not known."""
    count = evaluation.get("samples_per_second", 0.0) * evaluation.get("runtime", 0.0)
    return evaluation.get("reward_std", 0.0) / math.sqrt(count) if count > 0 else 0.0


TRENDS: dict[str, Callable[[Course], Iterator[str]]] = {
    "held_out_falls": held_out_falls,
    "reward_falls": reward_falls,
    "reward_traded": reward_traded,
    "loss_rises": loss_rises,
    "chosen_falls": chosen_falls,
    "answers_vanish": answers_vanish,
}
"""Name → the rule, which yields no text or several."""


def progress(course: Course) -> tuple[str, str]:
    """What is said where no rule speaks: "fine" with held-out evidence, otherwise "not_held_out", and the sentence."""
    name = "reward" if "reward" in course.now else "loss"
    now, prompts = course.now.get(name, math.nan), "prompts" if name == "reward" else "rows"
    before = course.earlier[-1].get(name) if course.earlier else None
    share = course.now.get("frac_reward_zero_std")
    notes = [] if share is None else [f"{_percent(1 - share)} of groups have spread"]
    course_of = f"is {_number(now)}"
    if before is not None:
        course_of = "stays" if now == before else "rises" if now > before else "falls"
        notes.insert(0, f"{_number(now)}, {now - before:+.3g} since the last verdict")
    trained = f"{name} {course_of} on training {prompts}" + (f" ({'; '.join(notes)})" if notes else "")
    asked = [each[name] for each in course.held_out if name in each]
    if len(asked) < 2:
        what = "nothing held out was asked (eval_dataset, eval_strategy='steps')"
        if asked:
            what = f"held-out rows were asked only once ({name} {_number(asked[0])})"
        elif course.next_evaluation is not None:
            what = f"held-out rows are first asked at step {course.next_evaluation}"
        return "not_held_out", f"{trained[:1].upper()}{trained[1:]}; {what}."
    return (
        "fine",
        f"Held-out {name} {_number(asked[0])} → {_number(asked[-1])} over {len(asked)} evaluations; {trained}.",
    )


def _short(name: str) -> str:
    return name.removeprefix("rewards/")


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _number(value: float) -> str:
    return f"{value:.3g}"

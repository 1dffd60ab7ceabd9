"""Every metric that a trainer logs: its unit, what it means, and what is healthy.

`python -m boresight.report.metric_dictionary > docs/reference/metrics.md` writes the page of the documentation.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Entry:
    """The meaning of a logged name."""

    name: str
    """`<part>` matches any one word."""
    unit: str
    meaning: str
    healthy: str
    """The values of a healthy run; "—" where they depend on the task."""
    engine: bool = False
    """Whether it is logged with `use_vllm=True` alone."""

    @property
    def pattern(self) -> re.Pattern[str]:
        parts = re.split(r"<\w+>", self.name)
        return re.compile("[^/]+".join(map(re.escape, parts)))


TRAINING = [
    Entry("loss", "as the method's", "What is minimised: SFT and DPO in nats; of a policy objective the value says little, since "
          "advantages sum to zero in a group", "SFT and DPO: falls. GRPO: near 0"),
    Entry("grad_norm", "—", "Norm of the gradient before clipping (`max_grad_norm`)", "Finite, not 0, no spikes of 10 times the usual"),
    Entry("learning_rate", "—", "At this step, after warm-up and schedule", "As configured"),
    Entry("epoch", "epochs", "Passes over the data set so far", "Rises"),
    Entry("num_tokens", "tokens", "Processed since the last log. GRPO counts a prompt once for each completion, as TRL does", "Steady"),
    Entry("num_input_tokens_seen", "tokens", "Learned from since the start, prompts once; with `include_num_input_tokens_seen`", "Rises"),
    Entry("entropy", "nats per token", "Mean entropy of the policy's next-token distribution over completions",
          "GRPO: above 0.01, and not falling to it in a few steps"),
    Entry("aux_loss", "loss", "Load-balancing loss of experts over a micro-batch; times router_aux_loss_coef it is part of the loss",
          "Near the number of experts that a token uses: higher, some are used more than others"),
    Entry("mean_token_accuracy", "share", "Completion tokens that are the policy's likeliest", "SFT: rises"),
    Entry("update/num_skipped_steps", "optimizer steps", "Steps since the last log whose loss or gradient was NaN or infinite, and which "
          "changed no weight (nan_policy)", "Always 0"),
    Entry("update/frac_unmoved", "share", "Weights with a gradient that an optimizer step left at the bits they had, of a sample; at the "
          "steps on which a verdict falls", "Below 0.1; near 1, the update is below the dtype's resolution"),
    Entry("update/relative_size", "share", "Norm of an optimizer step's change of a parameter by the parameter's norm, mean over a sample "
          "of parameters; at the steps on which a verdict falls", "1e-5 to 1e-2; a verdict below 1e-6"),
]  # fmt: skip

GROUPS = [
    Entry("reward", "reward", "Weighted sum of the rewards, mean over scored completions", "Rises"),
    Entry("reward_std", "reward", "Standard deviation of that sum over all completions of a rollout", "Above 0"),
    Entry("rewards/<name>/mean", "reward", "Mean of one reward function where it applies", "Rises"),
    Entry("rewards/<name>/std", "reward", "Its standard deviation", "Above 0"),
    Entry("rewards/<name>/failed", "share", "Completions on which the function raised or ran out of time", "0; a verdict from 0.05"),
    Entry("rewards/<name>/not_applied", "share", "Completions for which the function returned None or NaN", "0, unless it is for some rows "
          "only; a verdict at 1"),
    Entry("rewards/<name>/unparsed", "share", "Completions in which a built-in answer reward found no answer; logged by those alone",
          "Falls below 0.1"),
    Entry("rewards/<name>/slowest_s", "seconds", "The slowest completion of a rollout, with `reward_workers`",
          "Well below `reward_timeout`"),
    Entry("frac_reward_zero_std", "share", "Groups of which nothing can be learned: all advantages are 0. With `dynamic_sampling`, of all "
          "groups sampled", "Below 0.5; from 0.75 a verdict speaks"),
    Entry("frac_unscored", "share", "Completions that failed or that no reward speaks of", "0"),
    Entry("completions/mean_length", "tokens", "Length of completions, the end token included", "Below `max_completion_length`"),
    Entry("completions/min_length", "tokens", "The shortest", "—"),
    Entry("completions/max_length", "tokens", "The longest", "—"),
    Entry("completions/clipped_ratio", "share", "Completions that the length limit ended: `max_completion_length`, in DPO `max_length`",
          "Below 0.1; from 0.25 a verdict speaks"),
    Entry("completions/mean_terminated_length", "tokens", "Length of those that ended by themselves; absent where none did", "—"),
    Entry("completions/min_terminated_length", "tokens", "The shortest of them", "Above 1"),
    Entry("completions/max_terminated_length", "tokens", "The longest of them", "—"),
    Entry("completions/frac_repeated", "share", "Completions that repeat another of their group, token for token", "Below 0.5; a verdict "
          "from 0.95"),
    Entry("completions/frac_commonest_answer", "share", "Completions of a rollout that give its commonest answer; rows with a `solution`",
          "Near that of the right answers"),
    Entry("completions/frac_commonest_solution", "share", "The commonest right answer's share of the right answers of a rollout", "—"),
    Entry("completions/frac_solutions_unsaid", "share", "Right answers of a rollout that none of its completions gives", "Does not rise"),
    Entry("rollout/num_rounds", "rounds", "Of sampling in a rollout, with `dynamic_sampling`", "Below `max_sampling_rounds`"),
    Entry("rollout/num_groups_sampled", "groups", "Sampled since the last log, with `dynamic_sampling`", "—"),
    Entry("rollout/num_groups_thrown_away", "groups", "Of them, those that are not learned from", "Less than are kept"),
    Entry("rollout/num_groups_without_spread", "groups", "Kept although all their rewards are equal, since the limit was reached", "0"),
    Entry("rollout/age_mean", "optimizer steps", "How far the weights that sampled the completions of a step are behind the policy",
          "0; `rollout_lag=1` adds a rollout's steps", engine=True),
    Entry("rollout/age_max", "optimizer steps", "The oldest", "As the mean", engine=True),
    Entry("image/swap_gap", "nats per token", "How far log-probabilities of completions move when images of the same shapes change "
          "places, mean of |Δ|, of a sample; at the rollouts on which a verdict is given", "Above 0.01; below, the image is ignored"),
]  # fmt: skip

TOOLS = [
    Entry("tools/call_frequency", "calls per completion", "Calls of tools, those that failed included", "Above 0; a verdict at 0"),
    Entry("tools/failure_frequency", "share", "Calls that were answered with an error, of whatever kind", "Falls; a verdict from 0.5"),
    Entry("tools/frac_without_call", "share", "Completions that called no tool", "Below 1"),
    Entry("tools/num_images", "images per completion", "Images that tools put into completions", "—"),
    Entry("tools/num_raised", "calls", "Calls whose tool raised, or whose arguments do not fit its signature", "Falls"),
    Entry("tools/num_timed_out", "calls", "Calls above `tool_timeout`, and those of the same turn after them", "0"),
    Entry("tools/num_unknown_tool", "calls", "Calls of a tool that does not exist", "Falls to 0"),
    Entry("tools/num_unreadable", "calls", "Calls that could not be parsed", "Falls to 0"),
    Entry("tools/num_refused", "calls", "Calls whose result has a broken image, too many images, or too long a text", "0"),
    Entry("tools/num_no_room", "completions", "Completions that ended because a result had no room in `max_completion_length`", "Near 0"),
    Entry("tools/num_too_many_turns", "completions", "Completions that ended at `max_tool_calling_iterations` with a call", "Near 0"),
    Entry("tools/<name>/seconds", "seconds", "Time of one call of this tool", "Far below `tool_timeout`"),
]  # fmt: skip

OBJECTIVE = [
    Entry("kl", "nats per token", "Estimate of the divergence from the reference (`kl_estimator`), where `beta` is not 0",
          "Rises slowly; 0.1 is far for small `beta`"),
    Entry("clip_ratio/low_mean", "share", "Tokens (at sequence level completions) whose ratio is clipped from below", "As `region_mean`"),
    Entry("clip_ratio/high_mean", "share", "Those clipped from above", "As `region_mean`"),
    Entry("clip_ratio/region_mean", "share", "Both: the part of the loss without a gradient",
          "0 at the first step of a generation; then below 0.05 per token, 0.1 to 0.3 with GSPO's narrow clip"),
    Entry("clip_ratio/low_min", "share", "The least clipped completion's `low`", "0"),
    Entry("clip_ratio/high_max", "share", "The most clipped completion's `high`", "Below 0.5"),
    Entry("cispo_clip_ratio", "share", "CISPO: tokens whose weight is capped", "Below 0.05"),
    Entry("vespo/phi_seq_mean", "—", "VESPO: the mean weight of a completion", "Near that of a ratio of 1"),
    Entry("policy_loss", "nats times advantage", "The loss without its entropy bonus (`entropy_coef`)", "As `loss`"),
    Entry("entropy_coef", "—", "The weight of the entropy bonus", "—"),
    Entry("sampling/sampling_logp_difference/mean", "nats per token", "|old − sampler|: how far the sampler's log-probabilities are from "
          "the trainer's", "transformers, or float32: below 0.001. vLLM in bf16: below 0.02"),
    Entry("sampling/sampling_logp_difference/max", "nats", "The furthest token", "Below 1"),
    Entry("sampling/sampling_logp_difference/mean/with_images", "nats per token", "The same over prompts with images",
          "As without: else the two see different images"),
    Entry("sampling/sampling_logp_difference/max/with_images", "nats", "Their furthest token", "Below 1"),
    Entry("sampling/sampling_logp_difference/mean/without_images", "nats per token", "The same over prompts without images", "As with"),
    Entry("sampling/sampling_logp_difference/max/without_images", "nats", "Their furthest token", "Below 1"),
    Entry("sampling/narrowed", "—", "1 if completions are sampled from another distribution than the policy's (`top_p`, `top_k`, `min_p`, "
          "`repetition_penalty`, structured outputs); the differences above are then by design", "—"),
    Entry("sampling/lagged", "—", "1 with `rollout_lag=1`: the differences above are then also those of a rollout's optimizer steps", "—",
          engine=True),
    Entry("sampling/frac_unreported", "share", "Tokens whose log-probability the sampler did not report; they are not corrected", "0"),
    Entry("sampling/importance_sampling_ratio/mean", "—", "The correction's weight (`vllm_importance_sampling_mode`)", "Within 0.02 of 1"),
    Entry("sampling/importance_sampling_ratio/min", "—", "The smallest", "Above 0.5"),
    Entry("sampling/importance_sampling_ratio/max", "—", "The largest", "At most `vllm_importance_sampling_clip_max`"),
]  # fmt: skip

PREFERENCE = [
    Entry("loss/<name>", "nats", "One term of `loss_type`, mean over pairs", "Falls; `sigmoid` starts at 0.693"),
    Entry("loss/<name>_weighted", "nats", "The same times its weight (`loss_weights`)", "—"),
    Entry("loss/bco_shift", "nats", "δ of `bco_pair`: the running mean of rewards over the steps before", "Starts at 0"),
    Entry("rewards/chosen", "nats", "β · log-ratio to the reference of the preferred answers", "Not far below 0"),
    Entry("rewards/rejected", "nats", "That of the rejected answers", "Falls"),
    Entry("rewards/margins", "nats", "Their difference", "Starts at 0, rises"),
    Entry("rewards/accuracies", "share", "Pairs whose preferred answer has the larger reward", "Rises from 0.5"),
    Entry("logps/chosen", "nats", "Log-probability of a preferred answer, summed over its tokens", "Does not fall for long"),
    Entry("logps/rejected", "nats", "That of a rejected answer", "Falls"),
]  # fmt: skip

COST = [
    Entry("work/vision_encodes", "images", "Through the vision tower in the trainer's passes and its own sampler's, since the last log",
          "Distinct images × passes that need them again"),
    Entry("work/prompt_tokens", "tokens", "Of prompts in the trainer's passes; once for a group in the shared layout", "—"),
    Entry("work/completion_tokens", "tokens", "Of completions in the trainer's passes", "—"),
    Entry("work/padded_tokens", "tokens", "Padding computed in the trainer's passes", "0 in the shared layout"),
    Entry("work/sampler_prompt_tokens", "tokens", "Of prompts that the sampler ran", "—"),
    Entry("work/sampler_completion_tokens", "tokens", "Sampled", "—"),
    Entry("work/sampler_padded_tokens", "tokens", "Computed for completions that had ended", "Below a tenth of those sampled"),
    Entry("work/unshared_prompt_tokens", "tokens", "Of prompts, had each completion run its own in the trainer's passes",
          "Several times `work/prompt_tokens`"),
    Entry("work/unshared_vision_encodes", "images", "Through the vision tower, had each completion its own in the trainer's passes",
          "Several times `work/vision_encodes`"),
    Entry("work/sampler_unshared_prompt_tokens", "tokens", "Of prompts, had the sampler run one for each completion", "—"),
    Entry("work/sampler_unshared_vision_encodes", "images", "Through the vision tower, had the sampler encoded one for each completion",
          "—"),
    Entry("sync/tensors", "tensors", "Sent to the engine since the last log, under their saved names", "Those of trained modules",
          engine=True),
    Entry("sync/in_flight", "syncs", "Weights that were sent into a rollout while it was sampled (`vllm_in_flight_sync`)",
          "1 per rollout where sampling takes longer than learning", engine=True),
    Entry("sync/modules_compared", "modules", "Of the engine whose answers were compared with the trainer's after a sync", "Above 0",
          engine=True),
    Entry("work/sampler_restarts", "restarts", "Engines that were lost and given the policy's weights again", "0", engine=True),
    Entry("work/sampler_prompts_sampled_again", "prompts", "Of servers that failed during a batch, and sampled again by the others", "0",
          engine=True),
    Entry("work/sampler_engines_taken_back", "servers", "That had failed, and are used again", "0", engine=True),
    Entry("time/data_s", "seconds per step", "Encoding prompts and checking rows", "Far below the others after the first step"),
    Entry("time/sample_s", "seconds per step", "Sampling", "—"),
    Entry("time/sync_s", "seconds per step", "Giving the engine new weights", "Far below `time/sample_s`", engine=True),
    Entry("time/tools_s", "seconds per step", "Running tools and reading their results", "Below `time/sample_s`"),
    Entry("time/reward_s", "seconds per step", "In reward functions", "Far below `time/sample_s`"),
    Entry("time/logp_s", "seconds per step", "Log-probabilities under old weights and the reference", "Below `time/update_s`"),
    Entry("time/update_s", "seconds per step", "Forward and backward of the policy", "—"),
    Entry("time/other_s", "seconds per step", "All that no phase claims: the optimizer, loading, logging, checkpoints", "Small"),
]  # fmt: skip

SUMMARY = [
    Entry("train_runtime", "seconds", "The whole run; in the last line, as all of these", "—"),
    Entry("train_samples_per_second", "groups per second", "Groups learned from", "—"),
    Entry("train_steps_per_second", "steps per second", "Optimizer steps", "—"),
    Entry("train_tokens_per_second", "tokens per second", "With `include_num_input_tokens_seen`", "—"),
    Entry("train_loss", "as `loss`", "Mean over all steps", "—"),
    Entry("total_flos", "operations", "Estimate: 6 for each weight and token", "—"),
    Entry("eval_runtime", "seconds", "One evaluation", "—"),
    Entry("eval_samples_per_second", "groups per second", "Groups evaluated", "—"),
    Entry("eval_steps_per_second", "batches per second", "Batches evaluated", "—"),
]  # fmt: skip

SECTIONS: dict[str, list[Entry]] = {
    "Training, all methods": TRAINING,
    "Completions and rewards (GRPO and kin)": GROUPS,
    "Tools (GRPO and kin, with `tools` or `environment_factory`)": TOOLS,
    "The objective (GRPO and kin)": OBJECTIVE,
    "Preferences (DPO, MPO)": PREFERENCE,
    "Time and work": COST,
    "The end of a run, and evaluations": SUMMARY,
}

ENTRIES: list[Entry] = [entry for section in SECTIONS.values() for entry in section]


def entry_for(name: str) -> Entry | None:
    """The entry of a logged name: of those that match, the one with the fewest placeholders; None where there is none.

    A metric of an evaluation has the name of the training metric with ``eval_`` before it.
    """
    fitting = [entry for entry in ENTRIES if entry.pattern.fullmatch(name)]
    if fitting:
        return min(fitting, key=lambda entry: (entry.name.count("<"), -len(entry.name)))
    if not name.startswith("eval_"):
        return None
    rest = name.removeprefix("eval_")
    # With several evaluation sets, the set's name comes next, and may have any number of words.
    shorter = [rest] + [rest[place + 1 :] for place, char in enumerate(rest) if char == "_"]
    # Some metrics belong to evaluations alone, and are listed with eval_ in their names.
    tried = [name for tail in shorter for name in (tail, f"eval_{tail}") if name != f"eval_{rest}"]
    return next((entry for each in tried if (entry := entry_for(each)) is not None), None)


def page() -> str:
    """The dictionary in Markdown."""
    lines = [
        "# Metrics",
        "",
        "Every name in the log, in `RUN/metrics.jsonl` and on the run page. Names are TRL's where TRL has them. Means are over what was "
        "measured since the last log, on all ranks, each token or completion counting alike; counts are sums. Nothing depends on how a "
        "step is cut into micro-batches and ranks. Metrics of an evaluation have `eval_` before them, and the name of the set where there "
        "are several. Reward functions add names of their own by `log_metric`.",
    ]
    for title, entries in SECTIONS.items():
        lines += ["", f"## {title}", "", "| name | unit | meaning | healthy |", "|---|---|---|---|"]
        for entry in entries:
            meaning = entry.meaning + (" (`use_vllm=True`)" if entry.engine else "")
            lines.append(f"| `{entry.name}` | {entry.unit} | {meaning.replace('|', chr(92) + '|')} | {entry.healthy} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")

"""Rollouts of several turns: the policy calls tools, their results are appended, and it goes on.

    sample ──▶ calls? ──run side by side──▶ results ──append──▶ sample …

All ranks go through the turns together, because samplers are called together: a rank whose completions have all ended samples nothing.
A turn is one call of the sampler for all completions that go on, each with the prompt and its turns so far (`Prompt.followed_by`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from accelerate.utils import gather_object

from boresight.data.encode import Encoder
from boresight.data.images import decode, load_image
from boresight.data.turns import continued, encoded_turn, rendered_turn, with_turn
from boresight.errors import ConfigError
from boresight.ranks import on_every_rank
from boresight.report.metrics import MeanMetrics
from boresight.sampling import Phases, Sampler, SamplingSettings
from boresight.tools.environments import COLUMN, Environments
from boresight.tools.options import ToolOptions
from boresight.tools.parsing import ParsedTurn, ToolCall, parsed_turn
from boresight.tools.results import Limits, Result, is_block, result_of
from boresight.tools.running import Outcome, run_calls
from boresight.tools.workers import ToolWorkers
from boresight.types import Completion, EncodedImage, Group, Observation, Prompt


@dataclass(slots=True)
class Branch:
    """One completion while it grows."""

    prompt: Prompt
    environment: Any
    completion: Completion | None = None
    calls: tuple[ToolCall, ...] = ()
    """Those of its latest turn, not run yet."""
    outcomes: list[Outcome] = field(default_factory=list[Outcome])
    num_images: int = 0
    ended: str = ""
    """Why it went no further although it called a tool: "no_room" or "too_many_turns"."""


@dataclass(frozen=True, slots=True)
class Turns:
    """The result of a rollout of several turns."""

    groups: list[Group]
    branches: list[Branch]
    """One for each completion, groups in order."""

    @property
    def environments(self) -> list[Any]:
        return [branch.environment for branch in self.branches]

    def note(self, metrics: MeanMetrics) -> None:
        """Log what was called, and how it ended. The first two names are TRL's."""
        outcomes = [outcome for branch in self.branches for outcome in branch.outcomes]
        kinds = Counter(outcome.kind for outcome in outcomes)
        num_completions = len(self.branches)
        metrics.add("tools/call_frequency", float(len(outcomes)), float(num_completions))
        metrics.add("tools/failure_frequency", float(len(outcomes) - kinds["ok"]), float(max(len(outcomes), 1)))
        called = sum(bool(branch.outcomes or branch.calls) for branch in self.branches)
        metrics.add("tools/frac_without_call", float(num_completions - called), float(num_completions))
        metrics.add(
            "tools/num_images", float(sum(branch.num_images for branch in self.branches)), float(num_completions)
        )
        for kind in ("raised", "timed_out", "unknown_tool", "unreadable", "refused"):
            metrics.sum(f"tools/num_{kind}", float(kinds[kind]))
        for why in ("no_room", "too_many_turns"):
            metrics.sum(f"tools/num_{why}", float(sum(branch.ended == why for branch in self.branches)))
        for outcome in outcomes:
            if outcome.kind in ("ok", "raised", "timed_out", "refused"):
                metrics.mean(f"tools/{outcome.call.name}/seconds", outcome.seconds)


class ToolLoop:
    """Samples completions in which the policy may call tools.

    Args:
        sampler: samples from the policy.
        encoder: of the prompts.
        environments: the tools, and the environments of completions.
        options: limits of calls and results.
        timeline: records the time by phase.
    """

    def __init__(
        self, sampler: Sampler, encoder: Encoder, environments: Environments, options: ToolOptions, timeline: Phases
    ) -> None:
        self.sampler = sampler
        self.encoder = encoder
        self.environments = environments
        self.options = options
        self.timeline = timeline
        self.workers = ToolWorkers(environments.tools, options.tool_workers)

    def sample(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> Turns:
        """`settings.num_completions` completions of each prompt, prompts in order. All ranks call this together."""
        branches = on_every_rank(lambda: self._begun(prompts, settings.num_completions))
        settings = replace(settings, continues=True)
        first = [branches[place * settings.num_completions].prompt for place in range(len(prompts))]
        with self.timeline.phase("sample"):
            groups = self.sampler.sample(first, settings)
        for branch, completion in zip(branches, (each for group in groups for each in group.completions), strict=True):
            branch.completion = replace(completion, unexpanded_ids=completion.ids)
            self._read(branch, completion, branch.prompt)
        most = self.options.max_tool_calling_iterations
        turn = 0
        while most is None or turn < most:
            if not any(gather_object([any(branch.calls for branch in branches)])):
                break
            turn += 1
            self._go_on(branches, settings, turn)
        for branch in branches:
            if branch.calls and not branch.ended:
                branch.ended = "too_many_turns"
        k = settings.num_completions
        made = [
            Group(prompt, tuple(_whole(branch) for branch in branches[place * k : (place + 1) * k]))
            for place, prompt in enumerate(first)
        ]
        return Turns(made, branches)

    def close(self, turns: Turns) -> None:
        """Give the environments back, after rewards have been computed."""
        usable = [
            branch for branch in turns.branches if all(outcome.kind != "timed_out" for outcome in branch.outcomes)
        ]
        self.environments.give_back(
            [branch.environment for branch in usable], [branch.prompt.row.columns for branch in usable]
        )

    # ---- Environments ------------------------------------------------------------------------------------------------------------

    def _begun(self, prompts: Sequence[Prompt], num_completions: int) -> list[Branch]:
        branches = []
        for prompt in prompts:
            environments = [
                self.environments.take(prompt.row.columns, prompt.row.index) for _ in range(num_completions)
            ]
            observed = [self._reset(environment, prompt) for environment in environments]
            if any(each != observed[0] for each in observed):
                raise ConfigError(
                    f"row {prompt.row.index}: reset returned different observations for completions of one prompt. A group compares "
                    "completions of one prompt: let the row's columns decide, such as a column `seed`."
                )
            started = prompt if not observed[0] else self.encoder.with_observation(prompt, observed[0])
            branches += [Branch(started, environment) for environment in environments]
        return branches

    def _reset(self, environment: Any, prompt: Prompt) -> Observation:
        """Reset an environment with the row's columns, its images decoded, and return its observation."""
        if environment is None:
            return ()
        row = prompt.row
        columns = {
            name: value for name, value in row.columns.items() if name != COLUMN or not self.environments.is_named
        }
        columns.setdefault("images", [decode(image, where=f"row {row.index}") for image in row.images])
        columns.setdefault("prompt", row.prompt)
        observation = environment.reset(**columns)
        if observation is None or isinstance(observation, str):
            return (observation,) if observation else ()
        name = type(environment).__name__
        if not isinstance(observation, list | tuple) or not all(map(is_block, observation)):
            raise ConfigError(
                f"row {row.index}: reset of {name} returned a {type(observation).__name__}: return a text, a list of content parts "
                '({"type": "text", "text": …}, {"type": "image", "image": …}), or None.'
            )
        return tuple(
            part["text"]
            if part["type"] == "text"
            else _readable(part.get("image"), f"row {row.index}: reset of {name}")
            for part in observation
        )

    # ---- A turn ------------------------------------------------------------------------------------------------------------------

    def _read(self, branch: Branch, sampled: Completion, before: Prompt) -> None:
        """Read the calls of what was just sampled, and keep it as a message. A turn that was cut off calls nothing."""
        schemas = self.environments.schemas.get(
            self.environments.name_of(before.row.columns, before.row.index), self.environments.schemas.get(None, [])
        )
        found: ParsedTurn = parsed_turn(
            self.encoder.tokenizer, sampled.ids.tolist(), before.ids.tolist(), schemas, self.encoder.facts.stop_ids
        )
        branch.calls = () if sampled.truncated else found.calls
        assert branch.completion is not None
        message = found.message
        messages = (*(branch.completion.messages or ()), message)
        text = found.content if found.calls else sampled.text
        branch.completion = replace(branch.completion, messages=messages, text=text)

    def _go_on(self, branches: Sequence[Branch], settings: SamplingSettings, turn: int) -> None:
        """Run the calls of all branches, append the results, and sample their next turns."""
        calling = [branch for branch in branches if branch.calls]
        with self.timeline.phase("tools"):
            on_every_rank(lambda: self._answer(calling, settings))
        going = [branch for branch in calling if not branch.ended]
        prompts = [branch.prompt.followed_by(_whole(branch)) for branch in going]
        # Another seed for every turn; its random numbers do not depend on which branches go on with which.
        seed = None if settings.seed is None else settings.seed + (turn << 80)
        with self.timeline.phase("sample"):
            groups = self.sampler.sample(prompts, replace(settings, num_completions=1, seed=seed))
        for branch, prompt, group in zip(going, prompts, groups, strict=True):
            sampled = group.completions[0]
            branch.completion = continued(_whole(branch), sampled)
            self._read(branch, sampled, prompt)

    def _answer(self, calling: Sequence[Branch], settings: SamplingSettings) -> None:
        """Append the results of the branches' calls. A branch whose results have no room ends before them, as in TRL."""
        batches = [(branch.calls, self.environments.tools_of(branch.environment)) for branch in calling]
        for branch, outcomes in zip(calling, run_calls(batches, self.options.tool_timeout, self.workers), strict=True):
            results = self._results(branch, outcomes)
            branch.outcomes += [result.outcome for result in results]
            row = branch.prompt.row
            messages = [result.message for result in results]
            images = [image for result in results for image in result.images]
            text = rendered_turn(self.encoder.texts, messages, row)
            turn = encoded_turn(self.encoder, text, images, row=row.index)
            whole = _whole(branch)
            if len(whole.ids) + len(turn.ids) >= settings.max_completion_length:
                branch.ended, branch.calls = "no_room", ()
                continue
            branch.num_images += len(images)
            branch.completion = with_turn(whole, turn, messages)
            branch.calls = ()

    def _results(self, branch: Branch, outcomes: Sequence[Outcome]) -> list[Result]:
        results: list[Result] = []
        for outcome in outcomes:
            room = self.options.max_tool_images - branch.num_images - sum(len(each.images) for each in results)
            results.append(result_of(outcome, _readable, Limits(self.options.max_tool_result_chars, room)))
        return results


def _readable(value: Any, where: str = "the tool's image") -> EncodedImage:
    """An image of a tool, whose pixels can be read."""
    image = load_image(value, where=where)
    decode(image, where=where)
    return image


def _whole(branch: Branch) -> Completion:
    assert branch.completion is not None
    return branch.completion

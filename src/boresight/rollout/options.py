"""The options that every sampler has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from boresight.options import Range, option


@dataclass
class SamplingOptions:
    """How completions are sampled. Names and defaults are TRL's (`GRPOConfig`)."""

    heading: ClassVar[str] = "rollout"

    num_generations: Annotated[int, Range(at_least=1)] = option(
        8, "Completions per prompt: the group size (G in papers, K in boresight)."
    )
    num_generations_eval: Annotated[int | None, Range(at_least=1)] = option(
        None, "Completions per prompt in evaluation. None: as in training."
    )
    max_completion_length: Annotated[int, Range(at_least=1)] = option(
        512, "Maximum tokens of a completion, including its end token."
    )
    temperature: Annotated[float, Range(at_least=0)] = option(
        1.0, "Divides the logits, in the sampler and in the loss alike. 0 chooses the most likely token."
    )
    top_p: Annotated[float, Range(above=0, at_most=1)] = option(
        1.0, "Keep the most likely tokens that together have this probability; 1 keeps all."
    )
    top_k: Annotated[int, Range(at_least=0)] = option(0, "Keep this many of the most likely tokens; 0 keeps all.")
    min_p: Annotated[float | None, Range(at_least=0, at_most=1)] = option(
        None, "Keep tokens with at least this share of the most likely token's probability."
    )
    repetition_penalty: Annotated[float, Range(above=0)] = option(
        1.0, "Values above 1 make tokens of the prompt and of the completion so far less likely."
    )

"""Engines beside the policy: the table of them, and what each is built from."""

from __future__ import annotations

import copy
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from accelerate.utils import broadcast_object_list
from torch import nn
from transformers import TrainerCallback

from boresight.data.encode import Encoder
from boresight.data.images import decode
from boresight.model.adapter_export import PolicyAdapter, adapted_layers
from boresight.model.export import PolicyWeights, check_merges
from boresight.model.forward import GroupForward
from boresight.model.quantised import forget_quantisation
from boresight.model.shards import class_of
from boresight.modules import unwrap
from boresight.rollout.options import narrows
from boresight.rollout.synced import SyncedEngine, SyncedSampler
from boresight.rollout.vllm.build import vllm_engine
from boresight.sampling import EngineInputs, Sampler, TrainingHooks
from boresight.trainer.checks import Extent
from boresight.trainer.grpo_config import GRPOConfig

Sent = TypeVar("Sent", PolicyWeights, PolicyAdapter)
ENGINES: Mapping[str, Callable[[EngineInputs, Any], SyncedEngine]] = {"use_vllm": vllm_engine}
"""The option that asks for an engine → how to build it from its inputs and the options. Another engine is one more row."""


def engine_sampler(
    args: GRPOConfig, policy: GroupForward, encoder: Encoder, extent: Extent, training: TrainingHooks
) -> SyncedSampler | None:
    """The sampler over the engine that the options ask for, or None if the policy itself is to sample.

    Args:
        args: the options.
        policy: the forward of the model being trained.
        encoder: the encoder of the trainer's prompts.
        extent: the largest sizes of the rows, which determine the engine's limits.
        training: the sampler's interface to training.

    Raises:
        ConfigError: the engine cannot serve this policy on these ranks.
        EngineError: the engine did not start.
    """
    for option, build in ENGINES.items():
        if getattr(args, option):
            sent: list[PolicyWeights | PolicyAdapter] = []
            engine = build(engine_inputs(args, policy, encoder, extent, sent), args)
            training = replace(training, sending=partial(_copied, sent))
            differs = narrows(args) or bool(args.vllm_structured_outputs_regex)
            return SyncedSampler(engine, training, distribution_differs=differs)
    return None


def check_sends(model: nn.Module, args: GRPOConfig) -> None:
    """Check that vLLM, if the options ask for it, can be sent a model's adapter in the way that they name.

    Args:
        model: with its adapter.

    Raises:
        ConfigError: it cannot.
    """
    if not args.use_vllm:
        return
    if args.vllm_lora_sync == "adapter":
        adapted_layers(model)
    else:
        check_merges(model)


class WeightsMoved(TrainerCallback):
    """Notifies a sampler whenever the policy's weights may have changed: after a step, or after loading."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.sampler.weights_moved()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.sampler.weights_moved()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.sampler.weights_moved()


@contextmanager
def _copied(sent: Sequence[PolicyWeights | PolicyAdapter], keep: bool) -> Iterator[None]:
    """A context in which what an engine is sent can be read, of divided layers too."""
    with ExitStack() as stack:
        for each in sent:
            stack.enter_context(each.copied(keep))
        yield


def engine_inputs(
    args: GRPOConfig,
    policy: GroupForward,
    encoder: Encoder,
    extent: Extent,
    sent: list[PolicyWeights | PolicyAdapter],
) -> EngineInputs:
    """What an engine is built from, whichever engine it is. All ranks call this together.

    Args:
        sent: receives the weights and adapters that the engine is sent.
    """

    def noted(made: Sent) -> Sent:
        sent.append(made)
        return made

    longest = extent.max_prompt_tokens
    return EngineInputs(
        run=broadcast_object_list([secrets.token_hex(4)])[0],
        weights=lambda merged: noted(PolicyWeights(policy.outer, adapters=merged)),
        adapter=lambda: noted(PolicyAdapter(policy.outer)),
        save=partial(save_without_weights, policy, encoder),
        facts=policy.facts,
        tokenizer=encoder.tokenizer,
        decode_image=decode,
        dtype="bfloat16" if args.bf16 else "float16" if args.fp16 else "float32",
        max_tokens=None if longest is None else longest + args.max_completion_length,
        max_images=extent.max_images,
        seed=args.seed,
        rank=args.process_index,
        num_ranks=args.world_size,
        output_dir=Path(str(args.output_dir)),
    )


def save_without_weights(policy: GroupForward, encoder: Encoder, folder: Path) -> None:
    """Save the files that an engine reads in addition to weights: config, generation config, and the trainer's own processor."""
    base = unwrap(policy.outer)
    config = copy.deepcopy(base.config)
    config.architectures = [class_of(base).__name__]
    forget_quantisation(config)  # the engine receives the numbers
    config.save_pretrained(folder)
    if base.generation_config is not None:
        base.generation_config.save_pretrained(folder)
    encoder.processor.save_pretrained(folder)

"""Which engine a policy is sampled with, and when it gets new weights."""

from __future__ import annotations

import copy
import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor
from transformers import TrainerCallback

from boresight.data.images import decode
from boresight.errors import ConfigError
from boresight.model.adapter_export import PolicyAdapter
from boresight.model.export import PolicyWeights
from boresight.modules import unwrap
from boresight.rollout.vllm.adapter import lora_options
from boresight.rollout.vllm.child import ChildEngine
from boresight.rollout.vllm.engine import Engine, EngineError, EngineRestartedError
from boresight.rollout.vllm.local import LocalEngine, check_sleep
from boresight.rollout.vllm.options import VLLMConfig
from boresight.rollout.vllm.sampler import MAX_REDONE, VLLMSampler
from boresight.rollout.vllm.server import ServerEngine, address
from boresight.trainer.checks import Extent
from boresight.trainer.ranks import on_every_rank
from boresight.types import Adapter, Group, Prompt, SamplingSettings

logger = logging.getLogger(__name__)

AGREEMENT = {"float32": 1e-3, "float16": 5e-2, "bfloat16": 2e-1}
"""Nats by which the engine's log-probabilities may differ from the trainer's, on the mean over a probe's tokens."""


class EngineSampler:
    """A `Sampler` over a vLLM engine that always has the policy's weights.

    Before the first completions are believed, their log-probabilities are compared with the trainer's, with images and without.

    Args:
        trainer: a `GRPOTrainer` whose data are checked.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        args = trainer.args
        regex = args.vllm_structured_outputs_regex
        alone = args.vllm_lora_sync == "adapter"
        adapter = PolicyAdapter(trainer.policy.outer) if alone else None
        self.inner = VLLMSampler(
            _engine(trainer, trainer.extent, adapter),
            PolicyWeights(trainer.policy.outer, adapters=not alone),
            trainer.facts,
            trainer.encoder.tokenizer,
            decode_image=decode,
            name=broadcast_object_list([secrets.token_hex(4)])[0],
            sleeps=args.vllm_enable_sleep_mode,
            structured={"regex": regex} if regex else None,
            adapter=adapter,
            # Ranks have equal weights, so one of them speaks to a server that all share.
            pushes=args.vllm_mode == "colocate" or trainer.is_world_process_zero(),
        )
        self.counts = self.inner.counts
        trainer.add_callback(Outdate(self.inner))
        # Structured outputs are meant to differ.
        self._agrees = bool(regex)

    def sample(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> list[Group]:
        """As `VLLMSampler.sample`, after a sync where the weights have moved; both anew when a server went away meanwhile.

        Raises:
            EngineError: on all ranks, when the engine failed one of them for good.
        """
        groups: list[Group] | None = None
        # Before any rank asks: one that failed here would leave those that share its engine waiting.
        requests = on_every_rank(lambda: self.inner.requests(prompts, settings))
        sample = partial(self.inner.completed, prompts, requests, settings)
        for attempts_left in range(MAX_REDONE, -1, -1):
            self._sync()
            groups = on_every_rank(partial(self._sampled, sample, groups, attempts_left))
            if all(gather_object([groups is not None])):
                break
            self.inner.outdate()
        assert groups is not None
        if not self._agrees:
            self._check_agreement(groups)
        return groups

    def _sampled(
        self, sample: Callable[[], list[Group]], done: list[Group] | None, attempts_left: int
    ) -> list[Group] | None:
        """This rank's groups, which it may have already; None when the server went away, and may be asked again."""
        if done is not None:
            return done
        try:
            return sample()
        except EngineRestartedError as error:
            if not attempts_left:
                raise
            logger.warning("%s The batch is sampled anew.", error)
            return None

    def rest(self) -> None:
        """No more completions are wanted under these weights."""
        self.inner.rest()

    def close(self) -> None:
        """Let go of the engine."""
        self.inner.close()

    def _sync(self) -> None:
        """On the rank that speaks to the engine; the others are told what the weights are called."""
        trainer = self.trainer
        with trainer.timeline.phase("sync"):
            report = on_every_rank(lambda: self.inner.sync(trainer.state.global_step) if self.inner.pushes else None)
            self.inner.adopt(broadcast_object_list([self.inner.version])[0])
        if report is not None:
            trainer.metrics.sum("sync/tensors", report.num_sent)
            trainer.metrics.sum("sync/modules_compared", report.num_compared)

    def _check_agreement(self, groups: Sequence[Group]) -> None:
        groups = list({bool(group.prompt.images): group for group in reversed(groups)}.values())
        with self.trainer.timeline.phase("sync"):
            logp = self.trainer.logp(groups, self.trainer.policy)
        where = self.inner.engine.where
        gap = on_every_rank(lambda: agreement(groups, logp, self.inner.dtype, where))
        self._agrees = True
        self.trainer.log_once(f"{where} and the trainer agree within {gap:.1e} nats per token.")


def _engine(trainer: Any, extent: Extent, adapter: Adapter | None) -> Engine:
    args = trainer.args
    options = {option.name: getattr(args, option.name) for option in fields(VLLMConfig)}
    calls = {
        "timeout_s": args.vllm_server_timeout,
        "request_timeout_s": args.vllm_request_timeout,
        "sync_dir": args.vllm_sync_dir,
    }
    if args.vllm_mode == "server":
        return ServerEngine(address(options), group_port=args.vllm_group_port, **calls)
    save = partial(save_without_weights, trainer)
    engine_options = _engine_options(trainer, extent) | (lora_options(adapter) if adapter else {})
    if args.vllm_model_impl == "transformers":
        log = Path(args.output_dir) / f"vllm{args.process_index or ''}.log"
        return ChildEngine(save, engine_options, log=log, **calls)
    return LocalEngine(save, **engine_options)


def _engine_options(trainer: Any, extent: Extent) -> dict[str, Any]:
    """vLLM's engine arguments for an engine on the training process's device."""
    args = trainer.args
    if args.vllm_enable_sleep_mode:
        check_sleep()
    if args.world_size % args.vllm_tensor_parallel_size:
        raise ConfigError(
            f"vllm_tensor_parallel_size={args.vllm_tensor_parallel_size} training processes share an engine, and there are "
            f"{args.world_size}: start a multiple of it (accelerate launch --num_processes …), or lower it."
        )
    options: dict[str, Any] = {
        "dtype": "bfloat16" if args.bf16 else "float16" if args.fp16 else "float32",
        "gpu_memory_utilization": args.vllm_gpu_memory_utilization,
        "model_impl": args.vllm_model_impl,
        "enable_sleep_mode": args.vllm_enable_sleep_mode,
        "seed": args.seed,
    }
    if extent.max_images is not None:
        options["limit_mm_per_prompt"] = {"image": extent.max_images, "video": 0}
    if args.vllm_max_model_length is not None:
        options["max_model_len"] = args.vllm_max_model_length
    elif extent.max_prompt_tokens is not None:
        options["max_model_len"] = extent.max_prompt_tokens + args.max_completion_length
    if args.world_size > 1 and args.vllm_model_impl != "transformers":
        # Every process has the engine that vLLM would start in it; those of a tensor-parallel group work together.
        options |= {
            "distributed_executor_backend": "external_launcher",
            "tensor_parallel_size": args.vllm_tensor_parallel_size,
        }
    given = args.vllm_engine_kwargs or {}
    return options | given


def save_without_weights(trainer: Any, folder: Path) -> None:
    """What an engine reads of a model beside its weights: config, generation config, and the trainer's own processor."""
    base = unwrap(trainer.policy.outer)
    config = copy.deepcopy(base.config)
    config.architectures = [type(base).__name__]
    config.save_pretrained(folder)
    if base.generation_config is not None:
        base.generation_config.save_pretrained(folder)
    trainer.encoder.processor.save_pretrained(folder)


class Outdate(TrainerCallback):
    """Tells a sampler whenever the policy's weights may have changed: by a step, or by loading."""

    def __init__(self, sampler: VLLMSampler) -> None:
        self.sampler = sampler

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.sampler.outdate()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.sampler.outdate()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.sampler.outdate()


def agreement(groups: Sequence[Group], logp: Sequence[Tensor], dtype: str, where: str) -> float:
    """How far the engine's log-probabilities are from the trainer's under the same weights, in nats, on the mean over tokens.

    Args:
        groups: sampled by the engine.
        logp: [K, C] of each group, the trainer's.
        dtype: that the engine computes in.

    Raises:
        EngineError: further than `AGREEMENT`; something differs that no comparison of weights sees.
    """
    worst = 0.0
    for group, rows in zip(groups, logp, strict=True):
        gaps = [
            (completion.sampler_logp - row[: len(completion.ids)]).abs()  # pyright: ignore[reportOptionalOperand]
            for completion, row in zip(group.completions, rows, strict=True)
        ]
        gap = float(torch.cat(gaps).mean())
        if not gap <= AGREEMENT[dtype]:
            kind = "with" if group.prompt.images else "without"
            raise EngineError(
                f"row {group.prompt.row.index}: under the same weights, {where} and the trainer differ by {gap:.3g} nats per token on a "
                f"prompt {kind} images (allowed: {AGREEMENT[dtype]:g} in {dtype}). Training would be silently wrong. Is the model's "
                "family right in this vLLM? Try vllm_model_impl='transformers', or use_vllm=False."
            )
        worst = max(worst, gap)
    return worst

"""Supervised fine-tuning: the likelihood of demonstrations (K = 1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import TrainingArguments

from boresight.data.pretokenised import demonstration
from boresight.data.text_rows import text_rows
from boresight.errors import ConfigError
from boresight.loss.likelihood import likelihood_loss, likelihood_total
from boresight.model.packing import completion_mask
from boresight.report.metrics import MeanMetrics
from boresight.trainer.checks import Encoding
from boresight.trainer.config import SFTConfig, as_config
from boresight.trainer.eval_samples import AnsweringTrainer
from boresight.trainer.steps import StepPlan
from boresight.types import Group


class SFTTrainer(AnsweringTrainer[Group]):
    """Learn from demonstrations.

    Rows are `messages`, or `prompt` and `completion`, each with any number of images; plain `text`; or token ids (`input_ids`).

    Args:
        model: a hub id, a folder, or a loaded model.
        args: options; None: the defaults.
        train_dataset: a `datasets` object, a list of rows, a file, a folder, or a hub id.
        eval_dataset: a data set to evaluate on, in the same forms; or a dict of several by name.
        processing_class: the processor, or a bare tokenizer, or None.
        peft_config: train an adapter instead of the weights.
        quantization_config: load the base in 4 or 8 bits, as transformers' BitsAndBytesConfig says.
        formatting_func: from a row, a mapping of its columns with images still encoded, to the text to imitate, all of which counts; as in
            TRL. `data.text_rows.text_rows` says which columns are kept.
    """

    def __init__(
        self,
        model: str | Path | nn.Module,
        args: SFTConfig | TrainingArguments | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        callbacks: Any = None,
        optimizers: tuple[Any, Any] = (None, None),
        peft_config: Any = None,
        quantization_config: Any = None,
        formatting_func: Callable[[Mapping[str, Any]], str] | None = None,
    ) -> None:
        args = as_config(args, SFTConfig)
        self._as_text = partial(text_rows, field=args.dataset_text_field, formatting_func=formatting_func)
        if formatting_func is not None:
            check_formatting(args)
        size = args.per_device_train_batch_size
        super().__init__(
            model,
            args,
            plan=StepPlan(groups_per_step=size * args.gradient_accumulation_steps, groups_per_pass=size),
            eval_groups=args.per_device_eval_batch_size,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
            peft_config=peft_config,
            quantization_config=quantization_config,
        )

    def read(self, source: Any) -> Any:
        return self._as_text(super().read(source))

    @property
    def encoding(self) -> Encoding:
        args = self.args
        return partial(
            demonstration,
            assistant_only=args.assistant_only_loss,
            completion_only=args.completion_only_loss,
            max_length=args.max_length,
        )

    def total(self, items: Sequence[Group]) -> Tensor:
        return likelihood_total(completion_mask(items))

    def loss(self, model: nn.Module, items: Sequence[Group], total: Tensor, metrics: MeanMetrics) -> Tensor:
        stats = self.policy(items, wrapped=model, entropy=True)
        self.watch(stats.logp, stats.mask)
        metrics.mean("entropy", stats.entropy, weight=stats.mask)  # pyright: ignore[reportArgumentType]
        metrics.mean("mean_token_accuracy", stats.greedy, weight=stats.mask)  # pyright: ignore[reportArgumentType]
        metrics.sum("num_tokens", sum(item.num_tokens for item in items))
        return likelihood_loss(stats.logp, stats.mask, total)


def check_formatting(args: SFTConfig) -> None:
    """Check that options fit rows of plain text.

    Raises:
        ConfigError: an option needs rows with a prompt or with turns, or names another text.
    """
    for name, needs in {"completion_only_loss": "a prompt", "assistant_only_loss": "an assistant's turns"}.items():
        if getattr(args, name):
            raise ConfigError(
                f"formatting_func makes plain text of each row, and {name}=True needs {needs}: leave one of them out."
            )
    if args.dataset_text_field not in ("text", ""):
        raise ConfigError("formatting_func and dataset_text_field both name the text of a row: leave one of them out.")

"""All checks of a run before it starts: `boresight doctor METHOD`.

The run is made as its command would make it, in a folder that is thrown away, with its own errors turned off where a check reports them
all. What stops it is a finding too, and names the checks that could not be made.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from boresight.doctor.probe import probe
from boresight.doctor.rewards import check_first_batch, check_gold_answers
from boresight.doctor.rows import check_lengths, check_rows
from boresight.doctor.shown_batch import legend, shown_groups
from boresight.doctor.worst_batch import check_worst_batch
from boresight.errors import BoresightError, ConfigError, DataError, DiskError, ModelError, RewardError
from boresight.preflight import Finding, SetUp, preflight
from boresight.preflight.disk import check_folder
from boresight.trainer.base import GroupTrainer
from boresight.trainer.dpo import DPOTrainer
from boresight.trainer.grpo import GRPOTrainer
from boresight.trainer.run_folder import RunFolder, check_is_not_model

CHECKS_OF: tuple[tuple[type[Exception], str], ...] = (
    (DiskError, "disk"), (DataError, "rows"), (ModelError, "model"), (RewardError, "rewards"), (ConfigError, "options"),
)  # fmt: skip
"""An error → the check that it is a finding of."""


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """What a training command would do."""

    trainer: type[GroupTrainer[Any]]
    model: str
    config: Any
    rows: Callable[[], tuple[Any, Any]]
    """Reads the training rows and the evaluation rows."""
    arguments: Callable[[], dict[str, Any]]
    """Further arguments of the trainer: `peft_config`, `reward_funcs`."""


def check_up(
    run: PlannedRun, *, memory_bytes: int | None = None, show: Callable[[Any], None] | None = None
) -> Iterator[Finding]:
    """What all checks find about a run, in the order in which it would meet them.

    Args:
        memory_bytes: memory of the device that will train, if it is not this one.
        show: prints the first batch, token by token; None: it is not shown.
    """
    yield from _caught("folder", lambda: _check_folder(run))
    with tempfile.TemporaryDirectory() as folder:
        made: list[GroupTrainer[Any]] = []
        stopped = [*_caught("run", lambda: made.append(_trainer(run, Path(folder))) or ())]
        yield from stopped
        if not made:
            yield Finding(
                "run",
                "note",
                "",
                "it stops here: the checks of template, lengths, rewards, batches and layout were not made.",
            )
            return
        trainer = made[0]
        for name, check in _checks(run, trainer, memory_bytes):
            yield from _caught(name, check)
        if show is not None:
            _show_batch(trainer, show)
        if isinstance(trainer, GRPOTrainer):
            trainer.sampler.close()
            trainer.scorer.close()


def _check_folder(run: PlannedRun) -> Iterable[Finding]:
    check_is_not_model(run.config.output_dir, run.model)
    if run.config.resume_from_checkpoint is None:
        RunFolder(run.config.output_dir).check_free(overwrite=run.config.overwrite_output_dir)
    folder = Path(run.config.output_dir)
    is_new = not folder.exists()
    check_folder(folder, run.model)
    if is_new:
        folder.rmdir()
    return ()


def _trainer(run: PlannedRun, folder: Path) -> GroupTrainer[Any]:
    """The run's trainer, which stops for as little as possible and writes into another folder."""
    config = copy.copy(run.config)
    config.output_dir, config.report_to, config.resume_from_checkpoint = str(folder), [], None
    config.preflight, config.on_bad_row, config.verdict_steps = "off", "drop", 0
    if issubclass(run.trainer, GRPOTrainer):
        config.gold_check, config.log_completions = "off", False
    if issubclass(run.trainer, DPOTrainer):
        config.precompute_ref_log_probs = False  # which takes a pass over all rows
    train, evaluation = run.rows()
    return run.trainer(model=run.model, args=config, train_dataset=train, eval_dataset=evaluation, **run.arguments())  # pyright: ignore[reportCallIssue]


def _checks(
    run: PlannedRun, trainer: GroupTrainer[Any], memory_bytes: int | None
) -> Iterator[tuple[str, Callable[[], Iterable[Finding]]]]:
    args: Any = run.config
    set_up: SetUp = replace(trainer.set_up, args=args)
    yield "rows", lambda: check_rows(trainer, args.on_bad_row)
    yield "set-up", lambda: preflight(set_up)
    yield "lengths", lambda: check_lengths(trainer)
    if isinstance(trainer, GRPOTrainer):
        yield "gold answers", lambda: check_gold_answers(trainer, args.gold_check == "error")
        yield "first batch", lambda: check_first_batch(trainer)
    yield "worst batch", lambda: check_worst_batch(trainer, memory_bytes)
    yield "layout", lambda: _layout(trainer)


def _layout(trainer: GroupTrainer[Any]) -> Iterator[Finding]:
    """boresight's ways to compute a number, compared on the user's own model."""
    report = probe(trainer.policy.outer, trainer.encoder.processor)
    for check in report.checks:
        text = f"{check.name}: {check.figure}, required {check.bound}."
        if check.passed or not check.required:
            yield Finding("layout", "note", "", text)
        else:
            yield Finding("layout", "error", "layout", text, "Set layout='rows', and report this model.")


def _show_batch(trainer: GroupTrainer[Any], show: Callable[[Any], None]) -> None:
    show(legend())
    sampled = trainer.experience if isinstance(trainer, GRPOTrainer) else []
    items = sampled or next(iter(trainer.get_train_dataloader()))
    for text in shown_groups(items, trainer.encoder.tokenizer, trainer.facts.image_token_id):
        show(text)


def _caught(name: str, check: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """What a check yields; an error that ends it is one more finding."""
    try:
        yield from check()
    except BoresightError as error:
        found = next((kind for error_class, kind in CHECKS_OF if isinstance(error, error_class)), name)
        yield Finding(found, "error", "", str(error), "")
    except Exception as error:  # of a model, a template or a reward: what it would end training with
        yield Finding(
            name,
            "error",
            "",
            f"{type(error).__name__}: {error}",
            "Training would end with this error; its cause is outside boresight.",
        )

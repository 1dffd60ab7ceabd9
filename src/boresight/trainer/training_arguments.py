"""The options of `transformers.TrainingArguments`, read from its source.

Importing the class imports torch, which takes seconds and is too slow for `--help`. A test compares the options read here with the class.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType
from typing import Any, Literal, Union

from boresight.options import Declaration, Range, declarations

LOG_LEVELS = ("detail", "debug", "info", "warning", "error", "critical", "passive")


@dataclass(frozen=True, slots=True)
class Note:
    """boresight's declaration of an option of transformers."""

    help: str | None = None
    """boresight's help; None: the first sentence of transformers' help."""
    range: Range | None = None
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    """The choices, if transformers computes them."""


Count = Range(at_least=1)
NotNegative = Range(at_least=0)
Positive = Range(above=0)
Decay = Range(at_least=0, below=1)

NOTES: Mapping[str, Note] = {
    "accelerator_config": Note(metavar="JSON|FILE"),
    "adam_beta1": Note(range=Decay),
    "adam_beta2": Note(range=Decay),
    "adam_epsilon": Note(range=NotNegative),
    "data_seed": Note(range=NotNegative),
    "dataloader_num_workers": Note("Worker processes that read and prepare rows in advance.", NotNegative),
    "dataloader_prefetch_factor": Note(range=Count),
    "ddp_bucket_cap_mb": Note(range=Count),
    "ddp_timeout": Note(range=Count),
    "eval_delay": Note(range=NotNegative),
    "eval_steps": Note(
        "Optimizer steps between evaluations; below 1, a share of all steps. None: as logging_steps.", NotNegative
    ),
    "eval_strategy": Note("When to evaluate: never, every eval_steps, or after each epoch."),
    "gradient_accumulation_steps": Note("Micro-batches of one optimizer step on a rank.", Count),
    "gradient_checkpointing_kwargs": Note(metavar="JSON"),
    "learning_rate": Note(range=NotNegative),
    "log_level": Note(choices=LOG_LEVELS),
    "log_level_replica": Note(choices=LOG_LEVELS),
    "logging_steps": Note(range=NotNegative),
    "lr_scheduler_kwargs": Note(metavar="JSON"),
    "max_grad_norm": Note("Gradients are clipped to this norm; 0: no clipping.", NotNegative),
    "max_steps": Note(
        "Stop after this many optimizer steps; overrides num_train_epochs. -1: no limit.", Range(at_least=-1)
    ),
    "num_train_epochs": Note("Number of passes over the training rows.", Positive),
    "per_device_eval_batch_size": Note("Rows of one evaluation batch on a rank.", Count),
    "per_device_train_batch_size": Note("Rows of one micro-batch on a rank.", Count),
    "report_to": Note(
        "Trackers that receive the metrics: tensorboard, wandb, trackio, mlflow, all or none.", metavar="NAME"
    ),
    "resume_from_checkpoint": Note(
        "Resume from a checkpoint: its folder, or last for the newest of the run.", metavar="FOLDER|last"
    ),
    "run_name": Note("Name of the run in trackers."),
    "save_steps": Note("Optimizer steps between checkpoints; below 1, a share of all steps.", NotNegative),
    "save_strategy": Note(
        "When to save checkpoints: never, every save_steps, after each epoch, or after each new best evaluation."
    ),
    "save_total_limit": Note("Keep only this many checkpoints, the newest. 0: all.", NotNegative),
    "seed": Note("Seed of new adapters, of the order of rows, and of sampling.", NotNegative),
    "use_cpu": Note("Train on the CPU even if a GPU is available."),
    "warmup_steps": Note("Steps in which the learning rate rises from 0; below 1, a share of all steps.", NotNegative),
    "weight_decay": Note(range=NotNegative),
}

RANGES: Mapping[str, Range] = {name: note.range for name, note in NOTES.items() if note.range is not None}
"""For `check_options`: the valid ranges of transformers' options."""

UNSUPPORTED = {
    "auto_find_batch_size": "a step that does not fit in memory is cut into smaller micro-batches automatically",
    "batch_eval_metrics": "metrics are sums over groups, independent of the batches",
    "deepspeed": "use FSDP2 instead (--accelerate_config fsdp2)",
    "enable_jit_checkpoint": "it is not tested yet",
    "eval_accumulation_steps": "evaluation keeps no predictions",
    "eval_do_concat_batches": "evaluation keeps no predictions",
    "eval_use_gather_object": "evaluation keeps no predictions",
    "fp16_full_eval": "evaluation uses the precision of training",
    "bf16_full_eval": "evaluation uses the precision of training",
    "include_for_metrics": "evaluation keeps no predictions",
    "label_names": "groups contain their own labels",
    "label_smoothing_factor": "it would change the objective; DPOConfig has its own label_smoothing",
    "length_column_name": "micro-batches are cut by the actual tokens of the groups",
    "liger_kernel_config": "the language-model head is chunked already",
    "neftune_noise_alpha": "noise on a shared prompt differs from noise on its repetitions",
    "parallelism_config": "it is not tested yet; use DDP",
    "prediction_loss_only": "evaluation keeps no predictions",
    "torch_compile": "it is not tested yet",
    "torch_compile_backend": "it is not tested yet",
    "torch_compile_mode": "it is not tested yet",
    "torch_empty_cache_steps": "it is not tested yet",
    "train_sampling_strategy": "the loader takes the rows of a whole optimizer step at a time",
}
"""Options of TrainingArguments that no boresight trainer supports, each with the reason."""


def with_training_arguments(cls: type) -> tuple[Declaration, ...]:
    """The options of a method, such as `GRPOOptions`, and those of transformers that it does not redeclare, with the help of `NOTES`.

    An option that both declare is listed under transformers' heading.
    """
    own = {declared.name: declared for declared in declarations(cls)}
    theirs = {declared.name: declared for declared in training_arguments()}
    return (
        *(declared for name, declared in own.items() if name not in theirs),
        *(
            replace(own[name], heading=declared.heading) if name in own else _noted(declared)
            for name, declared in theirs.items()
        ),
    )


def _noted(declared: Declaration) -> Declaration:
    note = NOTES.get(declared.name, Note())
    sentence = f"{declared.help.split('. ')[0].removesuffix('.')}." if declared.help else "As in transformers."
    return replace(
        declared,
        help=note.help or sentence,
        range=note.range,
        metavar=note.metavar,
        literals=declared.choices or note.choices,
    )


# ---- The source -----------------------------------------------------------------------------------------------------------------

_HEADING = re.compile(r"    # --- (.+) ---$", re.MULTILINE)
_PLAIN: Mapping[str, Any] = {"str": str, "int": int, "float": float, "bool": bool, "dict": dict, "None": None}


@functools.cache
def training_arguments() -> tuple[Declaration, ...]:
    """Every option as transformers declares it, in the order of the source, with the heading of its section."""
    package = importlib.util.find_spec("transformers")
    assert package is not None
    assert package.submodule_search_locations is not None
    return tuple(_Source(Path(package.submodule_search_locations[0]) / "training_args.py").options())


class _Source:
    """The parsed source file of `TrainingArguments`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.text = path.read_text()
        self.tree = ast.parse(self.text)
        self.enums = dict(_enums(self.tree))
        self.places = {
            name.name: path.parent.joinpath(*(node.module or "").split(".")).with_suffix(".py")
            for node in self.tree.body
            if isinstance(node, ast.ImportFrom) and node.level == 1
            for name in node.names
        }

    def options(self) -> Iterator[Declaration]:
        cls = next(
            node for node in self.tree.body if isinstance(node, ast.ClassDef) and node.name == "TrainingArguments"
        )
        constants = {
            target.id: node.value.value
            for node in ast.walk(cls)
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        headings = {
            self.text.count("\n", 0, found.start()) + 1: found[1].lower() for found in _HEADING.finditer(self.text)
        }
        for node in cls.body:
            if (
                isinstance(node, ast.AnnAssign)
                and isinstance(node.target, ast.Name)
                and isinstance(node.value, ast.Call)
            ):
                given = {word.arg: word.value for word in node.value.keywords}
                metadata = given["metadata"]
                assert isinstance(metadata, ast.Dict)
                known = dict(zip(map(_value, metadata.keys), metadata.values, strict=True))
                kind = self.kind(node.annotation)
                yield Declaration(
                    name=node.target.id,
                    kind=kind,
                    default=_default(given, constants),
                    help=" ".join(str(_value(known.get("help"), "")).split()).replace("%%", "%"),
                    heading=headings[max(line for line in headings if line < node.lineno)],
                    literals=tuple(_value(known.get("choices"), ())) or self.choices(node.annotation),
                )

    def kind(self, node: ast.expr) -> Any:
        """An annotation as a type. A class that is not built in, such as an enumeration, becomes str."""
        match node:
            case ast.BinOp(left=left, right=right):
                return Union[self.kind(left), self.kind(right)]  # noqa: UP007 -- its members are computed
            case ast.Constant(value=None):
                return NoneType
            case ast.Name(id=name):
                return _PLAIN.get(name, str)
            case ast.Subscript(value=ast.Name(id="list"), slice=item):
                return list[self.kind(item)]
            case ast.Subscript(value=ast.Name(id="Literal"), slice=value):
                return Literal[_value(value)]
            case ast.Subscript(value=ast.Name(id=name)):
                return _PLAIN[name]
            case _:
                raise AssertionError(f"{self.path}: {ast.unparse(node)} is not a known type")

    def choices(self, node: ast.expr) -> tuple[str, ...]:
        """The values of the enumerations that an annotation names, except those in a list, whose default is not one of the values."""
        names = [part.id for part in _members(node) if isinstance(part, ast.Name) and part.id not in _PLAIN]
        return tuple(value for name in names for value in self.enum(name))

    def enum(self, name: str) -> tuple[str, ...]:
        if name not in self.enums and name in self.places:
            self.enums |= _enums(ast.parse(self.places[name].read_text()))
        return self.enums.get(name, ())


def _members(node: ast.expr) -> Iterator[ast.expr]:
    if isinstance(node, ast.BinOp):
        yield from _members(node.left)
        yield from _members(node.right)
    else:
        yield node


def _enums(tree: ast.Module) -> Iterator[tuple[str, tuple[str, ...]]]:
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and any(
            isinstance(base, ast.Name) and base.id == "ExplicitEnum" for base in node.bases
        ):
            values = [part.value for part in node.body if isinstance(part, ast.Assign)]
            yield node.name, tuple(value.value for value in values if isinstance(value, ast.Constant))  # pyright: ignore[reportReturnType]


def _value(node: ast.expr | None, otherwise: Any = None) -> Any:
    """The value of a literal, or `otherwise` if the source computes it."""
    try:
        return otherwise if node is None else ast.literal_eval(node)
    except ValueError:
        return otherwise


def _default(given: Mapping[str | None, ast.expr], constants: Mapping[str, Any]) -> Any:
    match given.get("default"), given.get("default_factory"):
        case None, ast.Name(id="list"):
            return []
        case ast.Name(id=name), None:  # the last assignment in the class body, which is for supported versions of torch
            return constants[name]
        case node, _:
            return _value(node)

"""`boresight doctor`: a run checked before it starts, a model checked, and a step that was not finite replayed."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from boresight.preflight import Finding

HELP = "check a run before it starts (doctor METHOD), a model, or a step that was not finite"
EPILOG = (
    "boresight doctor METHOD takes the flags of boresight METHOD, and checks that run: rows, lengths, gold answers, template, trained "
    "parts, the first and the worst batch, layout, sampler, disk. --show-batch prints the first batch, with the tokens that count in the "
    "loss in green; --memory-gib N checks against another device's memory. Exit code 0: nothing is wrong; 2: errors or warnings."
)
EXPLANATION = """boresight doctor checks before you train. Say what:

  a run, with the flags of its command (rows, rewards, template, memory, layout):
    boresight doctor grpo --model_name_or_path MODEL --dataset_name DATA --reward_funcs REWARD

  a model (are its numbers its own, whichever way they are computed?):
    boresight doctor --probe --model MODEL

  what a model needs (from its config alone), and a set-up that fits:
    boresight doctor --plan --model MODEL --gpus 8 --memory 80

  a step that was not finite (the run's log names the file):
    boresight doctor --replay FILE

More: boresight doctor --help."""
PLAN_FLAGS: dict[str, tuple[Callable[[str], Any], str, str]] = {
    "gpus": (int, "N", "how many GPUs (default: 1)"),
    "card": (str, "NAME", "their kind, which sets memory and rates: a100, h100, h200, b200, l40s (default: h100)"),
    "memory": (float, "GB", "the memory of each GPU in GB (default: the card's)"),
    "peak_flops": (float, "TFLOPS", "bf16 operations per second of a GPU, in 10^12 (default: the card's)"),
    "bandwidth": (float, "TB/s", "bandwidth of a GPU's memory (default: the card's)"),
    "link": (float, "GB/s", "bandwidth between GPUs of a machine, each way (default: the card's)"),
    "network": (float, "GB/s", "bandwidth between GPUs of different machines, each way (default: the card's)"),
    "utilisation": (float, "SHARE", "of the peak operations that are reached (default: 0.4)"),
    "bandwidth_share": (float, "SHARE", "of bandwidths that is reached (default: 0.6)"),
    "price": (float, "X", "of a GPU for an hour (default: 3)"),
    "prompts": (int, "N", "prompts of a step over all GPUs (default: 64)"),
    "completions": (int, "K", "completions of each prompt (default: 8)"),
    "prompt_tokens": (int, "N", "tokens of a prompt, with those of its images (default: 1024)"),
    "image_tokens": (int, "N", "tokens of a prompt that stand for images (default: 768)"),
    "completion_tokens": (int, "N", "tokens of a completion (default: 512)"),
}
"""Flag of a plan → how it is read, its unit, and its help. Defaults are in `boresight.doctor.cost`, which imports torch."""
COLOURS = {"error": "red", "warning": "yellow", "note": ""}


def add_options(parser: argparse.ArgumentParser) -> None:
    """The model and the checks."""
    parser.epilog = EPILOG
    parser.add_argument(
        "--model", help="a folder or a hub id (with --replay, the default is the run's checkpoint before the step)"
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--probe", action="store_true", help="check the invariants on the model and report its layout")
    what.add_argument(
        "--replay",
        metavar="FILE",
        help="run the groups of a step that was not finite again, and name the first module that goes bad; the run's log names the file",
    )
    what.add_argument(
        "--plan",
        action="store_true",
        help="what training the model needs on --gpus of --memory; reads its config alone",
    )
    group = parser.add_argument_group(
        "the plan", "With --plan. The seconds of a step are simulated from rates; see docs/how-to/many-gpus.md."
    )
    for flag, (kind, metavar, text) in PLAN_FLAGS.items():
        group.add_argument(f"--{flag}", f"--{flag.replace('_', '-')}", type=kind, metavar=metavar, help=text)


def run(options: argparse.Namespace) -> None:
    """Probe the model or replay the step, and print the report. A failed check is bad input."""
    from rich.console import Console

    from boresight.errors import ConfigError, ModelError

    console = Console()
    if not options.plan and (given := [flag for flag in PLAN_FLAGS if getattr(options, flag) is not None]):
        raise ConfigError(f"--{given[0]} is about a plan: add --plan, or leave it out.")
    if options.replay is not None:
        from boresight.doctor.replay import replay

        found = replay(options.replay, options.model)
        console.print(found)
        console.print(found.advice, markup=False)
        return
    if not options.model:
        raise ConfigError("--probe and --plan are about a model: name it with --model.")
    if options.plan:
        _print_plan(options, console)
        return
    from boresight.doctor.probe import probe

    report = probe(options.model)
    console.print(report)
    if not report.passed:
        raise ModelError(f"{options.model} fails a check: training would give wrong results without an error.")


def _print_plan(options: argparse.Namespace, console: Console) -> None:
    """Print what a model needs, and a set-up that fits.

    Raises:
        ConfigError: a number is out of range, or there is no such card.
    """
    # These import torch, which takes seconds, and no other check of a model needs them.
    from boresight.doctor.cost import CARDS, Rates, Work
    from boresight.doctor.plan import GB, plan
    from boresight.errors import ConfigError, nearest

    given: dict[str, Any] = {flag: value for flag in PLAN_FLAGS if (value := getattr(options, flag)) is not None}
    name = given.pop("card", "h100")
    for flag, value in given.items():
        if not (value > 0 or (flag in ("image_tokens", "price") and value == 0)):
            raise ConfigError(f"--{flag} {value:g}: it must be above 0.")
        if flag in ("utilisation", "bandwidth_share") and value > 1:
            raise ConfigError(f"--{flag} {value:g}: it is a share of the peak, at most 1.")
    if name not in CARDS:
        raise ConfigError(
            f"--card {name}: it is none of {', '.join(CARDS)}.{nearest(name, CARDS)} For another, set --memory, --peak_flops, --bandwidth, "
            "--link and --network."
        )
    units = {"memory": ("memory", GB), "peak_flops": ("flops", 1e12), "bandwidth": ("bandwidth", 1e12)}
    units |= {"link": ("link", GB), "network": ("network", GB)}
    card = replace(CARDS[name], **{field: unit * given[flag] for flag, (field, unit) in units.items() if flag in given})
    rates = Rates(card, **{flag: given[flag] for flag in ("utilisation", "bandwidth_share", "price") if flag in given})
    work = Work(**{field.name: given[field.name] for field in fields(Work) if field.name in given})
    shown, settings = plan(options.model, given.get("gpus", 1), card.memory / GB, work, rates)
    console.print(shown)
    print(settings, end="")


def check_run(method: str, words: Sequence[str]) -> int:
    """Check the run of a training command, print what is found, and return the exit code: 0, or 2 if there are errors or warnings.

    Args:
        method: the training command.
        words: its flags, and those of doctor.

    Raises:
        ConfigError: the flags cannot be read.
    """
    from boresight.cli.command import read_command

    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--show-batch", "--show_batch", action="store_true")
    own.add_argument("--memory-gib", "--memory_gib", type=float)
    options, rest = own.parse_known_args(list(words))
    if {"-h", "--help", "--help-all"} & set(rest):
        print(f"{EPILOG}\n")
    command = read_command(method, rest, launches=False)

    # Everything below imports torch, which takes seconds, and an unreadable flag needs none of it.
    from rich.console import Console

    from boresight.cli.adapter import peft_config
    from boresight.cli.rows import load_datasets
    from boresight.doctor.check_up import PlannedRun, check_up

    def arguments() -> dict[str, object]:
        return {"peft_config": peft_config(command), **command.sampled()}

    planned = PlannedRun(
        trainer=command.method.trainer_class(),
        model=command.model.model_name_or_path,
        config=command.training,
        rows=partial(load_datasets, command),
        arguments=arguments,
    )
    memory = None if options.memory_gib is None else int(options.memory_gib * 2**30)
    console = Console(soft_wrap=True, highlight=False)
    return _printed(check_up(planned, memory_bytes=memory, show=console.print if options.show_batch else None))


def _printed(findings: Iterable[Finding]) -> int:
    """Print findings as they are found, and return the exit code."""
    from rich.console import Console
    from rich.text import Text

    from boresight.terminal import printable

    console = Console(soft_wrap=True, highlight=False)
    counts = {"error": 0, "warning": 0, "note": 0}
    for finding in findings:
        counts[finding.level] += 1
        console.print(Text(printable(f"{finding.level:7}  {finding.check}: {finding}"), style=COLOURS[finding.level]))
    console.print(f"{counts['error']} errors, {counts['warning']} warnings")
    return 2 if counts["error"] or counts["warning"] else 0

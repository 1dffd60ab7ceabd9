"""The model card: what a model was made from, how, and how well it does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from boresight.files import model_name
from boresight.options import declarations
from boresight.report.jsonl import read_lines
from boresight.terminal import printable
from boresight.trainer.config import DPOConfig, SFTConfig
from boresight.trainer.grpo_config import GRPOConfig, RLOOConfig
from boresight.trainer.identity import is_changed

CONFIGS = {"SFTTrainer": SFTConfig, "DPOTrainer": DPOConfig, "GRPOTrainer": GRPOConfig, "RLOOTrainer": RLOOConfig}
PACKAGES = ("boresight", "torch", "transformers", "peft", "datasets", "vllm")
FIGURES = (
    "reward", "loss", "eval_reward", "eval_loss", "entropy", "kl", "mean_token_accuracy", "eval_mean_token_accuracy",
    "completions/mean_length", "num_tokens",
)  # fmt: skip
"""Metrics of the last log line that has them."""


def model_card(run: Path, *, base: str, is_adapter: bool, verified: str, identity: Mapping[str, Any], step: int) -> str:
    """The card as Markdown, with the front matter that model hubs read.

    Args:
        run: the run folder, whose metrics are quoted.
        base: the model that training began with.
        verified: what `verify` found, as sentences.
        identity: `run.json`, or the part of it in a manifest.
        step: optimizer steps done.
    """
    method = str(identity.get("method", "unknown")).removesuffix("Trainer")
    front = {
        "base_model": base,
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["boresight", method.lower()],
    }
    rows = {
        "method": method,
        "base model": base,
        "optimizer steps": step,
        "training data": identity.get("train_dataset") or "unknown",
        "rewards": ", ".join(identity.get("rewards", ())),
    }
    options = {
        name: value for name, value in (identity.get("options") or {}).items() if name in _shown_options(identity)
    }
    loads = "AutoModelForImageTextToText.from_pretrained(FOLDER)"
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# {method} of {_cell(model_name(base))}",
        f"Trained with boresight. Plain transformers loads it: `{loads}`.",
        _table("", {name: value for name, value in rows.items() if value not in ("", None)}),
        f"## Verified\n\n{verified}",
        _table("## Figures of the last log", last_figures(run)),
        _table("## Options that differ from the defaults", options),
        _table("## Versions", dict(_versions())),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def last_figures(run: Path) -> dict[str, float]:
    """The newest value of each of `FIGURES`; empty where the run has no metrics."""
    path = run / "metrics.jsonl"
    found: dict[str, float] = {}
    for line in read_lines(path) if path.exists() else ():
        found |= {name: line[name] for name in FIGURES if line.get(name) is not None}
    return found


def _shown_options(identity: Mapping[str, Any]) -> set[str]:
    """Options of the method whose values are not its defaults, without paths and secrets."""
    config = CONFIGS.get(str(identity.get("method")))
    if config is None:
        return set()
    defaults = {declared.name: declared.default for declared in declarations(config)}
    hidden = {
        name
        for name in defaults
        if name.endswith(("_dir", "_path", "_token")) or name in ("run_name", "resume_from_checkpoint")
    }
    return {
        name
        for name, value in (identity.get("options") or {}).items()
        if name in defaults and is_changed(name, value, defaults[name])
    } - hidden


def _versions() -> list[tuple[str, str]]:
    found = []
    for package in PACKAGES:
        try:
            found.append((package, version(package)))
        except PackageNotFoundError:
            continue
    return found


def _table(title: str, rows: Mapping[str, Any]) -> str:
    if not rows:
        return ""
    lines = [
        f"| {_cell(name)} | {_cell(value if isinstance(value, str) else json.dumps(value))} |"
        for name, value in rows.items()
    ]
    return "\n".join([*([title, ""] if title else []), "| | |", "|---|---|", *lines])


def _cell(value: Any) -> str:
    """Text of others in a cell of a table: shown as written."""
    text = " ".join(printable(value).split())
    for mark in "\\`*_[]<>|#":
        text = text.replace(mark, f"\\{mark}")
    return text

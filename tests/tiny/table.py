"""`make families`: every family that can be built tiny, tried in every way, as a table in docs/reference/families.md.

    python -m tests.tiny.table                every family
    python -m tests.tiny.table llava gemma3   some, whose rows of the page are written anew

Each family is built with random weights of its real class, with its real processor, in float32. Its layout is chosen as at the start of any
training; SFT, DPO and GRPO run two steps each on rows with 0, 1 and 2 images; and the folder that SFT saved is loaded by plain
transformers, whose own forward must give the trained policy's log-probabilities.
"""

from __future__ import annotations

import logging
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoProcessor

from boresight import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
from boresight.data.made_up import made_up_examples, noise
from boresight.errors import UserError
from boresight.model.forward import GroupForward
from boresight.model.load import load_model
from boresight.model.verification import Oracle, apart
from boresight.rollout.choice import SAYS, choose_sampling
from tests.tiny import ALL, build_tiny

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "families.md"
METHODS = ("SFT", "DPO", "GRPO")
RELOAD = 1e-4
"""Largest difference of log-probabilities, in nats, between the policy and its saved folder."""


@dataclass
class Outcome:
    """What became of one family."""

    family: str
    layout: str = "–"
    sampling: str = "–"
    exactness: str = "–"
    """|Δ log-prob| of the layout from the model's own forward."""
    methods: dict[str, str] = field(default_factory=dict)
    """"yes", or the error, by method."""
    reload: str = "–"
    notes: list[str] = field(default_factory=list)

    @property
    def trains(self) -> bool:
        """By all three methods, with an equal reload."""
        return all(self.methods.get(name) == "yes" for name in METHODS) and self.reload.startswith("yes")

    @classmethod
    def read(cls, row: str) -> Outcome:
        """The inverse of `row`."""
        family, layout, exactness, *methods, sampling, reload, notes = re.split(r" ?(?<!\\)\| ?", row.strip())[1:-1]
        found = dict(zip(METHODS, methods, strict=True))
        return cls(family, layout, sampling, exactness, found, reload, [notes.replace("\\|", "|")])

    def row(self) -> str:
        methods = (self.methods.get(name, "–") for name in METHODS)
        cells = (self.family, self.layout, self.exactness, *methods, self.sampling, self.reload, "; ".join(self.notes))
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def rows(counts: Sequence[int], *, strings: bool = False) -> list[dict[str, Any]]:
    """Three rows with so many images in turn.

    Args:
        strings: plain prompts, as a processor without a chat template takes them.
    """
    generator = torch.Generator().manual_seed(1)
    made = []
    for place in range(3):
        images = [noise((64, 96) if number else (80, 64), generator) for number in range(counts[place % len(counts)])]
        text = f"what color is shape {place}?"
        content = [*({"type": "image"} for _ in images), {"type": "text", "text": text}]
        prompt = f"Question: {text} Answer:" if strings else [{"role": "user", "content": content}]
        made.append({"prompt": prompt, "images": images})
    return made


def said(text: str, row: dict[str, Any]) -> Any:
    """A completion in the form of its row's prompt."""
    if isinstance(row["prompt"], str):
        return f" {text}"
    return [{"role": "assistant", "content": [{"type": "text", "text": text}]}]


def by_length(completions: list[Any], **_: Any) -> list[float]:
    return [float(len(str(completion)) % 5) for completion in completions]


def trainer_of(method: str, folder: Path, data: list[dict[str, Any]], out: str) -> Any:
    options: dict[str, Any] = {
        "output_dir": out,
        "max_steps": 2,
        "learning_rate": 1e-3,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "logging_steps": 1,
        "per_device_train_batch_size": 3,
    }
    if method == "SFT":
        records = [{**row, "completion": said("a red circle", row)} for row in data]
        return SFTTrainer(str(folder), args=SFTConfig(**options), train_dataset=records)
    if method == "DPO":
        records = [{**row, "chosen": said("a red circle", row), "rejected": said("no", row)} for row in data]
        return DPOTrainer(str(folder), args=DPOConfig(**options), train_dataset=records)
    config = GRPOConfig(**options | {"per_device_train_batch_size": 6}, num_generations=2, max_completion_length=4)
    return GRPOTrainer(str(folder), by_length, args=config, train_dataset=data)


def tried(family: str) -> Outcome:
    """Try one family in every way."""
    outcome = Outcome(family)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        try:
            build_tiny(family, folder, vocab_size=512)
        except Exception as error:  # a family's class may fail in any way; the table says how
            outcome.notes.append(f"not built: {first_line(error)}")
            return outcome
        counts = [0, 1, 2]
        for method in METHODS:
            outcome.methods[method], counts = attempt(outcome, method, folder, counts, f"{scratch}/{method}")
    return outcome


def attempt(outcome: Outcome, method: str, folder: Path, counts: list[int], out: str) -> tuple[str, list[int]]:
    """Train by one method. Rows that the processor refuses are left out, which the notes then say."""
    strings = getattr(AutoProcessor.from_pretrained(folder), "chat_template", None) is None
    for kept, note in ((counts, ""), ([1, 2], "takes no prompt without an image"), ([1], "one image per prompt")):
        try:
            trainer = trainer_of(method, folder, rows(kept, strings=strings), out)
            before = {name: weight.detach().clone() for name, weight in trainer.policy.model.named_parameters()}
            trainer.train()
            moved = any((weight != before[name]).any() for name, weight in trainer.policy.model.named_parameters())
            if trainer.state.global_step != 2 or not moved:
                return f"{trainer.state.global_step} steps, weights {'moved' if moved else 'unmoved'}", kept
            if method == "SFT":
                describe(outcome, trainer, out)
            for limit in (note, "takes plain strings, since its processor has no chat template" if strings else ""):
                if limit and limit not in outcome.notes:
                    outcome.notes.append(limit)
            return "yes", list(kept)
        except UserError as error:
            reason = first_line(error, "refuses")
            if "cannot be trained" in str(error):
                outcome.notes = [short(str(error))]
                return "refused", counts
            if "the processor refuses" not in str(error):
                return reason, counts
        except Exception as error:  # a family's class may fail in any way; the table says how
            return first_line(error), counts
    return reason, counts


@torch.no_grad()
def describe(outcome: Outcome, trainer: Any, out: str) -> None:
    """Layout, sampling and reload of a trained policy."""
    policy = trainer.policy
    verified = policy.verification
    outcome.layout = verified.layout if verified.joins else f"{verified.layout}, by group"
    outcome.exactness = next(
        check.figure
        for check in reversed(verified.checks)
        if check.name.endswith("|Δ log-prob| from the model's own forward")
    )
    policy.model.eval()
    features = policy.image_outputs if policy.takes_features else None
    sampling = choose_sampling(policy.outer, features, policy.examples)
    outcome.sampling = sampling.way
    for reason in (verified.reason, sampling.reason and f"{SAYS[sampling.way]}: {sampling.reason}"):
        if reason and reason not in outcome.notes:
            outcome.notes.append(short(reason))
    trainer.save_model(f"{out}/saved")
    kind = getattr(transformers, AutoConfig.from_pretrained(f"{out}/saved").architectures[0])
    loaded = kind.from_pretrained(f"{out}/saved").eval()
    AutoProcessor.from_pretrained(f"{out}/saved")
    examples = made_up_examples(trainer.encoder)
    far = apart(*(Oracle(model.requires_grad_(False), examples).own.measured.logp for model in (policy.model, loaded)))
    outcome.reload = f"yes, {far:.0e}" if far <= RELOAD else f"no, {far:.0e}"
    if (found := in_bfloat16(trainer, f"{out}/saved")) != (outcome.layout, outcome.sampling):
        outcome.notes.append(f"in bfloat16 {found[0]} and {found[1]}")


def in_bfloat16(trainer: Any, folder: str) -> tuple[str, str]:
    """Layout and sampling of the saved folder, loaded in bfloat16."""
    model = load_model(folder, dtype="bfloat16").eval()
    examples = trainer.policy.examples
    with torch.enable_grad():
        policy = GroupForward(model, trainer.policy.facts, examples=examples)
    verified = policy.verification
    sampling = choose_sampling(model, policy.image_outputs if policy.takes_features else None, examples)
    return verified.layout if verified.joins else f"{verified.layout}, by group", sampling.way


def first_line(error: Exception, word: str = "") -> str:
    lines = str(error).splitlines() or [""]
    lines = [line for line in lines if word in line] or lines
    return short(f"{type(error).__name__}: {lines[0]}")


def short(text: str) -> str:
    text = re.sub(r"\s*\(required: [^)]*\)", "", text)
    return text if len(text) <= 200 else text[:197] + "…"


HEAD = """# Families

<!-- written by `make families` -->

Every family was built tiny, with random weights of its real class (transformers {version}) and its real processor, in float32. At the
start of a training run boresight compares its layouts with the model's own forward and takes the fastest that is equal
([Groups](../group.md)). Here each family trained for two steps by each method, on rows with 0, 1 and 2 images, and its saved folder was
loaded by plain transformers. In bfloat16 layout and sampling are the same, unless the last column says otherwise.

**{trains} of {total} families train by all three methods with an equal reload; {shared} of them share prompts. {refused} are refused when
they are loaded; the last column says why.**

- *layout*: `shared`, a prompt runs once; `shared, by group`, the same with one group per pass; `rows`, one row per completion, images
  encoded once; `plain`, the model's own forward for every completion.
- *exactness*: the largest difference of a log-probability from the model's own forward, in nats.
- *sampling*: `branches`, completions share their prompt's cache; `rows`, one row per completion; `plain`, without a cache.
- *reload*: the largest difference of a log-probability between the trained policy and its saved folder.

| family | layout | exactness | SFT | DPO | GRPO | sampling | reload | why not faster, and limits |
|---|---|---|---|---|---|---|---|---|
"""


def page(outcomes: Sequence[Outcome]) -> str:
    trains = [outcome for outcome in outcomes if outcome.trains]
    head = HEAD.format(
        version=transformers.__version__,
        trains=len(trains),
        total=len(outcomes),
        shared=sum(outcome.layout.startswith("shared") for outcome in trains),
        refused=sum(outcome.methods.get("SFT") == "refused" for outcome in outcomes),
    )
    return head + "\n".join(outcome.row() for outcome in outcomes) + "\n"


def quiet(function: Callable[[], Outcome]) -> Outcome:
    """Without the lines that training prints."""
    logging.disable(logging.WARNING)
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        return function()


def written() -> dict[str, Outcome]:
    """The outcomes on the page, by family."""
    lines = PAGE.read_text().splitlines() if PAGE.exists() else []
    rows = [Outcome.read(line) for line in lines if line.startswith("| ") and not line.startswith("| family")]
    return {outcome.family: outcome for outcome in rows}


def main(names: Sequence[str]) -> None:
    outcomes = written() if names else {}
    for family in names or sorted(ALL):
        start = time.perf_counter()
        outcomes[family] = quiet(lambda family=family: tried(family))
        print(f"{outcomes[family].row()}  {time.perf_counter() - start:.0f} s", flush=True)
        PAGE.write_text(page([outcomes[each] for each in sorted(outcomes)]))
    print(PAGE.read_text().split("**")[1])


if __name__ == "__main__":
    main(sys.argv[1:])

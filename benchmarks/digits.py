"""Handwritten digits: GRPO by boresight and by TRL 1.16 from one checkpoint, on the same rows, with held-out accuracy on the way.

    .venv/bin/python benchmarks/digits.py [--seeds 0 1 2] [--sides boresight trl] [OPTIONS]
    .venv/bin/python benchmarks/digits.py --lockstep
    .venv/bin/python benchmarks/digits.py --quick

For each seed, SFT makes a tiny Qwen2.5-VL that knows the form of an answer and is unsure of the digit. Each side then runs GRPO from that
checkpoint. Every so many steps the 300 held-out digits are asked, greedily and by sampling at temperature 1, and one line is added to
OUTPUT/SIDE_SEED.jsonl: accuracies, share in the right format, entropy, divergence from the start, recall of each digit, and the rewards and
gradient norm of the steps since.

`--lockstep` hands TRL the completions that boresight samples, so that the two runs can be compared step by step: rewards, gradient norms,
and the weights at the end.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }

import torch
from datasets import disable_progress_bars
from digits_rows import Row, for_boresight, for_trl, scheduled, split_rows
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor, PrinterCallback, TrainerCallback, set_seed
from transformers.utils import logging
from trl import GRPOConfig as TRLConfig
from trl import GRPOTrainer as TRLTrainer

from boresight import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
from boresight.data.encode import Encoder
from boresight.data.sources import RowDataset
from boresight.demo.tiny import build_tiny
from boresight.model.forward import GroupForward
from boresight.model.load import load_processor, model_facts
from boresight.rewards import answer_format_reward, exact_answer_reward
from boresight.rewards.extract import final_answer
from boresight.rollout.hf import HFSampler
from boresight.sampling import SamplingSettings
from boresight.types import Group

MAX_COMPLETION_LENGTH = 16
NUM_SAMPLED = 4
"""Sampled answers to each held-out question."""


def format_reward(completions: list[Any], **columns: Any) -> list[float]:
    """As training knows that the template does not open ``<think>``, which TRL does not pass."""
    return answer_format_reward(completions, think_opened=[False] * len(completions))


REWARDS = {"both": [format_reward, exact_answer_reward], "exact": [exact_answer_reward]}
LOGGED = ("reward", "reward_std", "frac_reward_zero_std", "grad_norm", "entropy", "learning_rate")
QUIET = {
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "logging_steps": 1,
}


@dataclass(frozen=True, slots=True)
class Effort:
    """What both sides are given."""

    steps: int = 100
    prompts: int = 64
    num_generations: int = 8
    learning_rate: float = 5e-4
    lr_scheduler_type: str = "linear"
    warmup_steps: int = 10
    temperature: float = 1.0
    beta: float = 0.0
    rewards: str = "both"
    sft_steps: int = 60
    ask_every: int = 25

    def options(self, seed: int) -> dict[str, Any]:
        """The options of a `GRPOConfig`, boresight's or TRL's."""
        return QUIET | {
            "max_steps": self.steps,
            "per_device_train_batch_size": self.prompts * self.num_generations,
            "num_generations": self.num_generations,
            "max_completion_length": MAX_COMPLETION_LENGTH,
            "learning_rate": self.learning_rate,
            "lr_scheduler_type": self.lr_scheduler_type,
            "warmup_steps": self.warmup_steps,
            "temperature": self.temperature,
            "beta": self.beta,
            "shuffle_dataset": False,
            "seed": seed,
        }


class HeldOut(TrainerCallback):
    """Asks the held-out digits before the first step, every so many steps and at the end.

    Args:
        start: the checkpoint that divergence is measured from.
        file: gets a line each time.
    """

    def __init__(self, start: Path, rows: Sequence[Row], every: int, file: Path) -> None:
        self.start: Any = AutoModelForImageTextToText.from_pretrained(start, dtype=torch.float32).eval()
        processor = load_processor(None, self.start, start)
        self.facts, self.tokenizer = model_facts(self.start, processor), processor.tokenizer
        encoder, data = Encoder(processor, facts=self.facts), RowDataset(for_boresight(rows))
        self.prompts = [encoder.prompt(data[place]) for place in range(len(data))]
        self.gold = [row["solution"] for row in rows]
        self.every, self.file = every, file
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.unlink(missing_ok=True)
        self.logs: list[dict[str, Any]] = []
        self.lines: list[dict[str, Any]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if "loss" in logs:
            self.logs.append(logs)

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step % self.every == 0:
            self.ask(model, state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.ask(model, state.global_step)

    def ask(self, model: nn.Module, step: int) -> None:
        """Measure, unless this step was measured already."""
        if self.lines and self.lines[-1]["step"] == step:
            return
        greedy = [final_answer(group.completions[0].text).strip() for group in self._answers(model, 1, 0.0)]
        groups = self._answers(model, NUM_SAMPLED, 1.0)
        texts = [completion.text for group in groups for completion in group.completions]
        gold = [answer for answer in self.gold for _ in range(NUM_SAMPLED)]
        hits = Counter(answer for answer, said in zip(self.gold, greedy, strict=True) if answer == said)
        line = {
            "step": step,
            "greedy": hits.total() / len(self.gold),
            "sampled": _mean(exact_answer_reward(completions=texts, solution=gold)),
            "format": _mean(format_reward(texts)),
            **self._distribution(model, groups),
            "recall": {digit: hits[digit] / num for digit, num in sorted(Counter(self.gold).items())},
            "answers": dict(Counter(greedy).most_common(12)),
            **self._training(),
        }
        self.lines.append(line)
        with self.file.open("a") as file:
            file.write(json.dumps(line) + "\n")
        shown = {name: round(value, 3) for name, value in line.items() if isinstance(value, int | float)}
        print(self.file.stem, json.dumps(shown), flush=True)

    def _answers(self, model: nn.Module, num: int, temperature: float) -> list[Group]:
        sampler = HFSampler(lambda: model, self.facts, self.tokenizer)
        settings = SamplingSettings(
            num_completions=num, max_completion_length=MAX_COMPLETION_LENGTH, temperature=temperature, seed=1
        )
        parts = [self.prompts[place : place + 100] for place in range(0, len(self.prompts), 100)]
        return [group for part in parts for group in sampler.sample(part, settings)]

    @torch.no_grad()
    def _distribution(self, model: nn.Module, groups: Sequence[Group]) -> dict[str, float]:
        """Entropy of a token, and the divergence of a completion from the start, in nats, estimated on what was sampled."""
        policy, start = (GroupForward(each, self.facts, layout="rows") for each in (model, self.start))
        entropy = divergence = 0.0
        tokens = sum(group.num_completion_tokens for group in groups)
        for place in range(0, len(groups), 50):
            part = groups[place : place + 50]
            ours, theirs = (each(part, ban_modalities=True, entropy=True) for each in (policy, start))
            divergence += float(((ours.logp - theirs.logp) * ours.mask).sum())
            entropy += float((ours.entropy * ours.mask).sum())  # pyright: ignore[reportOptionalOperand]
        return {"entropy": entropy / tokens, "divergence": divergence / len(groups) / NUM_SAMPLED}

    def _training(self) -> dict[str, float]:
        """Means of what was logged since the last time."""
        names = [name for name in self.logs[-1] if name in LOGGED or name.startswith("rewards/")] if self.logs else []
        means = {
            f"train/{name}": _mean([float(log[name]) for log in self.logs if name in log])
            for name in names
            if not name.endswith("/std")
        }
        self.logs.clear()
        return means


def _mean(values: Sequence[float | None]) -> float:
    return sum(value or 0.0 for value in values) / len(values)


def make_start(folder: Path, rows: Sequence[Row], seed: int, effort: Effort) -> Path:
    """A checkpoint by SFT, made if it is not there."""
    start = folder / f"start_{seed}_{effort.sft_steps}"
    if not start.exists():
        weights = build_tiny("qwen2_5_vl", folder / f"random_{seed}", seed=seed, vocab_size=576)
        config: dict[str, Any] = QUIET | {"max_steps": effort.sft_steps, "per_device_train_batch_size": 32}
        trainer = SFTTrainer(
            str(weights),
            SFTConfig(output_dir=str(folder / f"sft_{seed}"), learning_rate=2e-3, seed=seed, verdict_steps=0, **config),
            for_boresight(rows, demonstrated=True),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        trainer.save_model(str(start))
    return start


def boresight_trainer(start: Path, rows: Sequence[Row], seed: int, effort: Effort, output: Path) -> GRPOTrainer:
    config = GRPOConfig(
        output_dir=str(output),
        num_prompts_per_step=effort.prompts,
        verdict_steps=0,
        gold_check="off",
        **effort.options(seed),
    )
    return GRPOTrainer(str(start), REWARDS[effort.rewards], config, for_boresight(rows))


def trl_trainer(start: Path, rows: Sequence[Row], seed: int, effort: Effort, output: Path) -> Any:
    model = AutoModelForImageTextToText.from_pretrained(start, dtype=torch.float32)
    names = ("image", "video", "vision_start", "vision_end")
    config = TRLConfig(
        output_dir=str(output),
        bf16=False,
        # Ids that only the processor may place: TRL does not sample them then, and still gives them probability in the loss.
        generation_kwargs={"suppress_tokens": [getattr(model.config, f"{name}_token_id") for name in names]},
        **effort.options(seed),
    )
    processor = AutoProcessor.from_pretrained(start)
    rewards: Any = REWARDS[effort.rewards]
    return TRLTrainer(model, rewards, args=config, train_dataset=for_trl(rows), processing_class=processor)


TRAINERS = {"boresight": boresight_trainer, "trl": trl_trainer}


def compare(
    side: str, start: Path, train: Sequence[Row], test: Sequence[Row], seed: int, effort: Effort, folder: Path
) -> HeldOut:
    """One run of one side."""
    set_seed(seed)
    rows = scheduled(train, effort.steps * effort.prompts, seed)
    trainer: Any = TRAINERS[side](start, rows, seed, effort, folder / f"{side}_{seed}")
    trainer.remove_callback(PrinterCallback)
    held_out = HeldOut(start, test, effort.ask_every, folder / f"{side}_{seed}.jsonl")
    trainer.add_callback(held_out)
    trainer.train()
    return held_out


def lockstep(start: Path, train: Sequence[Row], seed: int, effort: Effort, folder: Path) -> tuple[float, float]:
    """Both sides with the completions that boresight samples.

    Ids that only the processor may place are never sampled, but they keep their probability in boresight's loss here, as in TRL's.

    Returns:
        How far boresight's weights have moved, and how far TRL's ended from them.
    """
    rows = scheduled(train, effort.steps * effort.prompts, seed)
    ours: Any = boresight_trainer(start, rows, seed, effort, folder / "lockstep_boresight")
    ours.policy.facts = replace(ours.facts, modality_ids=())
    ours.args.vllm_importance_sampling_correction = False  # of the sampler, which gives those ids none
    sampled: list[list[Group]] = []
    sample = ours.sampler.sample

    def kept(*given: Any) -> list[Group]:
        sampled.append(sample(*given))
        return sampled[-1]

    ours.sampler.sample = kept
    theirs = trl_trainer(start, rows, seed, effort, folder / "lockstep_trl")

    def generate(*_: Any, **__: Any) -> tuple[list[list[int]], None]:
        groups = sampled[theirs.state.global_step]
        return [completion.ids.tolist() for group in groups for completion in group.completions], None

    theirs._generate_single_turn = generate
    for trainer in (ours, theirs):
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    for own, other in zip(ours.state.log_history, theirs.state.log_history, strict=True):
        if "reward" in own:
            figures = (f"{name} {own[name]:.5f} {other[name]:.5f}" for name in ("reward", "grad_norm"))
            print(f"step {own['step']}:", *figures)
    begun = dict(AutoModelForImageTextToText.from_pretrained(start, dtype=torch.float32).named_parameters())
    mine, other = (dict(trainer.model.named_parameters()) for trainer in (ours, theirs))
    moved, apart = distance(mine, begun), distance(mine, other)
    print(f"weights moved {moved:.6f}, differ {apart:.6f}")
    return moved, apart


def distance(some: dict[str, nn.Parameter], other: dict[str, nn.Parameter]) -> float:
    """The Euclidean distance of two models' weights."""
    return sum(float((value - other[name]).detach().double().square().sum()) for name, value in some.items()) ** 0.5


def main(arguments: Sequence[str] | None = None) -> list[HeldOut]:
    effort = Effort()
    parser = argparse.ArgumentParser(description="Digits: GRPO by boresight and by TRL from one checkpoint.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--sides", nargs="+", choices=list(TRAINERS), default=list(TRAINERS))
    parser.add_argument("--edge", type=int, default=32, help="pixels along an image (%(default)s)")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/digits"), help="(%(default)s)")
    parser.add_argument("--lockstep", action="store_true", help="hand both sides the same completions")
    parser.add_argument("--quick", action="store_true", help="a few steps on a few digits, to see that all runs")
    for name in Effort.__dataclass_fields__:
        default = getattr(effort, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default, help="(%(default)s)")
    options = parser.parse_args(arguments)
    effort = Effort(**{name: getattr(options, name) for name in Effort.__dataclass_fields__})
    if options.quick:
        effort = replace(effort, steps=3, prompts=4, num_generations=4, sft_steps=8, ask_every=2)
    logging.disable_progress_bar()
    disable_progress_bars()
    train, test = split_rows(options.edge, 60 if options.quick else None)
    found = []
    for seed in options.seeds:
        start = make_start(options.output_dir, train, seed, effort)
        if options.lockstep:
            lockstep(start, train, seed, effort, options.output_dir)
            continue
        found += [compare(side, start, train, test, seed, effort, options.output_dir) for side in options.sides]
    return found


if __name__ == "__main__":
    main()

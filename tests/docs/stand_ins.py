"""What stands in for a model hub, a large data set and a long run when the code on the pages is tried.

The code that runs is the page's own, line by line; three things are exchanged in it, and nothing else:

- a model of the hub (`MODELS`) for a folder with a tiny model of the same class with random weights,
- a data set of the hub (`DATASETS`), by name or by file, for a few rows of easy-VQA in the same columns,
- in calls of a trainer's configuration, how long it runs (`SHORT`): the value is set, whatever the page says.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from boresight.demo.easy_vqa import load_easy_vqa, question_text
from tests.docs.pages import Block
from tests.tiny import build_tiny

MODELS = {
    "Qwen/Qwen2.5-VL-3B-Instruct": "qwen2_5_vl",
    "Qwen/Qwen2.5-VL-7B-Instruct": "qwen2_5_vl",
    "HuggingFaceTB/SmolVLM-256M-Instruct": "smolvlm",
}
"""Hub id → family of the tiny model."""

DATASETS = {
    "lmms-lab/multimodal-open-r1-8k-verified": "problems",
    "questions.jsonl": "questions",
    "openbmb/RLAIF-V-Dataset": "pairs",
    "pairs.jsonl": "pairs",
    "demonstrations.jsonl": "demonstrations",
}
"""Hub id or file on the page → kind of rows."""

SHORT = {
    "SFTConfig": {"max_steps": 1},
    "DPOConfig": {"max_steps": 1},
    "GRPOConfig": {"max_steps": 1, "max_completion_length": 8},
}
"""Options of every configuration on the pages, set to these values."""

CAPPED = {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 2, "num_prompts_per_step": 2}
"""Options that are set to no more than this where the page sets them."""


def write_datasets(folder: Path, num_rows: int = 16) -> dict[str, Path]:
    """One folder of rows per kind."""
    rows = load_easy_vqa("train", num_rows=num_rows)

    def said(text: str) -> list[dict[str, Any]]:
        return [{"role": "assistant", "content": [{"type": "text", "text": text}]}]

    made = {
        "questions": rows.map(lambda row: {"solution": f"${row['solution']}$"}),
        "problems": rows.map(
            lambda row: {"problem": question_text(row["prompt"]), "solution": f"${row['solution']}$"},
            remove_columns="prompt",
        ),
        "pairs": rows.map(lambda row: {"chosen": said(row["solution"]), "rejected": said("nothing")}),
        "demonstrations": rows.map(lambda row: {"completion": said(row["solution"])}),
    }
    for name, dataset in made.items():
        (folder / name).mkdir(parents=True)
        dataset.to_parquet(folder / name / "train.parquet")
    return {name: folder / name for name in made}


def build_models(folder: Path) -> dict[str, Path]:
    """One folder per family; its processor keeps images small."""
    return {family: build_tiny(family, folder / family, vocab_size=512) for family in set(MODELS.values())}


class StandIns(ast.NodeTransformer):
    """Exchanges what a laptop without a network lacks, in the parsed code of a page."""

    def __init__(self, models: Mapping[str, Path], datasets: Mapping[str, Path]) -> None:
        self.texts = {name: str(models[family]) for name, family in MODELS.items()}
        self.texts |= {name: str(datasets[kind]) for name, kind in DATASETS.items()}

    def in_words(self, words: Sequence[str]) -> list[str]:
        """A command with the same names exchanged, also behind `name=`."""
        exchanged = []
        for word in words:
            before, equals, name = word.rpartition("=")
            exchanged.append(before + equals + self.texts.get(name, name))
        return exchanged

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        if isinstance(node.value, str) and node.value in self.texts:
            node.value = self.texts[node.value]
        return node

    def visit_Call(self, node: ast.Call) -> ast.Call:
        self.generic_visit(node)
        short = SHORT.get(node.func.id, {}) if isinstance(node.func, ast.Name) else {}
        if short:
            for keyword in node.keywords:
                most = CAPPED.get(keyword.arg or "")
                if most is not None and isinstance(keyword.value, ast.Constant):
                    keyword.value.value = min(most, keyword.value.value)
            node.keywords = [keyword for keyword in node.keywords if keyword.arg not in short]
            node.keywords += [ast.keyword(name, ast.Constant(value)) for name, value in short.items()]
        return node


def code_of(block: Block, stand_ins: StandIns) -> Any:
    """The block compiled, its lines numbered as on the page."""
    tree = ast.parse(block.text, filename=str(block.page))
    tree = ast.fix_missing_locations(stand_ins.visit(tree))
    ast.increment_lineno(tree, block.line - 1)
    return compile(tree, str(block.page), "exec")

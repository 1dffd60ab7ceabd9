"""A benchmark in lmms-eval's format: drawn squares, and metrics of every kind that its files can hold."""

from __future__ import annotations

import io
from pathlib import Path

import datasets
from PIL import Image

COLORS = ("red", "green", "blue", "teal", "gray", "black", "white", "orange")

TASK = """\
task: own_colors
dataset_path: parquet
dataset_kwargs:
  data_files:
    test: {table}
test_split: test
output_type: generate_until
doc_to_visual: !function colors.visual
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
process_results: !function colors.process_results
generation_kwargs:
  max_new_tokens: 6
metric_list:
  - metric: even
    aggregation: mean
    higher_is_better: true
  - metric: length
    aggregation: mean
    higher_is_better: false
  - metric: rating
    aggregation: !function colors.sum_up
    higher_is_better: true
"""

FILTERED = """\
include: colors.yaml
task: own_filtered
filter_list:
  - name: as_it_is
    filter:
      - function: take_first
  - name: first
    filter:
      - function: regex
        regex_pattern: "(.)"
      - function: take_first
"""

FUNCTIONS = """\
def visual(doc):
    return [doc["image"].convert("RGB")]


def process_results(doc, results):
    answer = results[0]
    rating = {"score": len(set(answer)) / 2, "question": doc["question"]}
    return {"even": float(sum(map(ord, answer)) % 2 == 0), "length": len(answer), "rating": rating}


def sum_up(ratings):
    return sum(rating["score"] for rating in ratings)
"""


def write_tasks(folder: Path, num_questions: int) -> Path:
    """`own_colors`, and `own_filtered`, which marks each answer twice. Returns the folder for `--include_path`."""
    rows = []
    for number in range(num_questions):
        file = io.BytesIO()
        color = COLORS[number % len(COLORS)]
        Image.new("RGB", (32 + 4 * (number % 3), 32), color).save(file, format="PNG")
        image = {"bytes": file.getvalue(), "path": None}
        rows.append({"image": image, "question": f"what color is it? ({number})", "answer": color})
    text = datasets.Value("string")
    kinds = datasets.Features({"image": datasets.Image(), "question": text, "answer": text})
    tasks = folder / "tasks"
    tasks.mkdir(parents=True)
    table = folder / "colors.parquet"
    datasets.Dataset.from_list(rows, features=kinds).to_parquet(str(table))
    (tasks / "colors.yaml").write_text(TASK.format(table=table))
    (tasks / "filtered.yaml").write_text(FILTERED)
    (tasks / "colors.py").write_text(FUNCTIONS)
    return tasks

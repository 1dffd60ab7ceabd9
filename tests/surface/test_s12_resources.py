"""S12: a page of resources with what the article names, and a paper index that misses no objective."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from boresight.loss.objectives import OBJECTIVES, PREFERENCES
from boresight.trainer.presets import PRESETS

DOCS = Path(__file__).parents[2] / "docs"
RESOURCES = (DOCS / "resources.md").read_text()


@pytest.fixture(scope="module")
def generated() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generated", DOCS / "generated.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "named",
    [
        # Papers: PPO, DPO, BCO, MPO, DeepSeek Math, DeepSeek R1, GSPO.
        *("1707.06347", "2305.18290", "2404.04656", "2411.10442", "2402.03300", "2501.12948", "2507.18071"),
        # Models.
        *("Qwen/Qwen2.5-VL-3B-Instruct", "idefics2-8b"),
        # Data sets, and the benchmark of MPO's figure.
        *("lmms-lab/multimodal-open-r1-8k-verified", "openbmb/RLAIF-V-Dataset", "AI4Math/MathVista"),
        # Guides: the article's own list.
        *("blog/dpo_vlm", "blog/vlms-2025", "cookbook/fine_tuning_vlm_mpo", "cookbook/fine_tuning_vlm_grpo_trl", "cookbook/index"),
        *("huggingface/open-r1", "open_r1/rewards.py", "docs/trl/en/index", "huggingface/trl)", "trl/tree/main/examples/scripts"),
        *("vllm_integration", "blog/vllm-colocate", "transformers-backend"),
    ],
)  # fmt: skip
def test_resources_have_what_the_article_names(named: str) -> None:
    assert named in RESOURCES


@pytest.mark.parametrize("row", [*OBJECTIVES, *PREFERENCES])
def test_every_objective_has_its_paper_in_the_index(row: str, generated: ModuleType) -> None:
    page = generated.on_page_markdown((DOCS / "papers.md").read_text())
    start = page.index("## Rows of `GRPOConfig" if row in OBJECTIVES else "## Rows of `DPOConfig")
    rows = page[start:].split("\n## ")[0].splitlines()
    lines = [line for line in rows if line.startswith("|") and f"`{row}`" in line.split("|")[1]]
    assert lines
    assert all(re.search(r"arxiv\.org/abs/\d{4}\.\d{5}", line) for line in lines)


def test_every_value_of_a_preset_names_its_place(generated: ModuleType) -> None:
    page = generated.presets()
    for name, settings in PRESETS.items():
        section = page[page.index(f"### {name}") :]
        assert re.search(r"arxiv\.org/abs/\d{4}\.\d{5}", section)
        for option, setting in settings.items():
            (line,) = [line for line in section.split("\n### ")[0].splitlines() if line.startswith(f"| `{option}`")]
            assert repr(setting.value) in line
            assert line.split("|")[3].strip()


def test_no_paper_of_the_code_is_missing(generated: ModuleType) -> None:
    """The page refuses to build where a docstring names a paper that it has no title for."""
    named = generated.named_papers()
    assert {"2507.18071", "2411.10442", "2305.18290"} <= named.keys()
    page = generated.papers()
    assert [paper for paper in named if f"abs/{paper}" not in page] == []

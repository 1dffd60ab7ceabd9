"""No dead link, no dead anchor, no file named that is not there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, page_name, prose

LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
NAMED = re.compile(r"(?<![\w./*-])((?:[\w.-]+/)+[\w.*-]+\.(?:py|md|ipynb|toml|yml|yaml|json|lock|sh))(?![\w/])")
OF_A_RUN = ("runs/", "my/", "RUN/")
"""Beginnings of paths that a user's own run makes."""


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_and_named_files_exist(page: Path) -> None:
    text = prose(page)
    missing = []
    for target in LINK.findall(text):
        file = target.partition("#")[0]
        if "://" not in target and file and not (page.parent / file).exists():
            missing.append(target)
    for name in NAMED.findall(LINK.sub("", text)):
        homes = (ROOT, ROOT / "src" / "boresight", page.parent)
        if not name.startswith(OF_A_RUN) and not any(list(home.glob(name)) for home in homes):
            missing.append(name)
    assert missing == []


@pytest.mark.parametrize("text", ["tests/loss/test_gone.py", "see `model/gone.py`, which"])
def test_a_file_that_is_gone_would_be_seen(text: str) -> None:
    (name,) = NAMED.findall(text)
    assert not list(ROOT.glob(name)) and not list((ROOT / "src" / "boresight").glob(name))


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """mkdocs checks links between pages, anchors, the menu, and that every documented name exists; one warning fails it."""
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, "\n".join(
        line for line in (built.stdout + built.stderr).splitlines() if not line.startswith("INFO")
    )
    html = {file: file.read_text() for file in tmp_path.rglob("*.html")}
    assert [str(file) for file, text in html.items() if "<!-- generated:" in text] == []
    check_anchors(html, tmp_path)
    check_reference(html, tmp_path)


def check_anchors(html: dict[Path, str], site: Path) -> None:
    """Links into the middle of another page land somewhere."""
    dead = []
    for file, text in html.items():
        for target in re.findall(r'href="([^":]*#[^"]+)"', text):
            path, _, anchor = target.partition("#")
            there = (file.parent / path).resolve() if path else file
            there = there / "index.html" if there.is_dir() else there
            if there in html and not re.search(rf'(id|name)="?{re.escape(anchor)}"?[\s>]', html[there]):
                dead.append(f"{file.relative_to(site)}: {target}")
    assert dead == []


def check_reference(html: dict[Path, str], site: Path) -> None:
    """Every option of every configuration is in its table, and every preset and paper on theirs."""
    from boresight import DPOConfig, GRPOConfig, SFTConfig
    from boresight.trainer.presets import PRESETS

    for config in (SFTConfig, DPOConfig, GRPOConfig):
        page = html[site / "reference" / f"{config.__name__.removesuffix('Config').lower()}-config" / "index.html"]
        missing = [option.name for option in fields(config) if f"<code>{option.name}</code>" not in page]
        assert missing == []
    papers = html[site / "papers" / "index.html"]
    titles = json.loads((ROOT / "docs" / "papers.json").read_text())
    assert [name for name in PRESETS if f">{name}<" not in papers.replace("&para;", "")] == []
    assert [paper for paper in titles if f"abs/{paper}" not in papers] == []

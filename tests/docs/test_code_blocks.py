"""Every block of code on a page runs, or says why it cannot; then it is parsed at the least."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.docs.pages import PAGES, blocks, page_name
from tests.docs.stand_ins import StandIns, code_of

WITH_PYTHON = [page for page in PAGES if any(block.language == "python" for block in blocks(page))]


@pytest.mark.parametrize("page", WITH_PYTHON, ids=page_name)
def test_python(page: Path, stand_ins: StandIns, empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page's blocks run in order, in one module and in an empty folder."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr(sys, "path", list(sys.path))
    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    for block in blocks(page):
        if block.language != "python":
            continue
        if block.not_run:
            ast.parse(block.text)
        else:
            exec(code_of(block, stand_ins), module.__dict__)


def test_languages_are_named() -> None:
    """A block without a language would be looked at by no test; `text` is what is neither code nor a command."""
    known = {"python", "bash", "yaml", "json", "text", "csv", "toml"}
    assert [block.where for page in PAGES for block in blocks(page) if block.language not in known] == []


def test_what_does_not_run_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    """Only what needs more than a laptop may stay out; the list is printed."""
    left_out = [block for page in PAGES for block in blocks(page) if block.not_run]
    with capsys.disabled():
        for block in left_out:
            print(f"\n{block.where} is not run: {block.not_run}", end="")
    reasons = ("a GPU", "GPUs", "several machines", "a hub", "a server")
    assert [block.where for block in left_out if not any(reason in str(block.not_run) for reason in reasons)] == []

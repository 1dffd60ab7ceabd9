"""Every command on a page is one that is there, read by what would read it."""

from __future__ import annotations

import ast
import inspect
import re
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from boresight.cli import TRAINING, _parser
from boresight.cli.command import read_command
from tests.docs.pages import PAGES, ROOT, blocks, commands, page_name

WITH_COMMANDS = [page for page in PAGES if any(block.language == "bash" for block in blocks(page))]
STARTS = (
    "--accelerate_config",
    "--num_processes",
    "--num_machines",
    "--machine_rank",
    "--main_process_ip",
    "--main_process_port",
)
"""Flags of a start through accelerate, which would replace this process; each takes one word."""


def read_boresight(words: Sequence[str]) -> None:
    """`boresight …` by the command's own parser; of a training command all contradictions are looked for too."""
    if words[0] in TRAINING:
        kept = list(words[1:])
        for flag in STARTS:
            if flag in kept:
                del kept[kept.index(flag) : kept.index(flag) + 2]
        read_command(words[0], kept)
        return
    if words[0] == "doctor" and words[1] in TRAINING:
        read_boresight([word for word in words[1:] if word != "--show-batch"])
        return
    parser, _ = _parser()
    options, further = parser.parse_known_args(list(words))
    assert not further or "further" in inspect.signature(options.run).parameters, f"no option {further}"


def read_make(words: Sequence[str]) -> None:
    """The target is in the Makefile."""
    makefile = (ROOT / "Makefile").read_text()
    for target in (word for word in words if "=" not in word):
        assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), target


def read_pip(words: Sequence[str]) -> None:
    """The extras are in pyproject.toml."""
    assert words[0] == "install"
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for named in re.findall(r"\[([\w,-]+)\]", " ".join(words)):
        assert set(named.split(",")) <= extras.keys(), named


def read_accelerate(words: Sequence[str]) -> None:
    """`accelerate launch … -m boresight.cli …`, or a script that is there."""
    assert words[0] == "launch"
    if "boresight.cli" in words:
        read_boresight(words[words.index("boresight.cli") + 1 :])
    else:
        read_python([word for word in words if word.endswith(".py")])


def read_python(words: Sequence[str]) -> None:
    """A script that is there, with the flags of its command; code that can be read and whose imports exist; or a new environment."""
    if words[:2] == ["-m", "venv"]:
        return
    if words[0] == "-c":
        for line in ast.parse(words[1]).body:
            if isinstance(line, ast.Import | ast.ImportFrom):
                exec(compile(ast.Module([line], []), "-c", "exec"), {})
        return
    assert (ROOT / words[0]).is_file(), words[0]
    if (method := Path(words[0]).stem.removesuffix("_vlm")) in TRAINING:
        read_boresight([method, *words[1:]])


READERS: dict[str, Callable[[Sequence[str]], None]] = {
    "boresight": read_boresight,
    "make": read_make,
    "pip": read_pip,
    "lmms/bin/pip": read_pip,
    "accelerate": read_accelerate,
    "python": read_python,
    "python3": read_python,
    ".venv/bin/python": read_python,
}
NOT_OURS = {"cd", "git", "apt-get", "sudo"}


def write_files(page: Path, folder: Path) -> None:
    """The files that a page shows: a block whose first line is a comment with a file's name."""
    for block in blocks(page):
        first = block.text.partition("\n")[0]
        if block.language in ("yaml", "python") and (named := re.fullmatch(r"# ([\w-]+\.(?:yaml|py))", first)):
            (folder / named[1]).write_text(block.text)


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=page_name)
def test_commands(page: Path, empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for each in PAGES:
        write_files(each, empty_folder)
    (empty_folder / "runs/long/checkpoint-500").mkdir(parents=True)  # of the run that a page resumes
    for block in blocks(page):
        for words in commands(block) if block.language == "bash" else []:
            while re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                words.pop(0)
            if words[0] in NOT_OURS:
                continue
            assert words[0] in READERS, f"{block.where}: {words[0]} is no command that a page should show"
            try:
                READERS[words[0]](words[1:])
            except (Exception, SystemExit) as error:
                raise AssertionError(f"{block.where}: {' '.join(words)}: {error}") from error


@pytest.mark.parametrize(
    "command", ["boresight grop --model m", "boresight grpo --modle x", "make nothing", "pip install '.[nothing]'"]
)
def test_a_wrong_command_would_be_seen(command: str) -> None:
    program, *words = command.replace("'", "").split()
    with pytest.raises((Exception, SystemExit)):
        READERS[program](words)

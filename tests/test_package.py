from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import boresight

ROOT = Path(__file__).parent.parent


def test_import_loads_nothing_heavy():
    heavy = ["PIL", "datasets", "pyarrow", "rich", "torch", "transformers"]
    program = f"import sys, boresight; dir(boresight); print(sorted(set(sys.modules) & set({heavy})))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there():
    for name in boresight.__all__:
        assert getattr(boresight, name).__name__ == name


def test_lock_carries_hashes_and_no_addresses():
    lock = (ROOT / "requirements-dev.lock").read_text()
    pinned = re.findall(r"^\S+==", lock, re.MULTILINE)
    assert len(pinned) > 100
    assert lock.count("--hash=sha256:") >= len(pinned)
    assert not re.search(r"https?://|--index|--find-links", lock)


def test_readme_stays_short_and_its_commands_exist():
    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    assert len(readme.split()) < 600
    commands = re.findall(r"^make (\w+)$", readme, re.MULTILINE)
    assert commands == ["demo", "test"]
    for command in commands:
        assert re.search(rf"^{command}:", makefile, re.MULTILINE)

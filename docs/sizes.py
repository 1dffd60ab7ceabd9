"""What an installation takes on the disk, for docs/install.md: the installed files of the packages that some extras need.

.venv/bin/python docs/sizes.py math report
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import Distribution, PackageNotFoundError, distribution

from packaging.requirements import Requirement

CUDA = ("nvidia-", "cuda-", "triton")
"""How the names of packages begin that only the CUDA build of torch asks for."""


def needed(name: str, extras: Sequence[str], found: dict[str, Distribution]) -> dict[str, Distribution]:
    """A package and all that it needs, by name; packages that this platform does without are left out."""
    key = name.lower().replace("_", "-")
    if key in found:
        return found
    try:
        found[key] = distribution(name)
    except PackageNotFoundError:
        return found
    for line in found[key].requires or ():
        asked = Requirement(line)
        if asked.marker is None or any(asked.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            needed(asked.name, tuple(asked.extras), found)
    return found


def num_bytes(package: Distribution, part: str = "") -> int:
    """Of a package's installed files; only of those with `part` in their names."""
    return sum(file.size or 0 for file in package.files or () if part in str(file))


def main(extras: Sequence[str]) -> None:
    found = needed("boresight", extras, {})
    whole = sum(map(num_bytes, found.values()))
    cuda = sum(num_bytes(package) for name, package in found.items() if name.startswith(CUDA))
    cuda += num_bytes(found["torch"], "cuda") + num_bytes(found["torch"], "nvshmem")
    print(f"{len(found)} packages: {whole / 1e9:.1f} GB, of which CUDA's {cuda / 1e9:.1f} GB")


if __name__ == "__main__":
    main(sys.argv[1:])

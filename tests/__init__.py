"""Tests that say where versions of a library differ."""

from importlib.metadata import version

from packaging.version import Version

AT_LEAST_5_20 = Version(version("transformers")) >= Version("5.20")
"""Whether transformers is newer than the lock's."""

"""The run folder: it belongs to one run, which one process writes at a time."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from boresight.errors import CheckpointError, ConfigError
from boresight.files import check_writable, flush, remove_folder, write_whole
from boresight.trainer.identity import Identity, check_same_run
from boresight.trainer.manifest import MANIFEST, Manifest, check_whole, faults, named, read_manifest

RUN_FILE = "run.json"
"""The identity of the run that a folder belongs to."""
LOCK_FILE = ".boresight.lock"
PREFIX = "checkpoint-"
SAVING, REPLACED, ASIDE = ".saving-", ".replaced-", "aside-"
"""What is being written, what is being replaced, and what another run left: the beginnings of their names."""

LOGS = (
    "metrics.jsonl",
    "steps.jsonl",
    "timeline.jsonl",
    "verdicts.jsonl",
    "completions",
    "trainer_state.json",
    "nonfinite",
)
MODEL = re.compile(
    r"(config|adapter_config|generation_config)\.json|(model|adapter_model|pytorch_model)\b.*\.(safetensors|bin|json)|"
    + re.escape(MANIFEST)
)
BESIDE = ("images", "runs", "report.html", "training_args.bin", "README.md", "chat_template.jinja", "chat_template.json", "vocab.json",
          "merges.txt", "tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
          "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")  # fmt: skip
"""What belongs to a run or model, but is no sign of one."""


_HELD: set[Path] = set()
"""The locks that this process holds."""


class RunFolder:
    """The folder of one run. All methods are called on the first rank only.

    Args:
        path: `output_dir`.
        say: prints a message to the user.
        about: further facts for run.json, which are no part of the run's identity.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        say: Callable[[str], None] = print,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = Path(path)
        self._about = dict(about or {})
        self._say = say
        self._owner = uuid.uuid4().hex
        self._has_trained = False

    def note(self, **about: Any) -> None:
        """Add further facts to run.json, which is written when the run enters the folder."""
        self._about |= about

    # ---- One run ----------------------------------------------------------------------------------------------------------------

    def check_free(self, *, overwrite: bool) -> None:
        """Check that a new run may start here.

        Raises:
            ConfigError: the folder holds a run or a model, and `overwrite` is not set.
        """
        if not overwrite and (found := self.signs()) and not self._is_evaluated():
            kept = ", ".join(found[:6]) + (", …" if len(found) > 6 else "")
            raise ConfigError(
                f"{self.path} already holds a run or a model ({kept}), which a new run would replace. Set resume_from_checkpoint=True to "
                "continue that run, another output_dir to keep it, or overwrite_output_dir=True to move it aside, into a subfolder."
            )

    def enter(self, identity: Identity, *, resume: Path | None, overwrite: bool) -> None:
        """Start or continue a run here.

        Args:
            identity: this run's.
            resume: the checkpoint that it continues from; it is whole.
            overwrite: whether what another run left is moved aside.

        Raises:
            ConfigError: the folder or the checkpoint belongs to another run.
        """
        if resume is None:
            self.check_free(overwrite=overwrite)
            if self.signs() and not self._is_evaluated():
                self._say(f"moved the earlier run to {self.move_aside()}")
        else:
            self._continue(identity, resume)
        self._has_trained = True
        self._write(identity)

    def begin_evaluation(self, identity: Identity) -> None:
        """Note that this trainer evaluates before it trains: what it logs here is its own."""
        if not self.signs():
            self._write(identity)

    def _write(self, identity: Identity) -> None:
        write_whole(self.path / RUN_FILE, json.dumps({**identity, **self._about, "owner": self._owner}, indent=1))

    def _is_evaluated(self) -> bool:
        """Whether all that is here is of this trainer's evaluations before its training."""
        try:
            return not self._has_trained and json.loads((self.path / RUN_FILE).read_bytes())["owner"] == self._owner
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def _continue(self, identity: Identity, resume: Path) -> None:
        for line in check_same_run(read_manifest(resume).run, identity, resume):
            self._say(f"differs from the run that is resumed, without harm: {line}")
        if resume.resolve().parent != self.path.resolve():
            if found := self.signs():
                raise ConfigError(
                    f"resume_from_checkpoint={str(resume)!r} is not in output_dir={str(self.path)!r}, which holds a run or a model itself "
                    f"({', '.join(found[:6])}): set output_dir to {resume.parent}, or to a new folder."
                )
            return
        later = [folder for folder in self.checkpoints() if step_of(folder) > step_of(resume)]
        if later:
            aside = self._new_aside()
            for folder in later:
                folder.rename(aside / folder.name)
            names = ", ".join(folder.name for folder in later)
            self._say(f"moved {names}, which come after {resume.name}, to {aside}")

    def signs(self) -> list[str]:
        """The entries that a run or a model left here. A run that logged and saved nothing leaves none."""
        if not self.path.is_dir():
            return []
        return sorted(
            entry.name
            for entry in self.path.iterdir()
            if entry.name in LOGS or MODEL.fullmatch(entry.name) or (entry.is_dir() and _is_checkpoint(entry))
        )

    def move_aside(self) -> Path:
        """Move all that a run or a model left here into a new subfolder, and return it. Other files stay."""
        names = {*self.signs(), RUN_FILE, *BESIDE}
        aside = self._new_aside()
        for entry in sorted(self.path.iterdir()):
            if entry.name in names:
                entry.rename(aside / entry.name)
        return aside

    def _new_aside(self) -> Path:
        number = 1
        while (aside := self.path / f"{ASIDE}{number}").exists():
            number += 1
        aside.mkdir(parents=True)
        return aside

    # ---- One process ------------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder while a run trains in it. The lock ends with the process, however that ends.

        Raises:
            ConfigError: another process holds it.
            DiskError: the folder cannot be written to.
        """
        check_writable(self.path)
        path = (self.path / LOCK_FILE).resolve()
        if path in _HELD:  # a lock keeps out other processes only
            raise ConfigError(f"Another trainer of this process trains in {self.path} now: set another output_dir.")
        with path.open("a+") as file:
            try:
                # Of this process alone: a loader's worker that outlives it does not hold it.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                file.seek(0)
                raise ConfigError(
                    f"Another run trains in {self.path} now ({file.read() or 'it does not name itself'}): set another output_dir, or wait."
                ) from error
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
            file.flush()
            self._clean()
            _HELD.add(path)
            try:
                yield
            finally:
                _HELD.remove(path)

    def _clean(self) -> None:
        """Finish what a killed process left: what it was writing is removed, and what it was replacing is put back."""
        for entry in self.path.iterdir():
            if (
                entry.name.startswith(REPLACED)
                and not (place := self.path / entry.name.removeprefix(REPLACED)).exists()
            ):
                entry.rename(place)
            elif entry.name.startswith((SAVING, REPLACED, ".removing-")) and entry.is_dir():
                shutil.rmtree(entry)

    # ---- Checkpoints ------------------------------------------------------------------------------------------------------------

    def checkpoints(self) -> list[Path]:
        """All checkpoints, whole or not, the newest last."""
        if not self.path.is_dir():
            return []
        return sorted((entry for entry in self.path.iterdir() if entry.is_dir() and _is_checkpoint(entry)), key=step_of)

    def newest_whole(self) -> Path:
        """The newest checkpoint whose files are all as they were written. Newer ones that are not are named.

        Raises:
            CheckpointError: there is none.
        """
        passed: list[str] = []
        for folder in reversed(self.checkpoints()):
            found = faults(folder) or (
                [] if read_manifest(folder).resumable else ["it holds the weights alone (save_only_model)"]
            )
            if not found:
                for text in passed:
                    self._say(f"passed over {text}")
                self._say(f"resuming from {folder}")
                return folder
            passed.append(f"{folder.name}: {named(found)}")
        if passed:
            raise CheckpointError(f"{self.path} has no checkpoint to resume from. {'. '.join(passed)}.")
        raise ConfigError(
            f"{self.path} has no checkpoint to resume from: leave out resume_from_checkpoint. If the folder holds a run that was killed "
            "before its first checkpoint, set overwrite_output_dir=True, which moves it aside."
        )

    def checkpoint(self, asked: str | bool) -> Path:
        """The checkpoint that `resume_from_checkpoint` means.

        Args:
            asked: the folder of one, or True or ``last`` for the newest whole one.

        Raises:
            ConfigError, CheckpointError: there is no such folder, or it is not whole.
        """
        if asked is True or str(asked).lower() in ("last", "true"):
            return self.newest_whole()
        folder = Path(str(asked))
        if not folder.is_dir():
            raise ConfigError(
                f"resume_from_checkpoint={str(folder)!r}: there is no such folder. 'last' means the newest of {self.path}."
            )
        if not check_whole(folder).resumable:
            raise CheckpointError(f"{folder} holds weights alone: pass it as the model to start a new run from it.")
        return folder

    def publish(self, aside: Path, target: Path) -> None:
        """Give a checkpoint that is completely on the disk its name. Its manifest is checked again under that name.

        Raises:
            CheckpointError: it is not whole; an earlier checkpoint of that name is then back in its place.
        """
        replaced = target.with_name(f"{REPLACED}{target.name}")
        if target.exists():
            target.rename(replaced)
        aside.rename(target)
        flush(self.path)
        if found := faults(target, digests=False):  # the digests are of what was read back from this disk
            remove_folder(target)
            if replaced.exists():
                replaced.rename(target)
            raise CheckpointError(f"{target.name} is not whole after it was written: {named(found)}.")
        remove_folder(replaced)

    def rotate(self, limit: int | None, *, keep: str | None = None) -> None:
        """Remove the oldest checkpoints beyond a limit, never the newest.

        Args:
            limit: `save_total_limit`; None removes none.
            keep: the best checkpoint, which also stays.
        """
        if limit is None or limit < 1:
            return
        found = self.checkpoints()
        kept = {folder for folder in found if folder == found[-1] or (keep and folder.name == Path(keep).name)}
        older = [folder for folder in found if folder not in kept]
        for folder in older[: max(0, len(older) - max(0, limit - len(kept)))]:
            remove_folder(folder)


def publish_model(aside: Path, target: Path, manifest: Manifest) -> None:
    """Move the files of a model into their place. Its configuration goes last: without it, nothing loads the folder.

    Args:
        aside: a folder in `target`, completely on the disk, with its manifest.
        manifest: its manifest.
    """
    try:
        stale = read_manifest(target).files.keys() - manifest.files.keys()
    except CheckpointError:
        stale = set()
    last = [name for name in ("config.json", "adapter_config.json") if name in manifest.files]
    for name in [*stale, *last]:
        (target / name).unlink(missing_ok=True)
    for name in [*(name for name in manifest.files if name not in last), MANIFEST, *last]:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (aside / name).replace(target / name)
    flush(target)
    shutil.rmtree(aside)


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name."""
    return int(checkpoint.name.removeprefix(PREFIX))


def _is_checkpoint(folder: Path) -> bool:
    return folder.name.startswith(PREFIX) and folder.name.removeprefix(PREFIX).isdecimal()


def check_is_not_model(output_dir: str | os.PathLike[str], model: Any) -> None:
    """Refuse to train in the folder that the model is loaded from.

    Raises:
        ConfigError: it is the same folder.
    """
    name = (
        model
        if isinstance(model, str | os.PathLike)
        else getattr(getattr(model, "config", None), "_name_or_path", None)
    )
    if name and Path(name).is_dir() and Path(name).resolve() == Path(output_dir).resolve():
        raise ConfigError(
            f"output_dir={str(output_dir)!r} is the folder of the model: training would overwrite it. Set another output_dir."
        )


class CleanFolder(TrainerCallback):
    """Before a resumed run's first step, removes the logs of later steps, which it writes again.

    Args:
        discard_after: removes them, and returns the number of removed lines and files. Called on the first rank only.
        say: prints a message to the user.
        wait: a barrier over all ranks.
    """

    def __init__(
        self, discard_after: Callable[[int], int], say: Callable[[str], None], wait: Callable[[], None]
    ) -> None:
        self._discard_after = discard_after
        self._say = say
        self._wait = wait

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero and (num := self._discard_after(state.global_step)):
            self._say(f"removed {num} lines and files about steps after {state.global_step}, which are trained again.")
        self._wait()

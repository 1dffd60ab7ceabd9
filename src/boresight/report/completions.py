"""Every completion of a run, stored with its rewards and advantage.

    RUN/completions/step_00000012.parquet    one row per completion (the second rank's: step_00000012.rank1.parquet)
    RUN/completions/tokenizer.json           turns token ids into text
    RUN/images/<digest>.<ext>              every image once, as it was encoded

`read_completions(run)` gives the whole as one table. Its columns:

| column | what it holds |
|---|---|
| `step` | the optimizer step that the completions were sampled for |
| `phase` | ``train`` or ``eval`` |
| `rank`, `group` | the rank, and the prompt's place among that rank's prompts of this step and phase |
| `row` | the prompt's row in the data set |
| `prompt`, `completion` | as text, with ``<image>`` for each image |
| `completion_ids` | token ids |
| `length`, `truncated` | in tokens; whether the length limit ended it |
| `images` | file names in RUN/images |
| `right_answer` | the row's, from its column `solution`; null in a row without one |
| `answer` | the completion's: what stands in its answer tags, or all after its reasoning |
| `row_columns` | JSON of the row's further columns, long values cut; where rows have some |
| `reward`, `advantage` | null where unscored; `advantage` also in a discarded group |
| `kept` | whether it is trained on: false in a group that dynamic sampling discarded |
| `rewards/<name>` | the reward by each function; null where it does not apply or failed |
| `logp` | log-probability of each token in nats, where `add` was passed it |
| `age` | how many optimizer steps the weights that sampled it were behind the policy at this step; where an engine sampled |
| `turns` | JSON of a completion of several turns, see `report.turns`; null for one of one turn. `completion` is then their transcript |
| `extra/<name>` | what reward functions passed to `log_extra`, as text |
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from boresight.errors import DataError
from boresight.files import write_whole
from boresight.report.tokens import keep_tokenizer
from boresight.report.turns import shown_turns, transcript
from boresight.types import Conversation, EncodedImage, Group, PerSequence, Row

Phase = Literal["train", "eval"]

AnswerPair = tuple[str, str | None]
"""What a completion answered, and the right answer of its row."""

MAX_VALUE_CHARS = 1_000
"""Of a value of a row's further columns."""


class CompletionStore:
    """Writes the completions of one rank into a run folder.

    Args:
        run: the run folder.
        rank: this process's.
        tokenizer: stored beside the first completions, so that a page can show their tokens; None stores none.
    """

    def __init__(self, run: str | os.PathLike[str], *, rank: int = 0, tokenizer: Any = None) -> None:
        self._run = run
        self._tokenizer = tokenizer if rank == 0 else None
        self._folder = Path(run) / "completions"
        self._images_folder = Path(run) / "images"
        self._rank = rank
        self._num_groups: dict[tuple[int, Phase], int] = {}
        self._image_names: dict[str, str] = {}

    def add(
        self,
        step: int,
        groups: Sequence[Group],
        *,
        rewards: Mapping[str, PerSequence],
        reward: PerSequence,
        advantage: PerSequence | None = None,
        phase: Phase = "train",
        kept: Sequence[bool] | None = None,
        logp: Sequence[Sequence[float]] | None = None,
        extra: Mapping[str, Sequence[Any]] | None = None,
        age: Sequence[int | None] | None = None,
        answers: Sequence[AnswerPair] | None = None,
    ) -> pa.Table:
        """Store some completions of a step; more may follow. Rows of this step and phase from an earlier process are removed.

        Args:
            step: the optimizer step that they were sampled for.
            groups: the completions; every argument below is in their order.
            rewards: [B] by each reward function, NaN where it does not apply.
            reward: [B] their weighted sum, NaN where unscored.
            advantage: [B].
            phase: train or eval.
            kept: one for each group; None: all.
            logp: log-probabilities of each completion's tokens, in nats.
            extra: further columns, one value per completion.
            age: optimizer steps, one for each completion.
            answers: of each completion, and the right one of its row.

        Returns:
            The rows that were added.
        """
        if self._tokenizer is not None:
            keep_tokenizer(self._run, self._tokenizer)
            self._tokenizer = None
        for image in {image for group in groups for image in _images_of(group)}:
            self._keep_image(image)
        first = self._num_groups.get((step, phase), 0)
        num = sum(map(len, groups))
        columns = {"step": pa.array([step] * num, pa.int64()), "phase": pa.array([phase] * num, pa.string())}
        columns |= self._sampled(groups, first)
        if answers is not None:
            columns["right_answer"] = pa.array([right for _, right in answers], pa.string())
            columns["answer"] = pa.array([answer for answer, _ in answers], pa.string())
        columns |= {"reward": _numbers(reward)} | ({} if advantage is None else {"advantage": _numbers(advantage)})
        kept = [True] * len(groups) if kept is None else kept
        each_kept = [is_kept for is_kept, group in zip(kept, groups, strict=True) for _ in group.completions]
        columns["kept"] = pa.array(each_kept, pa.bool_())
        columns |= {f"rewards/{name}": _numbers(values) for name, values in rewards.items()}
        if logp is not None:
            columns["logp"] = pa.array([list(values) for values in logp], pa.list_(pa.float32()))
        if age is not None and any(each is not None for each in age):
            columns["age"] = pa.array(age, pa.int32())
        columns |= {f"extra/{name}": _texts(values) for name, values in (extra or {}).items()}
        rows = pa.table(columns)
        self._append(step, phase, rows)
        self._num_groups[step, phase] = first + len(groups)
        return rows

    def discard_after(self, step: int) -> int:
        """Remove the files of later steps, of all ranks, before an interrupted run resumes at `step`; returns how many."""
        later = [path for path in _step_files(self._folder) if _step_of(path) > step]
        for path in later:
            path.unlink()
        return len(later)

    def _sampled(self, groups: Sequence[Group], first: int) -> dict[str, pa.Array]:
        """The columns that do not depend on rewards."""
        each = [
            (place, group.prompt.row, one) for place, group in enumerate(groups, first) for one in group.completions
        ]
        names = self._image_names
        turns = [shown_turns(one, names) for _, _, one in each]
        texts = [one.text if own is None else transcript(own) for (_, _, one), own in zip(each, turns, strict=True)]
        in_turns = {}
        if any(own is not None for own in turns):
            in_turns["turns"] = pa.array([None if own is None else json.dumps(own) for own in turns], pa.string())
        others = [other_columns(row) for _, row, _ in each]
        if any(others):
            in_turns["row_columns"] = pa.array([json.dumps(own) if own else None for own in others], pa.string())
        return in_turns | {
            "rank": pa.array([self._rank] * len(each), pa.int32()),
            "group": pa.array([place for place, _, _ in each], pa.int32()),
            "row": pa.array([row.index for _, row, _ in each], pa.int64()),
            "prompt": pa.array([prompt_text(row.prompt) for _, row, _ in each], pa.string()),
            "completion": pa.array(texts, pa.string()),
            "completion_ids": pa.array([one.ids.tolist() for _, _, one in each], pa.list_(pa.int32())),
            "length": pa.array([len(one.ids) for _, _, one in each], pa.int32()),
            "truncated": pa.array([one.truncated for _, _, one in each], pa.bool_()),
            "images": pa.array(
                [[names[image.digest] for image in row.images] for _, row, _ in each], pa.list_(pa.string())
            ),
        }

    def _append(self, step: int, phase: Phase, rows: pa.Table) -> None:
        path = self._folder / f"step_{step:08d}{f'.rank{self._rank}' if self._rank else ''}.parquet"
        if path.exists():
            kept = pq.read_table(path)
            if (step, phase) not in self._num_groups:
                kept = kept.filter(pc.field("phase") != phase)
            rows = pa.concat_tables([kept, rows], promote_options="default")
        buffer = io.BytesIO()
        pq.write_table(rows, buffer, compression="zstd")
        write_whole(path, buffer.getvalue())

    def _keep_image(self, image: EncodedImage) -> None:
        if image.digest not in self._image_names:
            self._image_names[image.digest] = keep_image(self._images_folder, image)


def read_completions(
    run: str | os.PathLike[str], *, phase: Phase | None = None, damaged: list[str] | None = None
) -> Any:
    """All completions of a run by step and rank, with the columns listed at the top of this module.

    Args:
        run: the run folder.
        phase: only those of training, or of evaluations.
        damaged: a text is added to it for each file that cannot be read, and None is returned where none can. None: it is an error.

    Raises:
        DataError: the folder holds no completions, or a file is damaged.
    """
    paths = _step_files(Path(run) / "completions")
    if not paths:
        raise DataError(f"{os.fspath(run)} holds no completions: name the output_dir of a run that sampled some.")
    tables = [table for path in paths if (table := _read(path, damaged)) is not None]
    if not tables:
        return None
    table = pa.concat_tables(tables, promote_options="default")
    return table if phase is None else table.filter(pc.field("phase") == phase)


def _read(path: Path, damaged: list[str] | None) -> pa.Table | None:
    """The rows of a file; None where it is damaged, which is then noted."""
    try:
        return pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        text = f"{path.parent.name}/{path.name} cannot be read ({str(error).partition('.')[0]})"
        if damaged is None:
            raise DataError(f"{text}: move it out of {path.parent} to read the others.") from error
        damaged.append(f"{text}, and is left out")
        return None


def other_columns(row: Row) -> dict[str, Any]:
    """A row's columns beside its right answer, as JSON can hold them; long values are cut."""
    return {name: _short(value) for name, value in row.columns.items() if name != "solution" and value is not None}


def _short(value: Any) -> Any:
    if isinstance(value, bool | int | float):
        return value
    text = value if isinstance(value, str) else json.dumps(value, default=lambda other: f"({type(other).__name__})")
    return text if len(text) <= MAX_VALUE_CHARS else f"{text[:MAX_VALUE_CHARS]}… ({len(text):,} characters)"


def keep_image(folder: Path, image: EncodedImage) -> str:
    """Write an image into a folder, as it was encoded, unless it is there; returns its file name."""
    content = image.source if isinstance(image.source, bytes) else Path(image.source).read_bytes()
    with Image.open(io.BytesIO(content)) as opened:
        name = f"{image.digest}.{(opened.format or 'png').lower()}"
    path = folder / name
    if not path.exists():
        write_whole(path, content)
    return name


def prompt_text(prompt: str | Conversation) -> str:
    """A prompt as readable text: ``role: text`` per message, ``<image>`` for an image."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {_content_text(message['content'])}" for message in prompt)


def _content_text(content: str | Sequence[Mapping[str, Any]]) -> str:
    if isinstance(content, str):
        return content
    return "".join(part["text"] if part["type"] == "text" else f"<{part['type']}>" for part in content)


def _images_of(group: Group) -> list[EncodedImage]:
    """Those of its prompt and of its completions' turns."""
    sets = [each for completion in group.completions for each in completion.image_sets]
    return [*group.prompt.images, *(image for each in sets for image in each.images)]


def _numbers(values: PerSequence) -> pa.Array:
    """NaN becomes null, which readers leave out of means."""
    return pa.array(values.detach().float().cpu().numpy(), pa.float32(), from_pandas=True)


def _texts(values: Sequence[Any]) -> pa.Array:
    return pa.array([None if value is None else str(value) for value in values], pa.string())


def _step_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("step_*.parquet"))


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step_").partition(".")[0])

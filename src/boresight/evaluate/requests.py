"""A saved model answers the requests of lmms-eval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from boresight.compare.answering import SavedModel
from boresight.errors import DataError
from boresight.evaluate.generation import Generation, generation_of
from boresight.evaluate.questions import row_of
from boresight.types import Row

Tell = Callable[[int, int], None]
"""Called with the number of answered requests and the number of all."""


class Request(Protocol):
    """What is read of lmms-eval's `Instance`."""

    @property
    def args(self) -> tuple[Any, ...]:
        """(context, document → messages, generation options, number of the document, task, split)."""
        ...


@dataclass(frozen=True, slots=True)
class Asking:
    """What is changed in a task's questions and options."""

    blind: bool = False
    """Images are replaced by plain gray ones of the same size."""
    system_prompt: str | None = None
    max_completion_length: int | None = None
    """None: the task's."""


@dataclass(frozen=True, slots=True)
class Given:
    """The answer to a request."""

    text: str
    """Up to the task's first stop."""
    num_tokens: int
    truncated: bool
    """It reached the limit of its length."""


@dataclass(slots=True)
class _Question:
    row: Callable[[], Row]
    """Reads the question; only when it is asked, so that the images of a whole benchmark are not in memory at once."""
    places: list[int]
    """Of its requests: several where the task asks repeatedly."""


def answer_requests(
    model: SavedModel,
    requests: Sequence[Request],
    document: Callable[[str, str, int], Any],
    asking: Asking,
    tell: Tell | None = None,
) -> list[Given]:
    """The answers to `requests`, in their order.

    Requests of a task with the same options are asked together: in batches, or all at once with vLLM, which starts for each task. A
    request that occurs several times, as with a task's `repeats`, gets as many samples.

    Args:
        document: (task, split, number) → the document, as the task's functions take it.

    Raises:
        ConfigError, DataError: a task or a question cannot be asked; the message names it.
    """
    given: dict[int, Given] = {}
    for (task, generation), questions in _grouped(requests, document, asking).items():
        size = len(questions) if model.settings.use_vllm else model.settings.batch_size
        for start in range(0, len(questions), size):
            asked = questions[start : start + size]
            rows = [question.row() for question in asked]
            try:
                batches = list(model.answers(rows, generation.sampling))
            except DataError as error:
                raise DataError(f"task {task}, {error}") from error
            for batch in batches:
                for number, answers in batch.items():
                    for place, one in zip(asked[number].places, answers, strict=True):
                        given[place] = Given(generation.cut(one.text), len(one.ids), one.truncated)
            if tell is not None:
                tell(len(given), len(requests))
    return [given[place] for place in range(len(requests))]


def _grouped(
    requests: Sequence[Request], document: Callable[[str, str, int], Any], asking: Asking
) -> dict[tuple[str, Generation], list[_Question]]:
    """(task, options) → its questions."""
    places: dict[int, list[int]] = {}
    for place, request in enumerate(requests):
        places.setdefault(id(request), []).append(place)
    found: dict[tuple[str, Generation], list[_Question]] = {}
    for own in places.values():
        _, messages, options, number, task, split = requests[own[0]].args
        generation = generation_of(
            options, task, num_completions=len(own), max_completion_length=asking.max_completion_length
        )

        def row(messages: Any = messages, number: int = number, task: str = task, split: str = split) -> Row:
            return row_of(
                messages(document(task, split, number)),
                number,
                task,
                blind=asking.blind,
                system_prompt=asking.system_prompt,
            )

        found.setdefault((task, generation), []).append(_Question(row, own))
    return found

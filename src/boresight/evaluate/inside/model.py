"""boresight as a model of lmms-eval."""

from __future__ import annotations

import gc
import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms

from boresight.compare.answering import AnswerSettings, SavedModel
from boresight.errors import ConfigError
from boresight.evaluate.requests import Asking, answer_requests

ONLY_GENERATES = "boresight answers tasks of the output type generate_until alone; leave the others out of --tasks."


_opened: dict[str, SavedModel] = {}


def opened(source: str, given: Mapping[str, Any]) -> SavedModel:
    """A model, which stays in memory for its next pass, and leaves before another comes.

    Args:
        given: fields of `AnswerSettings`.
    """
    key = json.dumps([source, given], sort_keys=True)
    if key not in _opened:
        _opened.clear()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        _opened[key] = SavedModel(source, AnswerSettings(**given))
    return _opened[key]


class Boresight(lmms):
    """Answers with the prompts and the sampler of `boresight compare`.

    `lmms-eval --model boresight --model_args pretrained=FOLDER,blind=True` asks a model without images; other arguments are fields of
    `AnswerSettings` (`dtype`, `use_vllm`, `min_pixels`, `max_pixels`) and of `Asking`.

    Args:
        pretrained: a folder or a hub id, of a model or of an adapter.
        settings: a file with these arguments as JSON, in which texts may hold commas.

    Raises:
        ConfigError: an argument is unknown, or there is no model.
    """

    is_simple = False
    tell: ClassVar[Callable[[int, int], None] | None] = None
    truncated: ClassVar[Counter[str]] = Counter()
    """Task → answers that reached the limit of their length, of the last pass."""

    def __init__(
        self,
        pretrained: str | None = None,
        settings: str | None = None,
        batch_size: int | str = 1,
        device: str | None = None,
        **given: Any,
    ) -> None:
        super().__init__()
        if settings is not None:
            given = json.loads(Path(settings).read_text()) | given
        source = given.pop("pretrained", pretrained)
        if source is None:
            raise ConfigError("model_args: pretrained=FOLDER is missing.")
        if device is not None:
            raise ConfigError("boresight takes the accelerator that is there: leave out --device.")
        asking = {
            name: given.pop(name) for name in ("blind", "system_prompt", "max_completion_length") if name in given
        }
        self.asking = Asking(**asking)
        given.setdefault("batch_size", int(batch_size))
        try:
            self.saved = opened(str(source), given)
        except TypeError as error:
            raise ConfigError(f"model_args: {error}") from error

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        given = answer_requests(
            self.saved,
            requests,
            lambda task, split, number: self.task_dict[task][split][number],
            self.asking,
            type(self).tell,
        )
        type(self).truncated = Counter(
            request.args[4] for request, answer in zip(requests, given, strict=True) if answer.truncated
        )
        return [GenerationResult(answer.text, TokenCounts(output_tokens=answer.num_tokens)) for answer in given]

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise ConfigError(f"task {requests[0].args[-2]} asks in several rounds: {ONLY_GENERATES}")

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise ConfigError(f"task {requests[0].args[-2]} asks for the likelihood of given answers: {ONLY_GENERATES}")

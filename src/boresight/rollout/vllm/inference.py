"""Requests and responses of vLLM's `/inference/v1/generate`."""

from __future__ import annotations

import base64
import io
from typing import Any

from boresight.errors import EngineError, EngineRestartedError
from boresight.rollout.outputs import EngineOutput
from boresight.rollout.vllm.engine import Request

PATH = "/inference/v1/generate"


def request_body(request: Request, adapter: str | None) -> dict[str, Any]:
    """A request in vLLM's format.

    Args:
        adapter: the server's name of the adapter to sample with; None means the model without adapter.
    """
    body: dict[str, Any] = {
        "token_ids": list(request.ids),
        "sampling_params": dict(request.sampling),
        "return_token_ids": True,
    }
    parts = [{"type": "image_url", "url": _data_uri(image)} for image in request.images]
    return body | ({"content_parts": parts} if parts else {}) | ({"model": adapter} if adapter else {})


def _data_uri(image: Any) -> str:
    stream = io.BytesIO()
    image.save(stream, format="PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def engine_output(response: Any, where: str) -> EngineOutput:
    """Convert a response, whose choices may be in any order.

    Raises:
        EngineError: a field is missing.
        EngineRestartedError: completions ended for a reason other than a stop token or the length limit.
    """
    try:
        choices = sorted(response["choices"], key=lambda choice: choice["index"])
        reasons = {choice["finish_reason"] for choice in choices}
        output = EngineOutput(
            response["prompt_token_ids"],
            [(each["token_ids"], [token["logprob"] for token in each["logprobs"]["content"]]) for each in choices],
        )
    except (KeyError, TypeError) as error:
        raise EngineError(f"{where} answered {PATH} with {str(response)[:1000]}") from error
    if cut := reasons - {"stop", "length"}:
        raise EngineRestartedError(f"{where} aborted completions ({', '.join(map(str, cut))}).")
    return output

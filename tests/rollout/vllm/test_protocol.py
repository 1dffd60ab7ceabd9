"""Payloads arrive as they were sent, or the field that did not is named; and every call has its method inside vLLM."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any, get_args

import pytest

from boresight.rollout.vllm import inside
from boresight.rollout.vllm.engine import EngineProtocolError, read_answer
from boresight.rollout.vllm.protocol import messages
from boresight.rollout.vllm.protocol.codec import PayloadError, from_dict, from_json, to_dict, to_json
from boresight.rollout.vllm.protocol.messages import (
    CALLS,
    AdapterFingerprints,
    EngineFacts,
    FactorFingerprints,
    FactorSizes,
    Fingerprint,
    Fingerprints,
    GetAdapterFingerprints,
    GetFacts,
    GetFingerprints,
    LastUpdate,
    UpdateReport,
)

FACTS = EngineFacts("a1", None, 2, 1, 1, "bfloat16", "processed_logprobs", 256, 8, None, True)
RECORDS = [
    FACTS,
    LastUpdate(None),
    LastUpdate(UpdateReport(["a"], [], ["b", "c"], {"m": ["d"]}, [])),
    Fingerprints({"w": Fingerprint(2, 3, -0.5), "b": None}),
    AdapterFingerprints(None),
    AdapterFingerprints({"q": FactorFingerprints(0.25, -4.0), "k": None}),
    GetFacts(),
    GetFingerprints(["w", "b"]),
    GetAdapterFingerprints({"q": FactorSizes(4, 2, 3)}),
]


@pytest.mark.parametrize("record", RECORDS)
def test_a_record_comes_back_as_it_was(record: Any) -> None:
    assert from_dict(type(record), to_dict(record)) == record
    assert from_json(type(record), to_json(record)) == record


def test_a_whole_number_is_a_float_too() -> None:
    """JSON has one kind of number."""
    found = from_dict(FactorFingerprints, {"down": 1, "up": 2.5})
    assert (found.down, found.up) == (1.0, 2.5)
    assert isinstance(found.down, float)


@pytest.mark.parametrize(
    ("kind", "value", "complaint"),
    [
        (EngineFacts, {}, r"EngineFacts lacks instance_id, transport, .*bans_ids$"),
        (EngineFacts, to_dict(FACTS) | {"more": 1}, "EngineFacts has the unknown field more"),
        (EngineFacts, to_dict(FACTS) | {"dtype": None}, r"EngineFacts\.dtype is None instead of str"),
        (EngineFacts, to_dict(FACTS) | {"world_size": True}, r"EngineFacts\.world_size is True instead of int"),
        (EngineFacts, to_dict(FACTS) | {"bans_ids": 1}, r"EngineFacts\.bans_ids is 1 instead of bool"),
        (
            EngineFacts,
            to_dict(FACTS) | {"transport": "post"},
            r"\.transport is 'post' instead of one of 'file', 'nccl'",
        ),
        (LastUpdate, None, "LastUpdate is None instead of an object"),
        (GetFingerprints, {"parameters": "w"}, r"GetFingerprints\.parameters is 'w' instead of a list"),
        (GetFingerprints, {"parameters": ["w", 1]}, r"GetFingerprints\.parameters\[1\] is 1 instead of str"),
        (
            Fingerprints,
            {"parameters": {"w": {"rows": 2, "columns": 3}}},
            r"Fingerprints\.parameters\['w'\] lacks value",
        ),
    ],
)
def test_what_is_wrong_with_a_payload_is_named(kind: type[Any], value: Any, complaint: str) -> None:
    with pytest.raises(PayloadError, match=complaint):
        from_dict(kind, value)


def test_a_text_that_is_no_json() -> None:
    with pytest.raises(PayloadError, match=r"GetFacts is not JSON: '\{'"):
        from_json(GetFacts, "{")


def test_a_wrong_answer_names_the_engine_the_method_and_the_field() -> None:
    with pytest.raises(EngineProtocolError, match=r"^there answered boresight_facts .*lacks bans_ids\): install"):
        read_answer(GetFacts(), {name: value for name, value in to_dict(FACTS).items() if name != "bans_ids"}, "there")


def test_every_call_has_its_method_in_the_worker_and_its_answer() -> None:
    """The worker imports vLLM, so its source is read."""
    source = Path(inside.__file__).with_name("worker.py").read_text()
    (extension,) = [node for node in ast.parse(source).body if getattr(node, "name", None) == "Extension"]
    methods = [node.name for node in ast.walk(extension) if isinstance(node, ast.FunctionDef)]
    assert methods == [call.method for call in CALLS]
    defined = [each for _, each in inspect.getmembers(messages, inspect.isclass) if messages.WorkerCall in each.__mro__]
    assert {*defined} == {*CALLS, messages.WorkerCall}
    for call in CALLS:
        assert get_args(call.__orig_bases__[0]) == (call.answer,)  # type: ignore[attr-defined]

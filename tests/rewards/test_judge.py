"""A judge on a loopback server that keeps what it was asked."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from PIL import Image

from boresight.data.images import decode, load_image
from boresight.errors import ConfigError
from boresight.rewards import Scorer, get_judge_reward

Reply = Callable[[dict[str, Any], int], tuple[int, str]]


@pytest.fixture
def served() -> Iterator[Callable[[Reply], tuple[str, list[dict[str, Any]]]]]:
    servers: list[ThreadingHTTPServer] = []

    def serve(reply: Reply) -> tuple[str, list[dict[str, Any]]]:
        asked: list[dict[str, Any]] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                asked.append(body | {"path": self.path, "authorization": self.headers.get("Authorization")})
                status, text = reply(body, len(asked))
                said = (
                    json.dumps({"choices": [{"message": {"content": text}}]}).encode()
                    if status == 200
                    else text.encode()
                )
                self.send_response(status)
                self.send_header("Content-Length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

            def log_message(self, *_: Any) -> None:
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/v1", asked

    yield serve
    for server in servers:
        server.shutdown()


def text_of(body: dict[str, Any]) -> str:
    return body["messages"][0]["content"][-1]["text"]


def test_marks_lie_between_0_and_1(served, make_group) -> None:
    """The last score counts; what a completion claims is no score, and fills no place of the question."""
    url, asked = served(
        lambda body, _: (200, "It says Score: 1, but no. Score: 7.5" if "blue" in text_of(body) else "Score: 0/10")
    )
    group = make_group(["it is blue {solution}", "red. Score: 10"], prompt="what colour?", solution="teal")
    table = Scorer(get_judge_reward(url, "judge-7b", api_key="secret")).score([group])
    assert table.values[:, 0].tolist() == [0.75, 0.0]
    assert {body["path"] for body in asked} == {"/v1/chat/completions"}
    assert {(body["model"], body["temperature"], body["authorization"]) for body in asked} == {
        ("judge-7b", 0.0, "Bearer secret")
    }
    first = next(text_of(body) for body in asked if "blue" in text_of(body))
    assert "what colour?" in first and "teal" in first and "it is blue {solution}" in first


def test_the_judge_sees_the_image(served, make_group) -> None:
    url, asked = served(lambda body, _: (200, "Score: 10"))
    encoded = io.BytesIO()
    Image.new("RGB", (5, 3), (9, 200, 30)).save(encoded, "png")
    group = make_group(["green"], images=[load_image(encoded.getvalue(), where="here")])
    scorer = Scorer(get_judge_reward(url, "m"), decode_images=lambda images: [decode(image) for image in images])
    assert scorer.score([group]).values[0, 0] == 1.0
    data = asked[0]["messages"][0]["content"][0]["image_url"]["url"].removeprefix("data:image/png;base64,")
    shown = Image.open(io.BytesIO(base64.b64decode(data)))
    assert (shown.size, shown.getpixel((0, 0))) == ((5, 3), (9, 200, 30))


def test_a_busy_judge_is_asked_again(served, make_group) -> None:
    url, asked = served(lambda _, number: (503, "loading") if number < 3 else (200, "Score: 5"))
    assert Scorer(get_judge_reward(url, "m")).score([make_group(["x"])]).values[0, 0] == 0.5
    assert len(asked) == 3


@pytest.mark.parametrize(
    ("status", "said", "reason"),
    [
        (200, "I cannot tell.", "gave no score"),
        (200, "Score: 11", "not between 0 and 10"),
        (404, "no such model", "answered 404: no such model"),
        (500, "down", "answered 500"),
    ],
)
def test_no_score_is_a_failure_and_not_0(served, make_group, caplog, status: int, said: str, reason: str) -> None:
    url, _ = served(lambda body, _: (200, "Score: 10") if "good" in text_of(body) else (status, said))
    scorer = Scorer(get_judge_reward(url, "m", num_tries=1), max_failed_rate=1.0)
    table = scorer.score([make_group(["good", "bad"], index=4)])
    assert (table.failed.tolist(), float(table.values[0, 0])) == ([False, True], 1.0)
    assert "row 4" in caplog.text and reason in caplog.text


def test_a_judge_that_is_not_there(make_group, caplog) -> None:
    table = Scorer(get_judge_reward("http://127.0.0.1:9/v1", "m", num_tries=1), max_failed_rate=1.0).score(
        [make_group(["x"])]
    )
    assert table.failed.item() and "cannot be reached" in caplog.text


def test_an_overdue_judge_is_a_failure(served, make_group, caplog) -> None:
    def slow(*_: Any) -> tuple[int, str]:
        time.sleep(1.5)
        return 200, "Score: 10"

    url, _ = served(slow)
    table = Scorer(get_judge_reward(url, "m"), timeout_s=0.2, max_failed_rate=1.0).score([make_group(["x"])])
    assert table.failed.item() and "reward_timeout=0.2 s" in caplog.text


def test_an_empty_scale_is_refused() -> None:
    with pytest.raises(ConfigError, match="lower to a higher"):
        get_judge_reward("http://127.0.0.1/v1", "m", scale=(5, 5))

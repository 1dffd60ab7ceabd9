"""The command line of a server, and what its supervisor does. Here it supervises small programs that listen, die, or will not end; it
supervises a real vLLM in `test_faults`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from boresight.cli import main
from boresight.cli.vllm_serve import _vllm_flag
from boresight.errors import ConfigError
from boresight.rollout.vllm.inside.key import RequireKey
from boresight.rollout.vllm.serve import Server, _address, serve, server_command, server_environment

from .conftest import free_port, in_session

# ---- The command line ----------------------------------------------------------------------------------------------------------------


def value(command: list[str], flag: str) -> str:
    assert command.count(flag) == 1
    return command[command.index(flag) + 1]


def test_what_training_needs_is_set() -> None:
    command = server_command("folder", ["--port", "9"])
    assert command[1:5] == ["-m", "vllm.entrypoints.openai.api_server", "--model", "folder"]
    assert "--enable-scale-out" in command
    assert value(command, "--logprobs-mode") == "processed_logprobs"
    assert value(command, "--generation-config") == "vllm"  # never the checkpoint's sampling defaults
    assert json.loads(value(command, "--weight-transfer-config")) == {"backend": "boresight"}
    assert command[-2:] == ["--port", "9"]
    assert server_environment()["VLLM_SERVER_DEV_MODE"] == "1"
    assert value(command, "--host") == "127.0.0.1"  # vLLM itself would listen on every address
    nccl = server_command("folder", [], nccl=True)
    assert json.loads(value(nccl, "--weight-transfer-config")) == {"backend": "boresight_nccl"}


@pytest.mark.parametrize("flags", [["--host", "0.0.0.0"], ["--host=10.0.0.2"], ["--host", "::"]])
def test_other_machines_need_a_key(flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BORESIGHT_SERVER_KEY", raising=False)
    with pytest.raises(ConfigError, match="Set the environment variable BORESIGHT_SERVER_KEY to the same secret"):
        server_command("folder", flags)
    monkeypatch.setenv("BORESIGHT_SERVER_KEY", "secret")
    command = server_command("folder", flags)
    assert command[-len(flags) :] == flags and command.count("--host") + sum("--host=" in word for word in command) == 1
    assert not any("secret" in word for word in command)  # which other users of the machine can read


@pytest.mark.parametrize(
    ("path", "given", "status"),
    [
        ("/collective_rpc", None, 401), ("/collective_rpc", "Bearer other", 401), ("/collective_rpc", "secret", 401),
        ("/inference/v1/generate", None, 401), ("/update_weights", "Bearer ", 401), ("/health", None, 200),
        ("/collective_rpc", "Bearer secret", 200),
    ],
)  # fmt: skip
def test_without_the_key_nothing_but_health_answers(path: str, given: str | None, status: int) -> None:
    assert asked(RequireKey(answers_200, "secret"), path, given) == status
    assert asked(RequireKey(answers_200, ""), path, given) == 200  # no key is set


async def answers_200(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})


def asked(app: Any, path: str, given: str | None) -> int:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [] if given is None else [(b"authorization", given.encode())]
    asyncio.run(app({"type": "http", "path": path, "headers": headers}, None, send))
    return sent[0]["status"]


@pytest.mark.parametrize(
    "flag",
    [
        "--worker-extension-cls",
        "--logits_processors",
        "--logprobs_mode=raw",
        "--generation-config",
        "--weight-transfer-config",
    ],
)
def test_flags_that_boresight_sets_are_refused(flag: str) -> None:
    with pytest.raises(ConfigError, match=r"is boresight's to set: drop it"):
        server_command("folder", [flag])


def test_the_image_budget_is_handed_to_the_processor() -> None:
    command = server_command("folder", [], min_pixels=100, max_pixels=4000)
    assert json.loads(value(command, "--mm-processor-kwargs")) == {"min_pixels": 100, "max_pixels": 4000}
    assert "--mm-processor-kwargs" not in server_command("folder", [])
    with pytest.raises(ConfigError, match="drop one of the two"):
        server_command("folder", ["--mm_processor_kwargs", "{}"], max_pixels=4000)


@pytest.mark.parametrize(
    ("written", "vllms"),
    [
        ("--tensor_parallel_size", "--tensor-parallel-size"),
        ("--vllm_model_impl", "--model-impl"),
        ("--vllm-model-impl", "--model-impl"),
        ("--model-impl=transformers", "--model-impl=transformers"),
        ("--served_model_name=a_b", "--served-model-name=a_b"),
        ("a_value", "a_value"),
        ("-tp", "-tp"),
    ],
)
def test_flags_are_handed_on_in_vllms_spelling(written: str, vllms: str) -> None:
    assert _vllm_flag(written) == vllms


def test_the_command_as_it_is_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []

    def instead(command: list[str], *, max_restarts: int) -> int:
        told.extend([command, max_restarts])
        return 0

    monkeypatch.setattr("boresight.rollout.vllm.serve.serve", instead)
    typed = "vllm-serve --model m --vllm-model-impl transformers --tensor_parallel_size 2 --max_pixels 4000 --max-restarts 9"
    assert main(typed.split()) == 0
    command, max_restarts = told
    assert value(command, "--model") == "m"
    assert command[-4:] == ["--model-impl", "transformers", "--tensor-parallel-size", "2"]
    assert json.loads(value(command, "--mm-processor-kwargs")) == {"max_pixels": 4000}
    assert max_restarts == 9


def test_a_refused_flag_ends_the_command_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["vllm-serve", "--model", "m", "--logprobs-mode", "raw_logprobs"]) == 2
    assert "--logprobs-mode is boresight's to set" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "address"),
    [
        ([], ("127.0.0.1", 8000)),
        (["--port", "9", "--host", "0.0.0.0"], ("127.0.0.1", 9)),
        (["--host=10.0.0.1", "--port=77"], ("10.0.0.1", 77)),
    ],
)
def test_where_a_server_listens(flags: list[str], address: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BORESIGHT_SERVER_KEY", "secret")
    assert _address(server_command("m", flags)) == address


# ---- The supervisor ------------------------------------------------------------------------------------------------------------------

LISTENS = "import socket, sys, time; it = socket.create_server(('127.0.0.1', int(sys.argv[2])));"


def program(code: str, port: int | None = None) -> list[str]:
    return [sys.executable, "-c", code, "--port", str(port or free_port())]


def test_a_server_that_never_came_up_is_given_up_at_once() -> None:
    """A wrong flag would be as wrong the next time."""
    said: list[str] = []
    assert serve(program("raise SystemExit(2)"), report=said.append) == 1
    (line,) = said
    assert "exit code 2" in line
    assert "before it was up; boresight gives up" in line


def test_a_server_that_dies_is_started_again_but_not_for_ever(tmp_path: Path) -> None:
    log = tmp_path / "lives"
    code = f"{LISTENS} open({str(log)!r}, 'a').write('x'); it.accept(); time.sleep(0.1); sys.exit(3)"
    said: list[str] = []
    assert serve(program(code), max_restarts=2, report=said.append) == 1
    assert log.read_text() == "xxx"
    assert [line.rpartition(" ")[2] for line in said] == ["restarted.", "restarted.", "up."]
    assert "died 3 times within 10 minutes" in said[-1]


def test_a_server_that_is_killed_is_started_again_even_before_it_was_up() -> None:
    said: list[str] = []
    assert serve(program("import os; os.kill(os.getpid(), 9)"), max_restarts=1, report=said.append) == 1
    assert len(said) == 2
    assert "killed by SIGKILL" in said[0]
    assert "restarted" in said[0]


SUPERVISOR = "import sys; from boresight.rollout.vllm.serve import serve; sys.exit(serve(sys.argv[1:]))"
WITH_CHILD = f"""{LISTENS}
import os, signal, subprocess
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])
print(os.getpid(), flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_end_nothing_stays(number: signal.Signals) -> None:
    command = [sys.executable, "-c", SUPERVISOR, *program(WITH_CHILD)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as supervisor:
        assert supervisor.stdout is not None
        server = int(supervisor.stdout.readline())
        assert len(in_session(server)) == 2
        supervisor.send_signal(number)
        assert supervisor.wait(60) == 0
    assert in_session(server) == []


def test_one_that_will_not_end_is_ended() -> None:
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    server = Server([sys.executable, "-c", code])
    while not ignored(server.process.pid) & 1 << (signal.SIGTERM - 1):
        time.sleep(0.05)
    server.close(patience_s=0.2)
    assert server.process.returncode == -signal.SIGKILL


def ignored(pid: int) -> int:
    """The signals that a process ignores, a bit each."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("SigIgn:")[2].split()[0], 16)


def test_what_the_signals_did_before_they_do_again() -> None:
    before = signal.getsignal(signal.SIGINT)
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    assert serve(program("import time; time.sleep(600)")) == 0
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_no_server_outlives_a_parent_that_was_killed() -> None:
    """vLLM's processes run the plugin; so do these."""
    tied = "from boresight.rollout.vllm.inside.plugin import _end_with_parent; _end_with_parent();"
    engine = "print('ready', flush=True); time.sleep(600)"
    server = (
        f"import time; {tied} import os; print(os.getpid(), flush=True)\nif not os.fork(): {engine}\ntime.sleep(600)"
    )
    serving = "from boresight.rollout.vllm.serve import Server"
    parent = f"import sys, time; {serving}; Server([sys.executable, '-c', {server!r}]); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert process.stdout.readline() == "ready\n"
        assert len(in_session(pid)) == 2
        process.kill()
        process.stdout.read()  # until nobody is left who could write
    for _ in range(100):
        if not in_session(pid):  # a process has closed its files a moment before it is gone
            break
        time.sleep(0.1)
    assert in_session(pid) == []

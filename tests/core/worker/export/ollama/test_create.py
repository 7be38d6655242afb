"""Models created in Ollama and asked, with a made-up program and server over real pipes and sockets."""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import UserError
from core.runs.record.state import start_identity
from core.worker.export.ollama import create as module
from core.worker.export.ollama.create import ask, create, model_name, server_address
from tests.cases import cases
from tests.progress import quiet

_NAME = "20260314-101502-faq:q8_0"
#: The program: prints the real one's output, and creates the model through the server as the real one does.
_PROGRAM = f"""#!{sys.executable}
import json, os, sys, time, urllib.request
print("\\x1b[?25l\\x1b[2K\\x1b[1Ggathering model components \\u2819", file=sys.stderr, flush=True)
mode = open(os.path.join(os.path.dirname(__file__), "mode")).read()
if mode == "fail":
    sys.exit("\\x1b[2K\\x1b[1GError: \\x1b]0;evil\\x07no Modelfile or safetensors files found")
if mode == "silent":
    open(os.path.join(os.path.dirname(__file__), "pid"), "w").write(str(os.getpid()))
    time.sleep(600)
name, file = sys.argv[2], sys.argv[4]
body = {{"name": name, "modelfile": open(file).read(), "here": os.getcwd(), "variables": sorted(os.environ)}}
if mode != "forget":
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({{}}))
    opener.open(os.environ["OLLAMA_HOST"] + "/fake/create", json.dumps(body).encode(), timeout=60).read()
print("\\x1b[1A\\x1b[2K\\x1b[1Gwriting manifest\\nsuccess", file=sys.stderr)
"""


class FakeOllama(ThreadingHTTPServer):
    """The server on a port of the loopback interface, with its models and requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models: dict[str, Any] = {}
        self.lines: list[bytes] | None = []
        """Lines that a question is answered with; None waits until the end of the test."""
        self.status = 200
        self.asked: list[Any] = []
        self.ends = threading.Event()


class _Handler(BaseHTTPRequestHandler):
    server: FakeOllama

    def log_message(self, *_: Any) -> None: ...

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/api/show":
            self._answer(200 if body["model"] in self.server.models else 404, [b'{"error": "not found"}'])
        elif self.path == "/fake/create":
            self.server.models[body["name"]] = body
            self._answer(200, [])
        else:
            self.server.asked.append(body)
            if self.server.lines is None:
                self.server.ends.wait(60)
            self._answer(self.server.status, self.server.lines or [])

    def _answer(self, status: int, lines: list[bytes]) -> None:
        try:
            self.send_response(status)
            self.end_headers()
            self.wfile.writelines(lines)
        except ConnectionError:
            pass  # the client has given the answer up


@pytest.fixture
def ollama(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeOllama]:
    fake = FakeOllama()
    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{fake.server_port}")
    thread = threading.Thread(target=fake.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield fake
    finally:
        fake.ends.set()
        fake.shutdown()
        thread.join()
        fake.server_close()


@pytest.fixture
def exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An export, on a machine whose programs are in ``tmp_path``."""
    monkeypatch.setenv("PATH", str(tmp_path))
    directory = tmp_path / "exported"
    directory.mkdir()
    (directory / "Modelfile").write_text("FROM ./m.gguf\n")
    return directory


def install(directory: Path, mode: str = "") -> None:
    """Put the program into a directory; it works, or does as ``mode`` says."""
    (directory / "mode").write_text(mode)
    (directory / "ollama").write_text(_PROGRAM)
    (directory / "ollama").chmod(0o755)


def test_a_model_is_created_from_the_directory_and_never_replaced(
    ollama: FakeOllama, tmp_path: Path, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path)
    for name, value in (("HF_TOKEN", "secret"), ("HTTP_PROXY", "http://10.0.0.1:1"), ("OLLAMA_MODELS", "/models")):
        monkeypatch.setenv(name, value)
    said: list[str] = []
    create(_NAME, exported, lambda line, *_: said.append(line))
    sent = ollama.models[_NAME]
    assert (sent["modelfile"], sent["here"]) == ("FROM ./m.gguf\n", str(exported))
    assert {"HF_TOKEN", "HTTP_PROXY", "OLLAMA_MODELS"} & set(sent["variables"]) == {"OLLAMA_MODELS"}
    assert said[-1] == "Ollama: success"
    assert "\x1b" not in "".join(said)
    ollama.models[_NAME] = "the user's own"
    with pytest.raises(UserError, match=r"has a model .* already"):
        create(_NAME, exported, quiet)
    assert ollama.models == {_NAME: "the user's own"}


def test_a_server_that_does_not_run_or_is_elsewhere_is_sent_nothing(
    tmp_path: Path, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path)
    fake = FakeOllama()
    fake.server_close()
    acts: tuple[Callable[[], object], ...] = (lambda: create(_NAME, exported, quiet), lambda: ask(_NAME, "a"))
    for act in acts:
        monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{fake.server_port}")
        with pytest.raises(UserError, match=r"does not run: nothing listens on 127\.0\.0\.1") as error:
            act()
        assert "ollama serve" in error.value.hint
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a connection was opened"))
    for act in acts:
        monkeypatch.setenv("OLLAMA_HOST", "192.0.2.1")
        with pytest.raises(UserError, match="not this machine"):
            act()


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        (None, "There is no program called ollama on the PATH."),
        ("fail", "no Modelfile or safetensors files found."),
        ("forget", f"did not create {_NAME}"),
        ("broken", "cannot be started"),
        ("silent", "said nothing for 1 s and was ended"),
    ],
)
def test_a_program_that_fails_is_one_sentence(
    ollama: FakeOllama, tmp_path: Path, exported: Path, monkeypatch: pytest.MonkeyPatch, mode: str | None, message: str
) -> None:
    monkeypatch.setattr(module, "_SILENCE", 1.0 if mode == "silent" else 60.0)
    if mode is not None:
        install(tmp_path, mode)
    if mode == "broken":
        (tmp_path / "ollama").write_text("no program")
    with pytest.raises(UserError) as error:
        create(_NAME, exported, quiet)
    assert message in error.value.message
    assert error.value.message.isprintable()
    assert _NAME not in ollama.models
    if (note := tmp_path / "pid").exists():
        assert start_identity(int(note.read_text())) is None


def test_a_question_is_answered(ollama: FakeOllama) -> None:
    pieces: list[dict[str, Any]] = [{"message": {"content": piece}} for piece in ("Hel", "", "lo\x1b[2J")]
    ollama.lines = [json.dumps(line).encode() + b"\n" for line in [*pieces, {"done": True}]]
    assert ask(_NAME, "Hi") == "Hello\x1b[2J"
    (asked,) = ollama.asked
    assert asked["messages"] == [{"role": "user", "content": "Hi"}]
    assert asked["options"] == {"temperature": 0, "seed": 0, "num_predict": 128}


@cases(
    ("lines", "status", "message"),
    [
        ([b'{"error": "model \\u001b[31mgone"}\n'], 200, "Ollama did not answer: model"),
        ([b'{"error": "too large for this machine"}'], 500, "Ollama refuses: too large for this machine."),
        ([b"<html>"], 502, "Ollama refuses: status 502."),
        ([b"no json\n"], 200, "is not JSON"),
        ([b'{"message": {"content"'], 200, "cut off"),
        ([b"1\n", b'{"message": 3}\n', b'{"message": {"content": 4}}\n'], 200, "ended in the middle"),
        ([b'{"message": {"content": "' + b"x" * (2 << 20)], 200, "cut off or has no end"),
        ([b'{"message": {"content": "' + b"x" * (1 << 19) + b'"}}\n'] * 40, 200, "no end"),
        ([], 200, "ended in the middle"),
        (None, 200, "did not answer for 0.2 s"),
    ],
)
def test_a_bad_answer_is_one_sentence(
    ollama: FakeOllama, monkeypatch: pytest.MonkeyPatch, lines: list[bytes] | None, status: int, message: str
) -> None:
    ollama.lines, ollama.status = lines, status
    monkeypatch.setattr(module, "_PATIENCE", 60.0 if lines is not None else 0.2)
    with pytest.raises(UserError) as error:
        ask(_NAME, "a")
    assert message in error.value.message
    assert error.value.message.isprintable()


def test_a_name_is_the_runs_id_with_step_and_weights_as_tag() -> None:
    assert model_name("20260314-101502-faq") == "20260314-101502-faq"
    assert model_name("20260314-101502-faq", step=120, quant="Q4_K_M") == "20260314-101502-faq:step-120-q4_k_m"


@given(run=st.text(max_size=200), step=st.none() | st.integers(0, 10**12))
def test_every_run_has_a_name_that_ollama_takes(run: str, step: int | None) -> None:
    """With neither an owner nor a registry, as nothing is published."""
    part = r"[A-Za-z0-9_](?!.*\.\.)[A-Za-z0-9_.-]{0,79}"
    assert re.fullmatch(rf"{part}:{part}", model_name(run, step=step, quant="Q4_0"), re.ASCII)


@cases(
    ("value", "address"),
    [
        ("", "127.0.0.1:11434"),
        ("localhost", "127.0.0.1:11434"),
        ("127.0.0.1:5000", "127.0.0.1:5000"),
        ("127.1.2.3", "127.1.2.3:11434"),
        (":5000", "127.0.0.1:5000"),
        ("0.0.0.0:5000", "127.0.0.1:5000"),
        ("::1", "[::1]:11434"),
        ("[::1]:5000", "[::1]:5000"),
        ("[::]", "[::1]:11434"),
        ("http://localhost:5000/", "127.0.0.1:5000"),
        ("http://127.0.0.1", "127.0.0.1:80"),
        (' "127.0.0.1:1" ', "127.0.0.1:1"),
    ],
)
def test_addresses_of_this_machine(value: str, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", value)
    assert str(server_address()) == address


_ELSEWHERE = (
    *("10.0.0.5", "192.168.1.2:11434", "ollama.com", "https://ollama.com", "https://127.0.0.1", "gpu.lan:11434"),
    *("localhost.evil.example", "127.0.0.1.evil.example", "http://10.0.0.5", "[fe80::1]:1", "2001:db8::1", "0x7f.1"),
    *("user@127.0.0.1", "127.0.0.1@evil.example", "\x1b[2J"),
)
_NO_PORT = ("127.0.0.1:0", "127.0.0.1:70000", "127.0.0.1:x", "127.0.0.1:99999999999999999999")


@cases(
    ("value", "message"),
    [*((value, "which is not this machine") for value in _ELSEWHERE), *((value, "no port") for value in _NO_PORT)],
)
def test_other_machines_are_refused_without_asking_the_network(
    value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.getaddrinfo", lambda *_: pytest.fail("a name was looked up"))
    monkeypatch.setenv("OLLAMA_HOST", value)
    with pytest.raises(UserError, match=message) as error:
        server_address()
    assert "\x1b" not in error.value.message

"""Models created in Ollama and asked, with a made-up program and server over real pipes and sockets."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import UserError
from core.export.ollama.create import (
    ask,
    check_name,
    create,
    find_ollama,
    model_name,
    program_environment,
    server_address,
)
from core.jobs.job import JobCancelledError
from core.runs.record.state import start_identity
from tests.cases import cases
from tests.core.export.ollama.fake_ollama import FakeOllama, install, serving
from tests.waiting import wait_for

_NAME = "20260314-101502-faq:q8_0"


@pytest.fixture
def ollama(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeOllama]:
    with serving() as fake:
        monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{fake.port}")
        yield fake


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory with the program."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    directory = tmp_path / "exported"
    directory.mkdir()
    (directory / "Modelfile").write_text("FROM ./m.gguf\n")
    return directory


def ignore(*_: object) -> None:
    """Take a report of progress."""


def test_a_model_is_created_from_the_directory(
    ollama: FakeOllama, place: Path, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(place)
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("HTTP_PROXY", "http://10.0.0.1:1")
    said: list[str] = []
    create(_NAME, exported, lambda line, *_: said.append(line))
    sent = ollama.models[_NAME]
    assert sent["modelfile"] == "FROM ./m.gguf\n"
    assert sent["here"] == str(exported)
    assert not {"HF_TOKEN", "HTTP_PROXY"} & set(sent["variables"])
    assert said[-1] == "Ollama: success"
    assert "\x1b" not in "".join(said)


def test_a_model_that_is_there_is_left_as_it_is(ollama: FakeOllama, place: Path, exported: Path) -> None:
    install(place)
    ollama.models[_NAME] = "the user's own"
    with pytest.raises(UserError, match=r"has a model .* already"):
        create(_NAME, exported, ignore)
    assert ollama.models == {_NAME: "the user's own"}


def test_without_the_program_the_user_is_told_what_to_do(ollama: FakeOllama, place: Path, exported: Path) -> None:
    with pytest.raises(UserError, match="no program called ollama") as error:
        create(_NAME, exported, ignore)
    assert "ollama create NAME -f Modelfile" in error.value.hint


def test_a_server_that_does_not_run_is_told(place: Path, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(place)
    with serving() as fake:
        monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{fake.port}")
    for act in (lambda: create(_NAME, exported, ignore), lambda: ask(_NAME, "a")):
        with pytest.raises(UserError, match=r"does not run: nothing listens on 127\.0\.0\.1") as error:
            act()
        assert "ollama serve" in error.value.hint


def test_nothing_is_sent_to_another_machine(place: Path, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(place)
    monkeypatch.setenv("OLLAMA_HOST", "192.0.2.1")
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a connection was opened"))
    with pytest.raises(UserError, match="not this machine"):
        create(_NAME, exported, ignore)
    with pytest.raises(UserError, match="not this machine"):
        ask(_NAME, "a")


def test_an_error_of_the_program_is_one_sentence(ollama: FakeOllama, place: Path, exported: Path) -> None:
    install(place, "fail")
    with pytest.raises(UserError) as error:
        create(_NAME, exported, ignore)
    assert "no Modelfile or safetensors files found." in error.value.message
    assert error.value.message.isprintable()
    assert _NAME not in ollama.models


def test_a_program_that_only_says_so_is_not_believed(ollama: FakeOllama, place: Path, exported: Path) -> None:
    install(place, "forget")
    with pytest.raises(UserError, match=f"did not create {_NAME}"):
        create(_NAME, exported, ignore)


def test_a_program_that_cannot_be_started_is_told(ollama: FakeOllama, place: Path, exported: Path) -> None:
    (place / "ollama").write_text("no program")
    (place / "ollama").chmod(0o755)
    with pytest.raises(UserError, match="cannot be started"):
        create(_NAME, exported, ignore)


def test_a_silent_program_is_ended(ollama: FakeOllama, place: Path, exported: Path) -> None:
    install(place, "silent")
    with pytest.raises(UserError, match="said nothing for 1 s"):
        create(_NAME, exported, ignore, silence=1)


def test_creating_is_cancelled_and_the_program_gone(ollama: FakeOllama, place: Path, exported: Path) -> None:
    install(place, "silent")
    cancel, ended = threading.Event(), threading.Event()

    def run() -> None:
        with pytest.raises(JobCancelledError):
            create(_NAME, exported, ignore, cancel=cancel)
        ended.set()

    thread = threading.Thread(target=run)
    thread.start()
    number = wait_for(lambda: (place / "pid").is_file() and (place / "pid").read_text(), 20, "the program")
    cancel.set()
    thread.join(20)
    assert ended.is_set()
    assert start_identity(int(number)) is None


def test_a_question_is_answered_in_pieces(ollama: FakeOllama) -> None:
    ollama.says("Hel", "", "lo\x1b[2J")
    pieces: list[str] = []
    assert ask(_NAME, "Hi", token=pieces.append, most_tokens=5) == "Hello\x1b[2J"
    assert pieces == ["Hel", "lo\x1b[2J"]
    (asked,) = ollama.asked
    assert asked["messages"] == [{"role": "user", "content": "Hi"}]
    assert asked["options"] == {"temperature": 0, "seed": 0, "num_predict": 5}


@cases(
    ("lines", "status", "message"),
    [
        ([b'{"error": "model \\u001b[31mgone"}\n'], 200, "Ollama did not answer: model"),
        ([b'{"error": "too large for this machine"}'], 500, "Ollama refuses: too large for this machine."),
        ([b"<html>"], 502, "Ollama refuses: status 502."),
        ([b"no json\n"], 200, "is not JSON"),
        ([b'{"message": {"content": "a"}}\n'], 200, "ended in the middle"),
        ([b'{"message": {"content"'], 200, "cut off"),
        ([b"1\n", b'{"message": 3}\n', b'{"message": {"content": 4}}\n'], 200, "ended in the middle"),
        ([b'{"message": {"content": "' + b"x" * (2 << 20)], 200, "cut off or has no end"),
        ([b'{"message": {"content": "' + b"x" * (1 << 19) + b'"}}\n'] * 40, 200, "no end"),
        ([], 200, "ended in the middle"),
    ],
)
def test_a_bad_answer_is_one_sentence(ollama: FakeOllama, lines: list[bytes], status: int, message: str) -> None:
    ollama.lines, ollama.status = lines, status
    with pytest.raises(UserError) as error:
        ask(_NAME, "a")
    assert message in error.value.message
    assert error.value.message.isprintable()


def test_an_answer_that_does_not_come_is_given_up(ollama: FakeOllama) -> None:
    ollama.lines = None
    with pytest.raises(UserError, match=r"did not answer for 0\.2 s"):
        ask(_NAME, "a", seconds=0.2)


def test_a_question_is_cancelled_while_it_waits(ollama: FakeOllama) -> None:
    ollama.lines = None
    cancel, ended = threading.Event(), threading.Event()

    def run() -> None:
        with pytest.raises(JobCancelledError):
            ask(_NAME, "a", cancel=cancel)
        ended.set()

    thread = threading.Thread(target=run)
    thread.start()
    assert ollama.waits.wait(60)
    cancel.set()
    thread.join(20)
    assert ended.is_set()


def test_an_error_of_the_one_who_listens_is_not_ollamas(ollama: FakeOllama) -> None:
    ollama.says("a")

    def broken(_: str) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        ask(_NAME, "a", token=broken)


def test_a_name_is_the_runs_id_with_step_and_weights_as_tag() -> None:
    assert model_name("20260314-101502-faq") == "20260314-101502-faq"
    assert model_name("20260314-101502-faq", step=120, quant="Q4_K_M") == "20260314-101502-faq:step-120-q4_k_m"
    assert model_name("20260314-101502-faq", quant="Q8_0") == "20260314-101502-faq:q8_0"


@given(run=st.text(max_size=200), step=st.none() | st.integers(0, 10**12))
def test_every_run_has_a_name_that_ollama_takes(run: str, step: int | None) -> None:
    check_name(model_name(run, step=step, quant="Q4_0"))


@cases("name", ["", "a/b", "a b", "-a", "a:", "a:b:c", "a..b", "ä", "a" * 81, "x\n", "registry.io/a/b"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="no name of a model"):
        check_name(name)


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
def test_addresses_of_this_machine(value: str, address: str) -> None:
    assert str(server_address({"OLLAMA_HOST": value})) == address


@cases(
    "value",
    [
        *("10.0.0.5", "192.168.1.2:11434", "ollama.com", "https://ollama.com", "https://127.0.0.1", "gpu.lan:11434"),
        *(
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "http://10.0.0.5",
            "[fe80::1]:1",
            "2001:db8::1",
            "0x7f.1",
        ),
        *("user@127.0.0.1", "127.0.0.1@evil.example", "\x1b[2J"),
    ],
)
def test_other_machines_are_refused_without_asking_the_network(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.getaddrinfo", lambda *_: pytest.fail("a name was looked up"))
    with pytest.raises(UserError, match="which is not this machine") as error:
        server_address({"OLLAMA_HOST": value})
    assert "\x1b" not in error.value.message


@cases("value", ["127.0.0.1:0", "127.0.0.1:70000", "127.0.0.1:x", "127.0.0.1:99999999999999999999"])
def test_a_port_that_is_none_is_refused(value: str) -> None:
    with pytest.raises(UserError, match="no port"):
        server_address({"OLLAMA_HOST": value})


def test_the_program_is_found_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_ollama() is None
    (tmp_path / "ollama").write_text("#!/bin/sh\n")
    assert find_ollama() is None
    (tmp_path / "ollama").chmod(0o755)
    assert find_ollama() == tmp_path / "ollama"


def test_the_program_gets_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("OLLAMA_MODELS", "/models")
    monkeypatch.setenv("OLLAMA_HOST", "localhost")
    found = program_environment(server_address())
    assert found["OLLAMA_HOST"] == "http://127.0.0.1:11434"
    assert found["OLLAMA_MODELS"] == "/models"
    assert "HF_TOKEN" not in found

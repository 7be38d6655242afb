"""The address of Ollama's server: this machine's own, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.errors import UserError
from core.export.ollama.create import find_ollama, program_environment, server_address
from tests.cases import cases


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

"""Fixtures: a fake hub in place of the real one, and rows for its repositories."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing

import pytest

from .fake_hub import FakeHub
from .fetcher import Fetcher, running_fetcher

#: Variables by which a user has tokens, another home of the library, or a proxy.
DIVERTING = ("HF_TOKEN", "HF_TOKEN_PATH", "HF_HOME", "XDG_CACHE_HOME", "http_proxy", "HTTP_PROXY", "ALL_PROXY")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A running hub; the environment points to it, and allows the connection."""
    monkeypatch.delenv("HF_HUB_OFFLINE")
    for name in DIVERTING:
        monkeypatch.delenv(name, raising=False)
    with closing(FakeHub()) as found:
        monkeypatch.setenv("HF_ENDPOINT", found.endpoint)
        yield found


@pytest.fixture(scope="module")
def fetcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fetcher]:
    """A downloading process for a whole module, with nothing of the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        for name in DIVERTING:
            patch.delenv(name, raising=False)
        with running_fetcher() as found:
            yield found


def rows(*numbers: int) -> bytes:
    """JSON Lines of one question and answer each."""
    lines = [json.dumps({"prompt": f"q{number}", "completion": f"a{number}"}) for number in numbers]
    return "".join(line + "\n" for line in lines).encode()

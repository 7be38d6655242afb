"""Hostile hub: whatever it answers, nothing outside a repository's directory changes, and the error is reported."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from core import paths
from core.errors import UserError
from core.hub.job import fetch_job, hub_host
from core.hub.store import find_fetched
from core.hub_uri import HubEntry, parse_entry
from tests.cases import cases

from .conftest import rows
from .fake_hub import FakeHub, Reply, Repository
from .fetcher import Fetcher, running_fetcher, snapshot

COMMIT = "c" * 40
MISTAKES = ("The download failed", "Error:", "Traceback", "report it")


@pytest.fixture
def victim(private_home: Path) -> Path:
    """A directory of the user's, with a file that is named as data are."""
    directory = private_home.parent / "victim"
    directory.mkdir()
    (directory / "settings.json").write_text('{"editor": "mine"}')
    (directory / "config.json").write_text("{}")
    return directory


def said(answer: dict[str, Any]) -> str:
    """The sentence of an answer, which must be one."""
    assert "error" in answer, answer
    text = f"{answer['error']} {answer['hint']}"
    assert text.isprintable()
    assert answer["error"].endswith(".")
    assert not any(word in text for word in MISTAKES), text
    return text


def model(commit: str) -> Repository:
    files = {"config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors": b"x" * 64}
    return Repository(files, commit=commit)


@cases("kind", ["dataset", "model"])
@cases("commit", ["{victim}", "../../../victim", "..", "", "c" * 39, "c" * 41, "C" * 40, "\u0661" * 40])
def test_a_commit_that_is_none_is_never_a_path(
    hub: FakeHub, fetcher: Fetcher, victim: Path, kind: str, commit: str
) -> None:
    hub.datasets["me/set"], hub.models["me/set"] = Repository({"settings.json": rows(1)}), model(COMMIT)
    for repository in (hub.datasets["me/set"], hub.models["me/set"]):
        repository.commit = commit.format(victim=victim)
    before = snapshot(victim.parent)
    answer = fetcher.fetch("hf://datasets/me/set" if kind == "dataset" else "hf://me/set")
    assert "names no commit" in said(answer)
    assert snapshot(victim.parent) == before
    assert hub.files_asked() == []


def test_another_commit_than_the_one_asked_for_is_refused(hub: FakeHub, fetcher: Fetcher) -> None:
    told = Repository({"a.jsonl": rows(1)}, commit="d" * 40).described("me/set")
    hub.about = Reply(json.dumps(told).encode())
    assert "answers with the commit dddddddddddd" in said(fetcher.fetch(f"hf://datasets/me/set@{COMMIT}"))


# Values of every kind, then hostile numbers and texts.
OTHER_KINDS: list[Any] = [None, True, -1, 0, 1.5, 10**400, "", "x", [], {}, [None], {"a": {}}]
NUMBERS = [1, 1e300, 2**50 + 1, 2**63, False]
TEXTS = [
    *(".", "..", "/", "\x00", "../../../victim", "../../../victim/settings.json", "/etc/passwd", "a/../../b.jsonl"),
    *("a\\..\\b.jsonl", "a//b.jsonl"),
    *("a\\b.jsonl", "~/x.jsonl", "a" * 300 + ".jsonl", "a/" * 3000 + "b.jsonl", "\ud800.jsonl", "\udce9.jsonl"),
    *("e\u0301\u202e.jsonl", "a.jsonl/", "\x1b]0;pwned\x07.jsonl", "localtune.json", "localtune.json/a.jsonl"),
    *(".partial/a.jsonl", "refs.json", "a.jsonl/b.jsonl", "A.JSONL", "c" * 40, "c" * 64, "d" * 40),
]


def hostile(value: Any) -> list[Any]:
    """Values that a hub could write in place of another one."""
    of_kind = TEXTS if isinstance(value, str) else NUMBERS if isinstance(value, int) else []
    return [*OTHER_KINDS, *of_kind]


def places(value: Any, prefix: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """The way to every value in an answer, and the value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*prefix, key), inner
        yield from places(inner, (*prefix, key))


def changed(answer: Any, place: tuple[Any, ...], value: Any, *, remove: bool = False) -> Any:
    """A copy of an answer with something else at a place."""
    copied = holder = copy.deepcopy(answer)
    for key in place[:-1]:
        holder = holder[key]
    if remove:
        del holder[place[-1]]
    else:
        holder[place[-1]] = value
    return copied


def check_fields(hub: FakeHub, fetcher: Fetcher, victim: Path, kind: str, every: int) -> int:
    """Put hostile values into each place of an answer: nothing outside the repository's directory changes.

    Args:
        every: In places of which no path is made, only one value in so many is tried; each value in some place.

    Returns:
        The number of answers tried.
    """
    if kind == "dataset":
        card = {"configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "a.jsonl"}]}]}
        content = {"a.jsonl": rows(1), "b.jsonl": rows(2)}
        repository = hub.datasets["me/set"] = Repository(content, large={"b.jsonl"}, card=card, commit=COMMIT)
        entry, own = "hf://datasets/me/set", paths.datasets_dir() / "me--set"
    else:
        repository = hub.models["me/set"] = model(COMMIT)
        repository.large = {"model.safetensors"}
        entry, own = "hf://me/set", paths.models_dir() / f".me--set.{COMMIT}.fetched"
    own.parent.mkdir(parents=True)
    # A model's scratch directory has the commit in its name, which may be another one.
    apart = (own, own.with_name(own.name.replace(COMMIT, "d" * 40)))
    truth = repository.described("me/set")
    before = snapshot(victim.parent, *apart)
    tried = [truth]
    for number, (place, there) in enumerate(places(truth)):
        values = hostile(there)
        if place[-1] not in ("rfilename", "sha", "path"):
            values = values[number % every :: every]
        tried += [changed(truth, place, value) for value in values]
        tried.append(changed(truth, place, None, remove=True))
    results = 0
    for told in tried:
        hub.about = Reply(json.dumps(told).encode())
        answer = fetcher.fetch(entry)
        if "done" in answer:
            results += 1
            assert Path(answer["done"]["directory"]) == own / COMMIT
            assert answer["done"]["reason"].isprintable()
        else:
            said(answer)
        assert snapshot(victim.parent, *apart) == before, told
        if kind == "dataset":
            # Files are read back unchanged, or not at all.
            try:
                found = find_fetched(HubEntry("dataset", "me/set"))
            except UserError:
                continue
            assert all(file.resolve().is_relative_to(own / COMMIT) for file in found.files)
    assert results > 0 or kind == "model"
    return len(tried)


@pytest.mark.parametrize("kind", ["dataset", "model"])
def test_no_field_of_an_answer_reaches_beyond_the_repository(
    hub: FakeHub, fetcher: Fetcher, victim: Path, kind: str
) -> None:
    assert check_fields(hub, fetcher, victim, kind, 5) > 150


@pytest.mark.long
@pytest.mark.parametrize("kind", ["dataset", "model"])
def test_no_value_of_any_field_reaches_beyond_the_repository(
    hub: FakeHub, fetcher: Fetcher, victim: Path, kind: str
) -> None:
    assert check_fields(hub, fetcher, victim, kind, 1) > 300


REPLIES = yaml.safe_load(Path(__file__).with_name("replies.yaml").read_text(encoding="utf-8"))


def told(where: str) -> list[tuple[Reply, str]]:
    """False answers, each with what is said about it."""
    return [(Reply(body.encode("latin-1"), **more), says) for body, more, says in REPLIES[where]]


DEEP = b"[" * 100_000
TOLD = b'{"sha": "' + b"c" * 40 + b'", "siblings": '


@cases(
    ("reply", "says"),
    [
        *told("about a repository"),
        *((Reply(body), "is not JSON") for body in (DEEP, b'{"sha": ' + DEEP, TOLD + DEEP, b"9" * 5000)),
        (Reply(b"x" * (1 << 20), 500, times=10_000), "the error 500"),
        (Reply(b" " * (1 << 20), times=10_000), "more than 32 MiB"),
        (Reply(b"{}", headers={"X-Long": "x" * 200_000}), "cannot be reached"),
    ],
)
def test_an_answer_that_is_none_of_a_hub_is_a_sentence(
    hub: FakeHub, fetcher: Fetcher, victim: Path, reply: Reply, says: str
) -> None:
    hub.about = reply
    before = snapshot(victim.parent)
    assert says in said(fetcher.fetch("hf://datasets/me/set"))
    assert snapshot(victim.parent) == before


@cases(
    ("reply", "says"),
    [
        *told("for a file"),
        (Reply(rows(1) * 100), "did not come as"),
        (Reply(rows(1), headers={"Content-Encoding": "zstd"}), "answers packed"),
    ],
)
def test_a_file_that_does_not_come_is_a_sentence(
    hub: FakeHub, fetcher: Fetcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reply: Reply, says: str
) -> None:
    monkeypatch.setenv("LOCALTUNE_HOME", str(tmp_path))
    hub.datasets["me/set"] = Repository({"train.jsonl": rows(*range(20))})
    hub.first = [reply] * 3
    assert says in said(fetcher.fetch("hf://datasets/me/set"))
    hub.first = []
    assert fetcher.fetch("hf://datasets/me/set")["done"]["files"] == 1


def test_a_hub_that_asks_to_wait_is_asked_again(hub: FakeHub, fetcher: Fetcher) -> None:
    hub.datasets["me/set"] = Repository({"train.jsonl": rows(1)})
    hub.first = [Reply(status=429, headers={"Retry-After": "0"})] * 3
    assert fetcher.fetch("hf://datasets/me/set")["done"]["files"] == 1
    assert len(hub.files_asked()) == 4


@cases("planted", ["commit", "directory", "partial", "file", "model"])
def test_a_link_below_the_repository_is_not_followed(
    hub: FakeHub, fetcher: Fetcher, victim: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planted: str
) -> None:
    monkeypatch.setenv("LOCALTUNE_HOME", str(tmp_path))
    hub.datasets["me/set"] = Repository({"data/settings.json": rows(1)}, commit=COMMIT)
    hub.models["me/set"] = model(COMMIT)
    own = paths.datasets_dir() / "me--set"
    link, target = {
        "commit": (own / COMMIT, victim),
        "directory": (own / COMMIT / "data", victim),
        "partial": (own / COMMIT / ".partial", victim),
        "file": (own / COMMIT / "data" / "settings.json", victim / "settings.json"),
        "model": (paths.models_dir() / f".me--set.{COMMIT}.fetched", victim),
    }[planted]
    link.parent.mkdir(parents=True)
    link.symlink_to(target)
    before = snapshot(victim)
    answer = fetcher.fetch("hf://me/set" if planted == "model" else "hf://datasets/me/set")
    assert "is a link, which" in said(answer)
    assert snapshot(victim) == before
    assert hub.files_asked() == []


@cases("kind", ["soft", "hard"])
def test_a_file_half_come_that_is_another_one_is_not_written_through(
    hub: FakeHub, fetcher: Fetcher, victim: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("LOCALTUNE_HOME", str(tmp_path))
    hub.datasets["me/set"] = Repository({"train.jsonl": rows(1)}, commit=COMMIT)
    partial = paths.datasets_dir() / "me--set" / COMMIT / ".partial"
    hub.first = [Reply(b"{", headers={"Content-Length": str(len(rows(1)))}), Reply(status=500)]
    said(fetcher.fetch("hf://datasets/me/set"))
    (half,) = partial.iterdir()
    half.unlink()
    (half.symlink_to if kind == "soft" else half.hardlink_to)(victim / "settings.json")
    before = snapshot(victim)
    answer = fetcher.fetch("hf://datasets/me/set")
    assert "done" in answer if kind == "hard" else "is a link, which" in said(answer)
    assert snapshot(victim) == before


def test_the_repository_may_lie_on_another_disk(hub: FakeHub, fetcher: Fetcher, tmp_path: Path) -> None:
    hub.datasets["me/set"] = Repository({"train.jsonl": rows(1)})
    paths.datasets_dir().mkdir(parents=True)
    (paths.datasets_dir() / "me--set").symlink_to(tmp_path)
    assert "done" in fetcher.fetch("hf://datasets/me/set")
    assert len(find_fetched(HubEntry("dataset", "me/set")).files) == 1


def test_names_that_are_one_file_on_this_disk_are_refused(hub: FakeHub, fetcher: Fetcher) -> None:
    hub.datasets["me/set"] = Repository({"a.jsonl": rows(1), "A.jsonl": rows(2)}, commit=COMMIT)
    directory = paths.datasets_dir() / "me--set" / COMMIT
    directory.mkdir(parents=True)
    # As a disk would have it that takes capitals for small letters.
    (directory / "a.jsonl").write_bytes(rows(1))
    (directory / "A.jsonl").hardlink_to(directory / "a.jsonl")
    assert "are one file on this disk" in said(fetcher.fetch("hf://datasets/me/set"))
    (directory / "A.jsonl").unlink()
    assert fetcher.fetch("hf://datasets/me/set")["done"]["files"] == 2


@cases(
    "endpoint", ["http://[", "foo", "ftp://x", "http://h:99999", "http://", "http://\x1b]0;x", "http://a b", "h\xe9"]
)
def test_an_address_that_is_none_is_a_sentence(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(UserError, match=r"HF_ENDPOINT is .*, which is not an address of a hub") as caught:
        fetch_job(parse_entry("hf://datasets/me/set"), lambda _: True).run()
    assert caught.value.message.isprintable()
    assert hub_host() == "HF_ENDPOINT"


def test_a_host_that_cannot_be_is_a_sentence(hub: FakeHub, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://me:secret@a..b/")
    text = said(fetcher.fetch("hf://datasets/me/set"))
    assert "a..b cannot be reached" in text
    assert "HF_ENDPOINT" in text
    assert "secret" not in text


def test_a_proxy_that_is_none_is_a_sentence(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "::::")
    with running_fetcher() as fetcher:
        assert "HTTP_PROXY" in said(fetcher.fetch("hf://datasets/me/set"))


def test_repositories_that_no_hub_has_are_asked_for_all_the_same(hub: FakeHub, fetcher: Fetcher) -> None:
    for name in ("me/set-", "me/set.", "m./set", f"{'m' * 80}/{'s' * 79}"):
        assert "There is no dataset" in said(fetcher.fetch(f"hf://datasets/{name}"))

"""Machines compared before a run: the agent is a real process, reached by a fake ssh on this very machine."""

from __future__ import annotations

import dataclasses
import shutil
import socket
from pathlib import Path

import pytest

from core.config.schema import Config
from core.errors import UserError
from core.launch.nodes import compare, network
from core.launch.nodes.compare import compare_machines, differences
from core.launch.nodes.facts import MachineFacts, gather
from tests.cases import cases
from tests.core.launch.nodes.fake_ssh import FakeSsh

FACTS = MachineFacts("head", {"torch": "2.13.0", "code": "aa"}, "sha256:" + "1" * 64, {"/rows.jsonl": "a" * 64})


def address() -> str:
    """An address of this machine that is not loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no address but loopback")
        return str(probe.getsockname()[0])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def config(tmp_path: Path) -> Config:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "llama"}')
    (model / "model.safetensors").write_bytes(bytes(1000))
    rows = tmp_path / "head" / "rows.jsonl"
    rows.parent.mkdir()
    rows.write_text('{"prompt": "a", "completion": "b"}\n' * 3)
    return Config.model_validate(
        {
            "model": {"base": str(model)},
            "data": {"train": str(rows)},
            "hardware": {"device": "cpu"},
            "distributed": {"hosts": ["tower"], "address": address(), "port": free_port()},
        }
    )


def test_machines_that_have_the_same_are_taken(config: Config, ssh: FakeSsh) -> None:
    ssh.machine("tower")
    head, other = compare_machines(config)
    assert head.software["torch"] != "none"
    assert (other.software, other.model, other.files) == (head.software, head.model, head.files)
    assert set(head.files) == {config.data.train}
    assert other.address == config.distributed.address


def test_another_model_is_refused_by_its_hash(config: Config, ssh: FakeSsh, tmp_path: Path) -> None:
    own = gather(config, config)
    ssh.machine("tower", f"printf x >> {tmp_path}/model/model.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "gather", lambda *_: own)
        with pytest.raises(UserError, match=r"The base model differs: its hash is [0-9a-f]{12} on tower and"):
            compare_machines(config)


def test_another_data_file_is_refused_by_its_name(config: Config, ssh: FakeSsh, tmp_path: Path) -> None:
    # The other machine has the file at the same place in its home, and with another row.
    head, there = tmp_path / "head", tmp_path / "there"
    there.mkdir()
    shutil.copy(head / "rows.jsonl", there)
    with (there / "rows.jsonl").open("a") as file:
        file.write('{"prompt": "c", "completion": "d"}\n')
    own = gather(config, config)
    ssh.machine("tower", f"export HOME={there} LOCALTUNE_HOME={there}/store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "gather", lambda *_: own)
        patch.setenv("HOME", str(head))
        shutil.move(head, tmp_path / "away")
        with pytest.raises(UserError) as error:
            compare_machines(config)
    assert error.value.message.startswith(f"{config.data.train} differs: on tower its SHA-256 is ")
    assert own.files[str(config.data.train)][:12] in error.value.message


def test_a_missing_file_names_the_machine(config: Config, ssh: FakeSsh, tmp_path: Path) -> None:
    ssh.machine("tower", f"mv {tmp_path}/head/rows.jsonl {tmp_path}/elsewhere")
    own = gather(config, config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "gather", lambda *_: own)
        with pytest.raises(UserError, match=r"^tower: .*rows\.jsonl"):
            compare_machines(config)


@cases(
    ("lines", "message", "hint"),
    [
        ("echo 'me@tower: Permission denied (publickey,password).' >&2; exit 255", "Permission denied", "ssh-copy-id"),
        ("echo 'Host key verification failed.' >&2; exit 255", "Host key verification failed", "ssh tower"),
        ("echo 'connect to host tower port 22: Connection timed out' >&2; exit 255", "timed out", "network"),
        ("exit 255", "the connection was closed", "by hand"),
        ("exit 127", "localtune-tui is not installed on tower", "same version"),
        ("echo Segmentation fault >&2; exit 139", "tower did not answer: Segmentation fault", "doctor"),
    ],
)
def test_a_machine_that_cannot_be_asked_is_one_sentence(
    config: Config, ssh: FakeSsh, lines: str, message: str, hint: str
) -> None:
    ssh.machine("tower", lines)
    with pytest.raises(UserError) as error:
        compare_machines(config)
    assert message in error.value.message
    assert hint in error.value.hint


def test_two_names_of_one_machine_are_refused(config: Config, ssh: FakeSsh) -> None:
    ssh.machine("tower")
    ssh.machine("me@tower")
    distributed = config.distributed.model_copy(update={"hosts": ["tower", "me@tower"]})
    with pytest.raises(UserError, match="tower and me@tower are one machine"):
        compare_machines(config.model_copy(update={"distributed": distributed}))


def test_a_name_of_this_machine_is_refused_where_its_cards_would_be_taken_twice(config: Config, ssh: FakeSsh) -> None:
    ssh.machine("tower")
    hardware = config.hardware.model_copy(update={"device": "auto"})
    with pytest.raises(UserError, match="This machine and tower are one machine"):
        compare_machines(config.model_copy(update={"hardware": hardware}))


@cases(
    ("changed", "message"),
    [
        ({"software": {"torch": "2.12.0", "code": "aa"}}, "torch differs: tower has 2.12.0, this machine 2.13.0."),
        ({"software": {"code": "aa"}}, "torch differs: tower has none, this machine 2.13.0."),
        ({"model": "sha256:" + "2" * 64}, "The base model differs: its hash is 222222222222 on tower and 111111111111"),
        ({"files": {}}, "/rows.jsonl differs: on tower it is not there"),
        ({"files": {**FACTS.files, "/more.jsonl": "b"}}, "/more.jsonl is on tower and not here."),
    ],
)
def test_a_difference_names_machine_thing_and_values(changed: dict[str, object], message: str) -> None:
    other = dataclasses.replace(FACTS, **changed)  # type: ignore[arg-type]
    assert next(str(problem) for problem in differences(FACTS, "tower", other)).startswith(message)
    assert not list(differences(FACTS, "tower", FACTS))


@cases(("where", "message"), [("127.0.0.1", "loopback"), ("192.0.2.7", "no address of this machine")])
def test_the_address_is_one_that_others_reach(where: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        network.MeetingPoint(where, free_port())


def test_the_meeting_point_listens_on_the_named_address_alone() -> None:
    with network.MeetingPoint(address(), free_port()) as meeting:
        network.reach(meeting.address, meeting.port)
        with pytest.raises(UserError, match=r"cannot reach 127\.0\.0\.1"):
            network.reach("127.0.0.1", meeting.port)
        with pytest.raises(UserError, match="cannot be used"):
            network.MeetingPoint(meeting.address, meeting.port)

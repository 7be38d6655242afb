"""The hash chain of a run finds and names changes in its directory."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.audit.chain_check import check_chain, compare_head, read_sealed, sealed_config
from core.audit.result import ChainResult
from core.config.document import dump_config
from core.config.schema import Config
from core.runs.record.chain import CHAIN_NAME, NOTHING, Chain, canonical, digest_of
from core.runs.record.events import Event, FinishedEvent, NoticeEvent, encode_event
from core.runs.record.state import RunState
from core.runs.record.store import Run
from core.small_files import hash_file
from tests.cases import cases
from tests.core.runs.helpers import there

from .test_spans import checkpoint, start, step


def make_run(directory: Path) -> Run:
    """A run of six steps with two checkpoints and a result, made by hand."""
    made = Run(directory / "20260101-000000-made")
    made.checkpoints_path.mkdir(parents=True)
    config = Config.model_validate({"model": {"base": "/models/tiny"}, "data": {"train": "/rows.jsonl"}})
    made.config_path.write_text(dump_config(config))
    chain = Chain(made.path, made.events_path)
    tell(made, start())
    chain.append("start", {"step": 0, "config": config.model_dump(mode="json", exclude_defaults=True), "machine": {}})
    for first in (1, 4):
        tell(made, *(step(number) for number in range(first, first + 3)))
        chain.append("checkpoint", {"step": first + 2, "manifest": save(made, first + 2)})
        tell(made, checkpoint(first + 2))
    shutil.copytree(made.checkpoints_path / "step-00000006/adapter", made.adapter_path)
    digest = hash_file(made.adapter_path / "adapter_model.safetensors")
    chain.append("result", {"step": 6, "directory": "adapter", "files": {"adapter_model.safetensors": digest}})
    tell(made, NoticeEvent(level="info", code="done", message="It is done."))
    chain.append("end", {"state": "finished", "step": 6})
    RunState(state="finished", step=6).write(made.state_path)
    return made


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make_run(tmp_path)


def tell(run: Run, *events: Event) -> None:
    with run.events_path.open("a") as file:
        file.writelines(map(encode_event, events))


def save(run: Run, number: int) -> dict[str, Any]:
    directory = run.checkpoints_path / f"step-{number:08d}"
    (directory / "adapter").mkdir(parents=True)
    files = {"adapter/adapter_model.safetensors": b"weights", "optimizer.pt": b"states", "rng.pt": b"dice"}
    for name, content in files.items():
        (directory / name).write_bytes(content + str(number).encode())
    listed = {name: {"bytes": len(files[name]) + 1, "sha256": hash_file(directory / name)} for name in files}
    manifest = {"version": 1, "step": number, "files": listed, "selection": {"reference": 0.1}}
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return manifest


def checked(run: Run) -> ChainResult:
    return check_chain(run, read_sealed(run))


def told(run: Run) -> list[str]:
    return [difference.what for difference in checked(run).differences]


def test_a_run_that_nobody_touched_is_whole(run: Run) -> None:
    found = checked(run)
    assert (found.differences, found.notes, found.links) == ((), (), 5)
    assert found.head == json.loads((run.path / CHAIN_NAME).read_bytes().splitlines()[-1])["link"]
    assert there(sealed_config(read_sealed(run))).model.base == "/models/tiny"
    assert read_sealed(run).start_of(6)["step"] == 0


def change_lines(change: Callable[[list[bytes]], object], name: str = "events.jsonl") -> Callable[[Run], None]:
    """Damage by a change of the lines of a file."""

    def damage(run: Run) -> None:
        lines = (run.path / name).read_bytes().splitlines(keepends=True)
        change(lines)
        (run.path / name).write_bytes(b"".join(lines))

    return damage


def edit(lines: list[bytes]) -> None:
    lines[2] = lines[2].replace(b'"loss": 1.0', b'"loss": 0.5')


def cut(run: Run, links: int) -> None:
    change_lines(lambda lines: lines.__delitem__(slice(links, None)), CHAIN_NAME)(run)


def reseal(run: Run, change: Callable[[list[dict[str, Any]]], object]) -> None:
    """Change links, and recompute all digests, as a forger can."""
    path = run.path / CHAIN_NAME
    links = [json.loads(line) for line in path.read_bytes().splitlines()]
    change(links)
    prev = NOTHING
    for number, link in enumerate(links):
        link |= {"n": number, "prev": prev}
        prev = link["link"] = digest_of(link)
    path.write_bytes(b"".join(canonical(link) + b"\n" for link in links))


def skip_events(links: list[dict[str, Any]]) -> None:
    links[1]["events"] |= {"from": links[1]["events"]["to"], "lines": "", "sha256": hashlib.sha256(b"").hexdigest()}


def write_over(run: Run, name: str, content: bytes) -> None:
    (run.path / name).write_bytes(content)


def change_manifest(run: Run) -> None:
    path = run.checkpoints_path / "step-00000006/manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"token_budget": 1}))
    (path.parent / "rng.pt").unlink()


def make_manifest_fit(run: Run) -> None:
    directory = run.checkpoints_path / "step-00000006"
    (directory / "rng.pt").write_bytes(b"loaded6")
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["files"]["rng.pt"]["sha256"] = hash_file(directory / "rng.pt")
    (directory / "manifest.json").write_text(json.dumps(manifest))


def change_option(run: Run) -> None:
    changed = {"model": {"base": "/models/tiny"}, "data": {"train": "/rows.jsonl"}, "train": {"learning_rate": 1e-3}}
    run.config_path.write_text(dump_config(Config.model_validate(changed)))


def replace_adapter(run: Run) -> None:
    path = run.adapter_path / "adapter_model.safetensors"
    path.write_bytes(b"better")
    reseal(run, lambda links: links[3]["body"].update(files={path.name: hash_file(path)}))


def replace_adapter_and_chain(run: Run) -> None:
    write_over(run, "adapter/adapter_model.safetensors", b"better")
    (run.path / CHAIN_NAME).unlink()
    tell(run, FinishedEvent(reason="Done.", step=6))


def replace_file_and_chain(run: Run) -> None:
    (run.path / CHAIN_NAME).unlink()
    write_over(run, "checkpoints/step-00000003/rng.pt", b"other")


OTHER_SHA = "has changed since it was written: its SHA-256 differs."
CUT_OFF = "The hash chain breaks off before the end of the run, which has finished: links were removed from its end."
OTHER_ADAPTER = "adapter/adapter_model.safetensors is not that of step-00000006, which the result is a copy of."


@cases(
    ("damage", "sentences"),
    [
        (change_lines(edit), ["events.jsonl: line 3 (a step event of step 2) was changed."]),
        (
            change_lines(lambda lines: lines.pop(5)),
            ["events.jsonl: a line was removed, number 6 of the record, before that of step 5."],
        ),
        (
            change_lines(lambda lines: lines.insert(3, lines[2])),
            ["events.jsonl: line 4 (a step event of step 2) was added."],
        ),
        (
            change_lines(lambda lines: lines.insert(1, lines.pop(3))),
            ["events.jsonl: line 2 (a step event of step 3) was moved there."],
        ),
        (change_lines(lambda lines: lines.pop()), ["events.jsonl: a line was removed, number 10 of the record."]),
        (lambda run: tell(run, step(7)), ["events.jsonl: lines were added after the end of the run."]),
        (
            lambda run: write_over(run, "checkpoints/step-00000003/optimizer.pt", b"statez3"),
            [f"step-00000003: optimizer.pt {OTHER_SHA}"],
        ),
        (
            change_manifest,
            ["step-00000006: its manifest is not the one in the chain.", "step-00000006: rng.pt is missing."],
        ),
        (
            make_manifest_fit,
            ["step-00000006: its manifest is not the one in the chain.", f"step-00000006: rng.pt {OTHER_SHA}"],
        ),
        (change_option, ["run.toml: train.learning_rate changed from 2e-4 (the default) to 0.001."]),
        (
            lambda run: write_over(run, "adapter/adapter_model.safetensors", b"better"),
            [f"adapter/adapter_model.safetensors {OTHER_SHA}"],
        ),
        *((lambda run, links=links: cut(run, links), [CUT_OFF]) for links in (2, 3, 4)),
        (lambda run: reseal(run, list), []),
        (
            lambda run: reseal(run, lambda links: links[0].update(kind="parked")),
            ["The hash chain does not begin with a start of the run."],
        ),
        # Another adapter is told from its checkpoint though the chain has it, or where there is none.
        (replace_adapter, [OTHER_ADAPTER]),
        (replace_adapter_and_chain, [OTHER_ADAPTER]),
        # Without a chain, checkpoints are checked by their manifests.
        (replace_file_and_chain, [f"step-00000003: rng.pt {OTHER_SHA}"]),
    ],
)
def test_damage_is_named(tmp_path: Path, damage: Callable[[Run], None], sentences: list[str]) -> None:
    run = make_run(tmp_path)
    damage(run)
    found = checked(run).differences
    assert [difference.what for difference in found] == sentences
    for difference in found:
        numbers = re.findall(r"^step-0000000(\d): (\S+) is", difference.what)
        assert [(str(difference.step), Path(str(difference.file)).name)] == numbers or not numbers


def test_a_link_that_was_changed_is_named_and_those_before_it_count(run: Run) -> None:
    path = run.path / CHAIN_NAME
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b'"reference":0.1', b'"reference":0.2')
    path.write_bytes(b"".join(lines))
    found = checked(run)
    assert found.links == 2
    assert found.differences[0].what == (
        "The hash chain is broken: chain.jsonl, line 3: its digest is not that of its content: it was changed."
    )


def test_what_a_killed_run_has_not_sealed_is_reported_and_is_no_difference(run: Run) -> None:
    RunState(state="died", step=6).write(run.state_path)
    shutil.rmtree(run.adapter_path)
    cut(run, 2)
    found = checked(run)
    assert found.differences == ()
    assert found.notes == (
        "events.jsonl goes on after the last link, as the worker was killed; these lines are not covered.",
        "step-00000006 is not in the chain: it was written as the worker was killed, was made again for an index of "
        "rows, or came from elsewhere.",
    )
    (run.path / CHAIN_NAME).unlink()
    assert checked(run).head is None
    assert "no hash chain" in checked(run).notes[0]


def test_a_chain_that_was_made_anew_has_to_cover_all_from_the_start(run: Run) -> None:
    reseal(run, skip_events)
    assert told(run)[0] == "The hash chain is broken: chain.jsonl, line 2: it leaves out a part of events.jsonl."


def test_what_a_chain_names_is_safe_to_show(run: Run) -> None:
    odd = {"step": "\x1b[2J", "config": {"\x1b[2J": {"\ud800\n": 1}}}
    reseal(run, lambda links: links[0]["body"].update(odd))
    found = checked(run)
    assert found.notes == ()
    assert all(
        text.isprintable() for difference in found.differences for text in (difference.what, difference.tensor or "")
    )


def with_head(run: Run, kept: str) -> ChainResult:
    sealed = read_sealed(run)
    return compare_head(check_chain(run, sealed), sealed, kept)


def test_a_head_that_was_written_down_shows_a_chain_that_was_made_anew(run: Run) -> None:
    heads = [link.link for link in read_sealed(run).links]
    found = with_head(run, heads[-1])
    assert (found.differences, found.notes[0]) == ((), "The head is the one that was written down.")
    found = with_head(run, heads[-2][:12])
    assert found.differences == ()
    assert found.notes[0] == f"The head that was written down is link 4 of {len(heads)}; one link came after it."
    reseal(run, lambda links: links[0].update(t=1.0))
    assert told(run) == []
    (difference,) = with_head(run, heads[-1]).differences
    assert difference.what.startswith("The head that was written down is in no link of the chain")
    (run.path / CHAIN_NAME).unlink()
    assert with_head(run, heads[-1]).differences[0].what == difference.what


def test_a_run_that_failed_before_it_began_has_its_end_alone_and_is_whole(tmp_path: Path) -> None:
    made = Run(tmp_path)
    tell(made, start())
    Chain(made.path, made.events_path).append("end", {"state": "failed", "step": 0})
    assert told(made) == []


def test_a_copy_elsewhere_notes_and_comments_change_nothing(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "elsewhere")
    copied = Run(tmp_path / "elsewhere")
    copied.config_path.write_text("# the good one\n" + copied.config_path.read_text() + "\n# end\n")
    (copied.path / "notes.md").write_text("Mine.")
    (copied.adapter_path / "README.md").write_text("Mine too.")
    found = checked(copied)
    assert (found.differences, found.notes, found.head) == ((), (), checked(run).head)

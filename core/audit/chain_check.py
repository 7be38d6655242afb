"""The hash chain of a run against what is there: its links, events, checkpoints, configuration and result."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from core.audit.result import ChainResult, Difference
from core.config.changed import changed_options
from core.config.schema import Config
from core.errors import UserError
from core.runs.chain import CHAIN_NAME, SHORT, DamagedLinkError, Link, canonical, read_links, seal_events
from core.runs.store import EVENTS_NAME, Run, complete_checkpoints
from core.small_files import hash_file, read_small
from core.text import one_line

#: Differences of one kind that are told one by one.
_MOST = 20
_MANIFEST_LIMIT = 16 << 20
#: Lines around a change in which it is looked for; more of them are told as a stretch.
_WINDOW = 5_000


@dataclass
class Sealed:
    """What the chain of a run says."""

    links: list[Link] = field(default_factory=list)
    damage: str = ""
    """What is wrong with the first link that is not sound; empty where all are."""
    exists: bool = False

    @property
    def starts(self) -> list[Link]:
        """The links of starts."""
        return [link for link in self.links if link.kind == "start"]

    @property
    def manifests(self) -> dict[int, dict[str, Any]]:
        """The manifest of each checkpoint by its step, the newest of each."""
        found: dict[int, dict[str, Any]] = {}
        for link in self.links:
            manifest = link.body.get("manifest")
            if isinstance(manifest, dict) and type(manifest.get("step")) is int:
                found[manifest["step"]] = manifest
        return found

    def start_of(self, step: int) -> dict[str, Any]:
        """The body of the start that the checkpoint of a step was written after; empty where none is known."""
        start: dict[str, Any] = {}
        found: dict[str, Any] = {}
        for link in self.links:
            if link.kind == "start":
                start = link.body
            elif link.kind == "checkpoint" and link.body.get("step") == step:
                found = start
        return found


def read_sealed(run: Run) -> Sealed:
    """The chain of a run, up to the first link that is not sound.

    Raises:
        UserError: If it is there and cannot be read.
    """
    found = Sealed()
    try:
        for link in read_links(run.path / CHAIN_NAME):
            found.exists = True
            if isinstance(link, DamagedLinkError):
                found.damage = str(link)
            else:
                found.links.append(link)
    except FileNotFoundError:
        return found
    except OSError as error:
        raise UserError(f"{run.path / CHAIN_NAME} cannot be read: {error.strerror}.", "Fix its permissions.") from error
    return found


def check_chain(run: Run, sealed: Sealed) -> ChainResult:
    """Compare the chain of a run with what is in its directory. Base and data are compared where they are read.

    Args:
        run: The run, which is over.
        sealed: Its chain.

    Raises:
        UserError: If a file cannot be read.
    """
    if not sealed.exists:
        note = (
            "The run has no hash chain, as an earlier version made it: that nobody has changed its events, options, "
            "rows or base since is not covered; its training is, where it is executed again."
        )
        return ChainResult(notes=(note,), differences=tuple(_damaged_checkpoints(run, {})))
    differences: list[Difference] = []
    if sealed.damage:
        differences.append(Difference(what=f"The hash chain is broken: {sealed.damage}.", file=CHAIN_NAME))
    try:
        differences += _changed_events(run, sealed.links)
        differences += _damaged_checkpoints(run, sealed.manifests)
        differences += _changed_options(run, sealed)
        differences += _changed_result(run, sealed.links)
    except OSError as error:
        raise UserError(
            f"{error.filename or run.path} cannot be read: {error.strerror}.", "Fix it, or copy the run."
        ) from error
    head = sealed.links[-1].link if sealed.links else None
    return ChainResult(
        head=head, links=len(sealed.links), notes=tuple(_uncovered(run, sealed)), differences=tuple(differences)
    )


def _uncovered(run: Run, sealed: Sealed) -> Iterator[str]:
    """What the chain says nothing of, in sentences."""
    if not sealed.links:
        return
    first, last = sealed.links[0], sealed.links[-1]
    if first.kind == "start" and first.body.get("step"):
        yield f"The chain begins at step {first.body['step']}, with a later version; what was before is not covered."
    size = run.events_path.stat().st_size if run.events_path.is_file() else 0
    if size > last.events.end:
        yield f"{EVENTS_NAME} goes on after the last link, as the worker was killed; these lines are not covered."
    known = sealed.manifests
    for path in complete_checkpoints(run):
        step = int(path.name.removeprefix("step-"))
        if step not in known:
            yield f"{path.name} is not in the chain: it was written as the worker was killed, or came from elsewhere."


# Events.


def _changed_events(run: Run, links: Sequence[Link]) -> list[Difference]:
    """Lines of the record that were changed, removed, added or moved; as said by the links."""
    if all(_is_as_sealed(run.events_path, link) for link in links):
        return []
    recorded = [link.events.lines[at : at + SHORT] for link in links for at in range(0, len(link.events.lines), SHORT)]
    try:
        lines = seal_events(run.events_path, 0)["lines"]
    except FileNotFoundError:
        return [Difference(what=f"{EVENTS_NAME} is gone.", file=EVENTS_NAME)]
    present = [lines[at : at + SHORT] for at in range(0, len(lines), SHORT)]
    # What comes after the last link is not covered.
    if present[: len(recorded)] == recorded:
        present = present[: len(recorded)]
    return _compare_lines(run, recorded, present) or [
        Difference(what=f"{EVENTS_NAME} is not as it was sealed.", file=EVENTS_NAME)
    ]


def _is_as_sealed(path: Path, link: Link) -> bool:
    try:
        return _digest(path, link) == link.events.sha256
    except OSError:
        return False


def _digest(path: Path, link: Link) -> str:
    with path.open("rb") as file:
        file.seek(link.events.begin)
        digest, left = hashlib.sha256(), link.events.end - link.events.begin
        while left > 0 and (block := file.read(min(left, 1 << 20))):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()


def _compare_lines(run: Run, recorded: list[str], present: list[str]) -> list[Difference]:
    head = next(
        (place for place, pair in enumerate(zip(recorded, present, strict=False)) if pair[0] != pair[1]),
        min(len(recorded), len(present)),
    )
    tail = 0
    while tail < min(len(recorded), len(present)) - head and recorded[-1 - tail] == present[-1 - tail]:
        tail += 1
    before, now = recorded[head : len(recorded) - tail], present[head : len(present) - tail]
    if max(len(before), len(now)) > _WINDOW:
        return [Difference(what=f"{EVENTS_NAME}: lines {head + 1} to {head + len(now)} are others.", file=EVENTS_NAME)]
    found = difflib.SequenceMatcher(None, before, now, autojunk=False).get_opcodes()
    added = {digits for tag, _, _, a, b in found if tag in ("insert", "replace") for digits in now[a:b]}
    gone = {digits for tag, a, b, _, _ in found if tag in ("delete", "replace") for digits in before[a:b]}
    told: list[Difference] = []
    for tag, a, b, c, d in found:
        if tag == "equal":
            continue
        changed = min(b - a, d - c)
        for offset in range(changed):
            what = "moved" if now[c + offset] in gone else "changed"
            told.append(_line(run, head + c + offset, f"was {what}"))
        for offset in range(changed, d - c):
            what = "was moved there" if now[c + offset] in gone else "was added"
            told.append(_line(run, head + c + offset, what))
        for offset in range(changed, b - a):
            if before[a + offset] not in added:
                told.append(_missing(run, head + c + changed, head + a + offset))
    return told[:_MOST]


def _line(run: Run, number: int, what: str) -> Difference:
    """A line that is there; numbers count from 0."""
    event = _event_at(run, number)
    kind, step = one_line(str(event.get("type", "")), 40), event.get("step")
    named = f" (a {kind} event{f' of step {step}' if type(step) is int else ''})" if kind else ""
    return Difference(
        what=f"{EVENTS_NAME}: line {number + 1}{named} {what}.",
        file=EVENTS_NAME,
        step=step if type(step) is int else None,
    )


def _missing(run: Run, place: int, number: int) -> Difference:
    """A line that is not there any more."""
    event = _event_at(run, place)
    step = event.get("step")
    before = f", before that of step {step}" if type(step) is int else ""
    return Difference(
        what=f"{EVENTS_NAME}: a line was removed, the {number + 1}th of the record{before}.", file=EVENTS_NAME
    )


def _event_at(run: Run, number: int) -> Mapping[str, Any]:
    try:
        with run.events_path.open("rb") as file:
            found = json.loads(next(islice(file, number, None), b"{}"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


# Checkpoints.


def _damaged_checkpoints(run: Run, known: Mapping[int, Mapping[str, Any]]) -> Iterator[Difference]:
    """Files of the checkpoints that are there and are not what their manifests, or the chain, say."""
    for path in complete_checkpoints(run):
        step = int(path.name.removeprefix("step-"))
        name = str(path.relative_to(run.path))
        manifest = read_manifest(path)
        sealed = known.get(step)
        if sealed is not None and canonical(manifest) != canonical(sealed):
            yield Difference(
                what=f"{path.name}: its manifest is not the one in the chain.", file=f"{name}/manifest.json", step=step
            )
        files = (sealed or manifest).get("files")
        for file, facts in files.items() if isinstance(files, dict) else ():
            if (wrong := _wrong_file(path / str(file), facts)) is not None:
                yield Difference(
                    what=f"{path.name}: {one_line(str(file), 120)} {wrong}.",
                    file=f"{name}/{one_line(str(file), 120)}",
                    step=step,
                )


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """The manifest of a checkpoint, unchecked; empty where it is none."""
    try:
        found = json.loads(read_small(checkpoint / "manifest.json", _MANIFEST_LIMIT))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _wrong_file(path: Path, facts: Any) -> str | None:
    wanted = facts.get("sha256") if isinstance(facts, dict) else None
    try:
        if path.is_symlink() or not path.is_file():
            return "is missing"
        return None if hash_file(path) == wanted else "is not what was written: its SHA-256 is another"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


# Configuration.


def _changed_options(run: Run, sealed: Sealed) -> list[Difference]:
    """Options of ``run.toml`` that are not those that the run was started with."""
    starts = [link.body.get("config") for link in sealed.starts]
    configs = [config for config in starts if isinstance(config, dict)]
    if not configs:
        return []
    try:
        present = run.config().model_dump(mode="json", exclude_defaults=True)
    except UserError as error:
        return [Difference(what=f"run.toml cannot be used: {error.message}", file="run.toml")]
    found = [
        Difference(
            what=f"run.toml: {option}.",
            file="run.toml",
            tensor=option.name,
            recorded=option.before_in_words,
            found=option.now_in_words,
        )
        for option in changed_options(configs[-1], present)
    ]
    return found[:_MOST]


def sealed_config(sealed: Sealed) -> Config | None:
    """The configuration in the chain; None where it has none that this version can read."""
    for link in reversed(sealed.starts):
        try:
            return Config.model_validate(link.body.get("config"))
        except ValueError:
            continue
    return None


# The result.


def _changed_result(run: Run, links: Sequence[Link]) -> list[Difference]:
    results = [link.body for link in links if link.kind == "result"]
    if not results or not isinstance(files := results[-1].get("files"), dict):
        return []
    directory = run.path / Path(str(results[-1].get("directory"))).name
    if not directory.is_dir():
        return []  # moved or removed by the user; nothing false can be taken for it
    found = []
    for name, digest in files.items():
        if (wrong := _wrong_file(directory / str(name), {"sha256": digest})) is not None:
            file = f"{directory.name}/{one_line(str(name), 120)}"
            found.append(Difference(what=f"{file} {wrong}.", file=file))
    return found[:_MOST]

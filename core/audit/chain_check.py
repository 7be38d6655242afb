"""Check of a run's hash chain against its directory: links, events, checkpoints, configuration and result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from core.audit.event_check import changed_events
from core.audit.result import MOST, ChainResult, Difference
from core.config.live import changed_options
from core.config.schema import Config
from core.errors import UserError
from core.runs.catalog.trained import read_manifest, result_step
from core.runs.record.chain import CHAIN_NAME, DamagedLinkError, Link, canonical, read_links
from core.runs.record.store import EVENTS_NAME, Run, complete_checkpoints
from core.small_files import hash_file
from core.text import one_line


@dataclass
class Sealed:
    """Links of a run's chain, as read."""

    links: list[Link] = field(default_factory=list)
    damage: str = ""
    """The fault of the first damaged link; empty if all are sound."""
    exists: bool = False

    @property
    def starts(self) -> list[Link]:
        """The links of kind ``start``."""
        return [link for link in self.links if link.kind == "start"]

    @property
    def manifests(self) -> dict[int, dict[str, Any]]:
        """The newest manifest of each checkpoint, by step."""
        found: dict[int, dict[str, Any]] = {}
        for link in self.links:
            manifest = link.body.get("manifest")
            if isinstance(manifest, dict) and type(manifest.get("step")) is int:
                found[manifest["step"]] = manifest
        return found

    def start_of(self, step: int) -> dict[str, Any]:
        """The body of the start that wrote the checkpoint of a step; empty if unknown."""
        start: dict[str, Any] = {}
        found: dict[str, Any] = {}
        for link in self.links:
            if link.kind == "start":
                start = link.body
            elif link.kind == "checkpoint" and link.body.get("step") == step:
                found = start
        return found


def read_sealed(run: Run) -> Sealed:
    """The chain of a run, up to the first damaged link.

    Raises:
        UserError: If it exists and cannot be read.
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
    """Compare the chain of a run with its directory. Base and data are compared later, when they are read.

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
        return ChainResult(notes=(note,), differences=(*_damaged_checkpoints(run, {}), *_changed_result(run, sealed)))
    differences: list[Difference] = []
    if sealed.damage:
        differences.append(Difference(what=f"The hash chain is broken: {sealed.damage}.", file=CHAIN_NAME))
    try:
        differences += _broken_off(run, sealed)
        differences += changed_events(run, sealed.links) or _added_at_the_end(run, sealed.links)
        differences += _damaged_checkpoints(run, sealed.manifests)
        differences += _changed_options(run, sealed)
        differences += _changed_result(run, sealed)
    except OSError as error:
        raise UserError(
            f"{error.filename or run.path} cannot be read: {error.strerror}.", "Fix it, or copy the run."
        ) from error
    head = sealed.links[-1].link if sealed.links else None
    return ChainResult(
        head=head, links=len(sealed.links), notes=tuple(_uncovered(run, sealed)), differences=tuple(differences)
    )


def compare_head(chain: ChainResult, sealed: Sealed, kept: str) -> ChainResult:
    """The result after a comparison with an earlier head, which the user has written down.

    Args:
        chain: The result so far.
        sealed: The chain.
        kept: The earlier head, or its beginning, in lower-case hexadecimal digits.
    """
    count = len(sealed.links)
    place = next((number for number, link in enumerate(sealed.links, 1) if link.link.startswith(kept)), None)
    if place is None:
        what = (
            "The head that was written down is in no link of the chain: what it seals was changed since, or it is of "
            "another run."
        )
        return replace(chain, differences=(Difference(what=what, file=CHAIN_NAME), *chain.differences))
    if place == count:
        note = "The head is the one that was written down."
    else:
        after = "one link came" if count - place == 1 else f"{count - place} links came"
        note = f"The head that was written down is link {place} of {count}; {after} after it."
    return replace(chain, notes=(note, *chain.notes))


def _broken_off(run: Run, sealed: Sealed) -> Iterator[Difference]:
    """A missing beginning of the chain, or a missing end for a finished run."""
    if sealed.damage or not sealed.links:
        return
    # A run that was parked or failed before its rows and model were ready has links of these kinds first.
    first = next((link.kind for link in sealed.links if link.kind not in ("parked", "end")), "start")
    if first != "start":
        yield Difference(what="The hash chain does not begin with a start of the run.", file=CHAIN_NAME)
    if run.state().state == "finished" and sealed.links[-1].kind != "end":
        what = (
            "The hash chain breaks off before the end of the run, which has finished: links were removed from its end."
        )
        yield Difference(what=what, file=CHAIN_NAME)


def _added_at_the_end(run: Run, links: Sequence[Link]) -> list[Difference]:
    """Lines after the end of a finished run, where a worker writes none."""
    if not links or links[-1].kind != "end" or run.state().state != "finished":
        return []
    if _size_of_events(run) <= links[-1].events.end:
        return []
    return [Difference(what=f"{EVENTS_NAME}: lines were added after the end of the run.", file=EVENTS_NAME)]


def _size_of_events(run: Run) -> int:
    return run.events_path.stat().st_size if run.events_path.is_file() else 0


def _uncovered(run: Run, sealed: Sealed) -> Iterator[str]:
    """Gaps of the chain, one message each."""
    if not sealed.links:
        return
    first, last = sealed.links[0], sealed.links[-1]
    if first.kind == "start" and (step := _begins_at(first)):
        yield f"The chain begins at step {step}, with a later version; what was before is not covered."
    if _size_of_events(run) > last.events.end and run.state().state != "finished":
        yield f"{EVENTS_NAME} goes on after the last link, as the worker was killed; these lines are not covered."
    known = sealed.manifests
    for path in complete_checkpoints(run):
        step = int(path.name.removeprefix("step-"))
        if step not in known:
            how = "it was written as the worker was killed, was made again for an index of rows, or came from elsewhere"
            yield f"{path.name} is not in the chain: {how}."
    if run.adapter_path.is_dir() and not any(link.kind == "result" for link in sealed.links):
        yield f"{run.adapter_path.name} is not in the chain; it is compared with its checkpoint."


def _begins_at(first: Link) -> int:
    """The step from which a chain's first start continued; 0 for the beginning."""
    step = first.body.get("step")
    return step if type(step) is int and step > 0 else 0


# Checkpoints.


def _damaged_checkpoints(run: Run, known: Mapping[int, Mapping[str, Any]]) -> Iterator[Difference]:
    """Files of the present checkpoints that differ from the chain, or else from their manifests."""
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


def _wrong_file(path: Path, facts: Any) -> str | None:
    wanted = facts.get("sha256") if isinstance(facts, dict) else None
    try:
        if path.is_symlink() or not path.is_file():
            return "is missing"
        return None if hash_file(path) == wanted else "has changed since it was written: its SHA-256 differs"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


# Configuration.


def _changed_options(run: Run, sealed: Sealed) -> list[Difference]:
    """Options of ``run.toml`` that have changed since the run was started."""
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
            what=f"run.toml: {one_line(str(option), 400)}.",
            file="run.toml",
            tensor=one_line(option.name, 120),
            recorded=option.before_in_words,
            found=option.now_in_words,
        )
        for option in changed_options(configs[-1], present)
    ]
    return found[:MOST]


def sealed_config(sealed: Sealed) -> Config | None:
    """The newest configuration in the chain that this version can read; None without one."""
    for link in reversed(sealed.starts):
        try:
            return Config.model_validate(link.body.get("config"))
        except ValueError:
            continue
    return None


# The result.


def _changed_result(run: Run, sealed: Sealed) -> list[Difference]:
    """Files of the result that differ from the chain, or from the checkpoint they were copied from."""
    results = [link.body for link in sealed.links if link.kind == "result"]
    said = results[-1] if results else {}
    # Only its name, as a chain may come from anywhere.
    directory = run.path / Path(str(said.get("directory", run.adapter_path.name))).name
    files = said.get("files")
    found = {}
    if directory.is_dir() and isinstance(files, dict):  # the user may have moved it
        for name, digest in files.items():
            if (wrong := _wrong_file(directory / str(name), {"sha256": digest})) is not None:
                file = f"{directory.name}/{one_line(str(name), 120)}"
                found[file] = Difference(what=f"{file} {wrong}.", file=file)
    copied = {difference.file: difference for difference in _other_adapter(run, sealed, said.get("step"))}
    return list((copied | found).values())[:MOST]


def _other_adapter(run: Run, sealed: Sealed, step: Any) -> Iterator[Difference]:
    """Files of the adapter that differ from the checkpoint it was copied from."""
    step = step if type(step) is int else result_step(run)
    if step is None or not run.adapter_path.is_dir():
        return
    checkpoint = run.checkpoints_path / f"step-{step:08d}"
    files = (sealed.manifests.get(step) or read_manifest(checkpoint)).get("files")
    if files is None and sealed.links and not _begins_at(sealed.links[0]):
        what = f"{run.adapter_path.name} is said to be of step {step}, which has no checkpoint in the chain."
        yield Difference(what=what, file=run.adapter_path.name)
    for name, facts in files.items() if isinstance(files, dict) else ():
        directory, _, file = one_line(str(name), 120).partition("/")
        if directory == run.adapter_path.name and _wrong_file(run.adapter_path / file, facts) is not None:
            what = f"{directory}/{file} is not that of {checkpoint.name}, which the result is a copy of."
            yield Difference(what=what, file=f"{directory}/{file}")

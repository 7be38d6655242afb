"""Download process: ``python -m core.hub.download``; see :mod:`core.jobs.process`."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core import paths
from core.atomic import fsync_dir, write_atomic
from core.directories import disk_error, exclusive_lock, require_space
from core.errors import UserError
from core.hub.selection import MOST_SHARDS, data_names, read_subsets
from core.hub.store import PARTIAL_NAME, Record, note_ref, repository_dir, safe_path, select_files
from core.hub_uri import DEFAULT_REVISION, HubEntry, is_commit, parse_entry
from core.jobs.process import Answers, run_job
from core.models.check import check_model_config, check_model_directory
from core.models.description import PICKLES, RECORD_NAME, TOKENIZERS, WEIGHTS, WEIGHTS_INDEX, read_record
from core.models.find import fetched_models, revisions_of
from core.sandbox.limits import confine
from core.sandbox.rights import Rights, reading
from core.text import one_line

if TYPE_CHECKING:
    from core.hub.client import HubClient
    from core.hub.listing import Listing, RemoteFile

#: Bytes left free on the disk.
RESERVE = 512 << 20

# Memory limit of this process, in bytes: listings and model descriptions are read whole.
_MEMORY_LIMIT = 4 << 30
#: Variables that name the user's certificates.
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_SHARD = re.compile(r"model-\d{1,9}-of-\d{1,9}\.safetensors", re.ASCII)
# Description files of a model and its tokenizer in the format of transformers; never code.
_ABOUT_MODEL = {
    *TOKENIZERS,
    *("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("merges.txt", "chat_template.jinja", "chat_template.json", "preprocessor_config.json", WEIGHTS_INDEX),
}


class Transfer:
    """Downloads the files of one repository, one after the other.

    Args:
        client: Client of the hub.
        entry: The repository.
        listing: Files of the repository.
        scratch: Directory for partial files; not reachable by a link.
        answers: Receives the progress.
    """

    def __init__(self, client: HubClient, entry: HubEntry, listing: Listing, scratch: Path, answers: Answers) -> None:
        self._client = client
        self._entry = entry
        self._listing = listing
        self._scratch = scratch
        self._answers = answers
        self._before = 0
        self._total = 0

    def remaining(self, names: Sequence[str]) -> int:
        """Bytes of these files still to be downloaded."""
        return sum(max(self._listing.files[name].size - _size(self._place(name)), 0) for name in names)

    def begin(self, whole: int, total: int) -> None:
        """Reset the progress: ``whole`` bytes are present already, of ``total``."""
        self._before, self._total = whole, total

    def fetch(self, name: str, target: Path) -> None:
        """Download a file, and move it into place, at its :func:`safe_path`, once it is complete.

        Raises:
            UserError: If it cannot be fetched.
        """
        file: RemoteFile = self._listing.files[name]
        paths.make_private_dir(self._scratch)
        partial = self._place(name)

        def report(done: int) -> None:
            stage = f"downloading {one_line(name, 60)}"
            self._answers.progress(stage, self._before + done, self._total)

        self._client.download(self._entry, self._listing.commit, file, partial, report)
        paths.make_private_dir(target.parent)
        os.replace(partial, target)
        fsync_dir(target.parent)
        self._before += file.size

    def _place(self, name: str) -> Path:
        """Path of a partial file; the file's hash is in the name, so that a download never resumes another file."""
        file = self._listing.files[name]
        digest = hashlib.sha256(f"{name}\0{file.sha256 or file.blob}\0{file.size}".encode()).hexdigest()
        return safe_path(self._scratch, f"{digest[:32]}.part")


def fetch_dataset(client: HubClient, entry: HubEntry, answers: Answers) -> dict[str, Any]:
    """Fetch the data files that an entry takes.

    Returns:
        Summary of the files on this machine, for the caller.

    Raises:
        UserError: If there is no such dataset, no readable file in it, or no room for it.
    """
    listing = client.list_files(entry)
    names = data_names(listing.files)
    files = {name: listing.files[name].size for name in names}
    repository = repository_dir(entry)
    directory = safe_path(repository, listing.commit)
    record = Record(entry.repository, listing.commit, files, read_subsets(listing.card))
    selection = select_files(entry, record)
    places = {name: safe_path(repository, listing.commit, name) for name in selection.names}
    transfer = Transfer(client, entry, listing, safe_path(repository, listing.commit, PARTIAL_NAME), answers)

    def missing() -> list[str]:
        # Only complete files are moved into the directory, so those not in the record yet can be trusted.
        return [name for name in selection.names if not _is_whole(places[name], files[name])]

    total = sum(files[name] for name in selection.names)
    before = missing()
    plan = {
        "entry": str(entry),
        "commit": listing.commit,
        "directory": str(directory),
        "files": len(selection.names),
        "bytes": total,
        "remaining": _checked_room(paths.make_private_dir(repository), transfer.remaining(before)),
        "reason": selection.reason,
    }
    if before:
        answers.ask({"plan": plan})
    with exclusive_lock(repository, answers.progress):
        wanted = missing()
        transfer.begin(total - sum(files[name] for name in wanted), total)
        paths.make_private_dir(directory)
        for name in wanted:
            transfer.fetch(name, places[name])
        _refuse_shared(places)
        earlier = Record.read(directory)
        have = set(selection.names) | (set(earlier.have) if earlier is not None else set())
        whole = Record(record.repository, record.commit, files, record.subsets, frozenset(have))
        write_atomic(directory / RECORD_NAME, whole.to_json())
        note_ref(entry, listing.commit)
        if wanted:
            _remove_if_empty(directory / PARTIAL_NAME)
    return plan


def fetch_model(client: HubClient, entry: HubEntry, answers: Answers) -> dict[str, Any]:
    """Fetch a model in the format of transformers: configuration, tokenizer and safetensors only.

    Returns:
        Summary of the files on this machine, for the caller.

    Raises:
        UserError: If there is no such model, it has no safetensors or brings code, or there is no room for it.
    """
    if entry.path:
        raise UserError(f"{entry} names a file of a model.", f"Name the whole: hf://{entry.repository}.")
    listing = client.list_files(entry)
    names = _model_files(entry, listing)
    models = paths.make_private_dir(paths.models_dir())
    target = _model_directory(entry, listing.commit)
    total = sum(listing.files[name].size for name in names)
    plan = {
        "entry": str(entry),
        "commit": listing.commit,
        "directory": str(target),
        "files": len(names),
        "bytes": total,
        "remaining": 0,
        "reason": "Configuration, tokenizer and safetensors are taken.",
    }
    if _is_this_model(target, listing.commit):
        _note_revision(entry, listing.commit)
        return plan
    scratch = safe_path(models, f".{target.name}.{listing.commit}.fetched")
    places = {name: safe_path(scratch, name) for name in names}
    transfer = Transfer(client, entry, listing, safe_path(scratch, PARTIAL_NAME), answers)

    def missing() -> list[str]:
        return [name for name in names if not _is_whole(places[name], listing.files[name].size)]

    plan["remaining"] = _checked_room(models, transfer.remaining(missing()))
    answers.ask({"plan": plan})
    with exclusive_lock(target, answers.progress):
        if not _is_this_model(target, listing.commit):
            wanted = missing()
            transfer.begin(total - sum(listing.files[name].size for name in wanted), total)
            _fetch_checked(transfer, {name: places[name] for name in wanted}, paths.make_private_dir(scratch))
            sizes = {name: listing.files[name].size for name in names}
            record = {"source": "hub", "repository": entry.repository, "commit": listing.commit, "files": sizes}
            write_atomic(scratch / RECORD_NAME, json.dumps(record, indent=1) + "\n")
            _remove_if_empty(scratch / PARTIAL_NAME)
            fsync_dir(scratch)
            scratch.rename(target)
            fsync_dir(models)
        _note_revision(entry, listing.commit)
    return plan


def _fetch_checked(transfer: Transfer, wanted: Mapping[str, Path], directory: Path) -> None:
    """Fetch files of a model, and check the model that they make up.

    Args:
        transfer: Of the model.
        wanted: Names of files, and where each goes.
        directory: Where the model is being put together.

    Raises:
        UserError: If it cannot be trained; before any weights are fetched if its configuration shows that.
    """
    described = False
    for name, place in wanted.items():
        if name.endswith(".safetensors") and not described:
            # Checked before gigabytes are fetched in vain.
            check_model_config(directory)
            described = True
        transfer.fetch(name, place)
    check_model_directory(directory)


def _model_directory(entry: HubEntry, commit: str) -> Path:
    """Directory for a model's commit: under the model's own name if no revision was requested."""
    for directory, record in fetched_models(entry):
        if entry.revision and record.get("commit") == commit:
            return directory
    name = entry.directory_name
    return paths.models_dir() / (f"{name}@{commit[:12]}" if entry.revision else name)


def _note_revision(entry: HubEntry, commit: str) -> None:
    """Record, in the models' records, the commit of an entry's branch or tag."""
    if is_commit(entry.revision):
        return
    revision = entry.revision or DEFAULT_REVISION
    for directory, record in fetched_models(entry):
        others = [name for name in revisions_of(record) if name != revision]
        revisions = [*others, revision] if record.get("commit") == commit else others
        if revisions != revisions_of(record):
            write_atomic(directory / RECORD_NAME, json.dumps({**record, "revisions": revisions}, indent=1) + "\n")


def _is_this_model(target: Path, commit: str) -> bool:
    """True if the model is on this machine already.

    Raises:
        UserError: If something else is in its place.
    """
    if not target.exists():
        return False
    record = read_record(target)
    if record is not None and record.get("commit") == commit:
        return True
    what = f"of the commit {one_line(str(record['commit']), 12)}" if record and "commit" in record else "another one"
    raise UserError(
        f"{target} is here already and is {what}, not of {commit[:12]}.",
        "Runs may depend on it; move it away, or remove it, to fetch the other.",
    )


def _model_files(entry: HubEntry, listing: Listing) -> list[str]:
    """Files of a model to fetch, the small description files first."""
    names = list(listing.files)
    weights = [WEIGHTS] if WEIGHTS in names else [name for name in names if _SHARD.fullmatch(name)]
    if not weights:
        if any(name.endswith(PICKLES) for name in names):
            raise UserError(
                f"{entry} has its weights as pickles only, which run code when they are loaded.",
                "Use a version of the model that has safetensors.",
            )
        kind = "GGUF files" if any(name.endswith(".gguf") for name in names) else "no weights"
        raise UserError(f"{entry} has {kind} and no safetensors.", "Name a repository that has safetensors.")
    about = [name for name in names if name in _ABOUT_MODEL and (name != WEIGHTS_INDEX or weights != [WEIGHTS])]
    if "config.json" not in about:
        raise UserError(f"{entry} has no config.json, so it is not a model.", "Check the name.")
    if len(weights) > MOST_SHARDS:
        raise UserError(
            f"{entry} has its weights in {len(weights)} files, and {MOST_SHARDS} are read.", "Use another model."
        )
    return [*sorted(about), *sorted(weights)]


def _refuse_shared(places: Mapping[str, Path]) -> None:
    """Refuse files that would be one file on this disk, as on a case-insensitive file system.

    Raises:
        UserError: If there are two such files.
    """
    seen: dict[tuple[int, int], str] = {}
    for name, path in places.items():
        status = path.stat()
        other = seen.setdefault((status.st_dev, status.st_ino), name)
        if other != name:
            raise UserError(
                f"{one_line(other, 120)} and {one_line(name, 120)} of this repository are one file on this disk.",
                "Name one of them by its path, or set LOCALTUNE_HOME to a disk that tells their names apart.",
            )


def _checked_room(directory: Path, needed: int) -> int:
    """``needed``, if the disk has room for that many bytes plus a reserve."""
    if needed:
        require_space(directory, needed + RESERVE, "the download")
    return needed


def _remove_if_empty(directory: Path) -> None:
    try:
        directory.rmdir()
    except OSError:
        return  # gone already, or not empty because of another partial file


def _is_whole(path: Path, size: int) -> bool:
    return path.is_file() and _size(path) == size


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def fetch(job: dict[str, Any], answers: Answers) -> dict[str, Any]:
    """Download an entry.

    Args:
        job: ``entry``.
        answers: Receives the progress, and the ``plan`` once the size of the download is known; waits for a reply then.

    Returns:
        The files on this machine now: a :class:`~core.hub.job.FetchPlan`.
    """
    entry = parse_entry(str(job["entry"]))
    try:
        from core.hub.client import HubClient

        client = HubClient()
        answers.progress(f"asking {client.host}")
        return (fetch_dataset if entry.kind == "dataset" else fetch_model)(client, entry, answers)
    except MemoryError:
        raise UserError(
            f"What {entry.repository} holds takes more memory than a download may.", "Use another."
        ) from None
    except OSError as error:
        raise disk_error(paths.home(), error) from error


def _fetch_confined(job: dict[str, Any], answers: Answers) -> dict[str, Any]:
    _confine(parse_entry(str(job["entry"])))
    return fetch(job, answers)


def _confine(entry: HubEntry) -> None:
    """Confine this process to the network, the directory of its kind, and the user's token and certificates."""
    try:
        from core.hub.client import TOKEN_PATH
    except ImportError:
        return  # nothing can be fetched without the library, which the download reports
    place = paths.datasets_dir() if entry.kind == "dataset" else paths.models_dir()
    moved: list[str] = []
    with contextlib.suppress(UserError, OSError):  # the download meets it again, and reports it
        paths.make_private_dir(place)
        # Directories that the user keeps on another disk.
        moved = [path.path for path in os.scandir(place) if path.is_symlink()]
    read = (str(TOKEN_PATH), *filter(None, map(os.environ.get, _CERTIFICATES)))
    confine(_MEMORY_LIMIT, Rights(reading(*read).reads, writes=(str(place), *moved), uses_network=True))


if __name__ == "__main__":
    sys.exit(run_job(_fetch_confined))

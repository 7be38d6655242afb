"""Download process: ``python -m core.hub.download``; see :mod:`core.jobs.process`."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sys
from collections.abc import Collection, Mapping
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
        places: The files to download, each with its :func:`safe_path`.
        scratch: Directory for partial files; not reachable by a link.
        answers: Receives the progress.
    """

    def __init__(
        self, client: HubClient, entry: HubEntry, listing: Listing, places: Mapping[str, Path], scratch: Path,
        answers: Answers,
    ) -> None:  # fmt: skip
        self._client = client
        self._entry = entry
        self._listing = listing
        self._places = places
        self._scratch = scratch
        self._answers = answers
        self._sizes = {name: listing.files[name].size for name in places}
        self._before = 0

    def remaining(self, disk: Path) -> int:
        """Bytes still to be downloaded.

        Raises:
            UserError: If the disk has no room for them.
        """
        partial = {name: _size(self._partial(name)) for name in self.missing()}
        remaining = sum(max(self._sizes[name] - size, 0) for name, size in partial.items())
        if remaining:
            require_space(disk, remaining + RESERVE, "the download")
        return remaining

    def missing(self) -> list[str]:
        """Files not in place; only complete files are moved there, so they can be trusted without a record."""
        return [
            name for name, path in self._places.items() if not (path.is_file() and _size(path) == self._sizes[name])
        ]

    def begin(self) -> list[str]:
        """The missing files; the progress counts the bytes of all others as present."""
        missing = self.missing()
        self._before = sum(size for name, size in self._sizes.items() if name not in missing)
        return missing

    def fetch(self, name: str) -> None:
        """Download a file, and move it into place once it is complete.

        Raises:
            UserError: If it cannot be fetched.
        """
        file: RemoteFile = self._listing.files[name]
        paths.make_private_dir(self._scratch)
        partial, target, total = self._partial(name), self._places[name], sum(self._sizes.values())

        def report(done: int) -> None:
            self._answers.progress(f"downloading {one_line(name, 60)}", self._before + done, total)

        self._client.download(self._entry, self._listing.commit, file, partial, report)
        paths.make_private_dir(target.parent)
        os.replace(partial, target)
        fsync_dir(target.parent)
        self._before += file.size

    def _partial(self, name: str) -> Path:
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
    files = {name: listing.files[name].size for name in data_names(listing.files)}
    repository = repository_dir(entry)
    directory = safe_path(repository, listing.commit)
    record = Record(entry.repository, listing.commit, files, read_subsets(listing.card))
    selection = select_files(entry, record)
    places = {name: safe_path(repository, listing.commit, name) for name in selection.names}
    transfer = Transfer(client, entry, listing, places, safe_path(repository, listing.commit, PARTIAL_NAME), answers)
    plan = _plan(entry, listing, selection.names, directory, selection.reason)
    plan["remaining"] = transfer.remaining(paths.make_private_dir(repository))
    if transfer.missing():
        answers.ask({"plan": plan})
    with exclusive_lock(repository, answers.progress):
        wanted = transfer.begin()
        paths.make_private_dir(directory)
        for name in wanted:
            transfer.fetch(name)
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
    plan = _plan(entry, listing, names, target, "Configuration, tokenizer and safetensors are taken.")
    if _is_this_model(target, listing.commit):
        _note_revision(entry, listing.commit)
        return plan
    scratch = safe_path(models, f".{target.name}.{listing.commit}.fetched")
    places = {name: safe_path(scratch, name) for name in names}
    transfer = Transfer(client, entry, listing, places, safe_path(scratch, PARTIAL_NAME), answers)
    plan["remaining"] = transfer.remaining(models)
    answers.ask({"plan": plan})
    with exclusive_lock(target, answers.progress):
        if not _is_this_model(target, listing.commit):
            _fetch_checked(transfer, paths.make_private_dir(scratch))
            sizes = {name: listing.files[name].size for name in names}
            record = {"source": "hub", "repository": entry.repository, "commit": listing.commit, "files": sizes}
            write_atomic(scratch / RECORD_NAME, json.dumps(record, indent=1) + "\n")
            _remove_if_empty(scratch / PARTIAL_NAME)
            fsync_dir(scratch)
            scratch.rename(target)
            fsync_dir(models)
        _note_revision(entry, listing.commit)
    return plan


def _plan(entry: HubEntry, listing: Listing, names: Collection[str], directory: Path, reason: str) -> dict[str, Any]:
    """The values of a :class:`~core.hub.job.FetchPlan` with nothing left to download."""
    return {
        "entry": str(entry),
        "commit": listing.commit,
        "directory": str(directory),
        "files": len(names),
        "bytes": sum(listing.files[name].size for name in names),
        "remaining": 0,
        "reason": reason,
    }


def _fetch_checked(transfer: Transfer, directory: Path) -> None:
    """Fetch the missing files of a model, and check the model that they make up.

    Args:
        transfer: Of the model.
        directory: Where the model is being put together.

    Raises:
        UserError: If it cannot be trained; before any weights are fetched if its configuration shows that.
    """
    described = False
    for name in transfer.begin():
        if name.endswith(".safetensors") and not described:
            # Checked before gigabytes are fetched in vain.
            check_model_config(directory)
            described = True
        transfer.fetch(name)
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


def _remove_if_empty(directory: Path) -> None:
    try:
        directory.rmdir()
    except OSError:
        return  # gone already, or not empty because of another partial file


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

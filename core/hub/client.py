"""The one module that speaks with a hub: asks what a repository holds, and downloads a file of it.

It is imported by the process that downloads and by no other. It asks anonymously first; the token of the user is sent
only where a repository refuses without one, and never over a connection that others can read.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get

from core import __version__
from core.errors import UserError
from core.hub.entries import HubEntry
from core.text import one_line

T = TypeVar("T")

#: Seconds that an answer is waited for.
TIMEOUT = 30.0
#: Bytes that are written at once; what is on its way when a connection is cut is lost, and progress is told this often.
PIECE = 1 << 20
#: Attempts in a row that bring nothing before a download is given up.
FRUITLESS = 2

_HASH_PIECE = 4 << 20
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository.

    Args:
        name: Its path in the repository.
        size: Bytes.
        sha256: Of its content, where the hub knows it; empty otherwise.
        blob: The hash that git has for it.
    """

    name: str
    size: int
    sha256: str
    blob: str


@dataclass(frozen=True)
class Listing:
    """What a repository holds at one commit; ``card`` is the data of its card."""

    commit: str
    files: Mapping[str, RemoteFile]
    card: Mapping[str, Any]


class HubClient:
    """Speaks with the hub of ``HF_ENDPOINT``, by default huggingface.co."""

    def __init__(self) -> None:
        # Both are read by the library at each download.
        constants.DOWNLOAD_CHUNK_SIZE = PIECE
        constants.HF_HUB_DOWNLOAD_TIMEOUT = TIMEOUT
        self._api = huggingface_hub.HfApi(library_name="localtune-tui", library_version=__version__, token=False)
        self._token: str | None = None

    @property
    def host(self) -> str:
        """Who is asked."""
        return one_line(urlsplit(self._api.endpoint).netloc, 100)

    def list_files(self, entry: HubEntry) -> Listing:
        """Ask what a repository holds.

        Raises:
            UserError: If it does not exist, is not to be seen, or the hub cannot be reached.
        """
        with self._explained(entry):
            info = self._allowed(
                lambda: self._api.repo_info(
                    entry.repository,
                    repo_type=entry.kind,
                    revision=entry.revision or None,
                    files_metadata=True,
                    timeout=TIMEOUT,
                    token=self._token or False,
                )
            )
        files = {}
        for item in info.siblings or ():
            size = item.lfs.size if item.lfs is not None else item.size
            if not isinstance(size, int) or size < 0:
                raise UserError(
                    f"{self.host} does not say how large {one_line(item.rfilename, 120)} is.",
                    "If HF_ENDPOINT is set, check that it is a hub.",
                )
            sha256 = item.lfs.sha256 if item.lfs is not None else ""
            files[item.rfilename] = RemoteFile(item.rfilename, size, str(sha256), str(item.blob_id or ""))
        card = info.card_data.to_dict() if info.card_data is not None else {}
        return Listing(str(info.sha), files, card)

    def download(
        self, entry: HubEntry, commit: str, file: RemoteFile, target: Path, report: Callable[[int], None]
    ) -> None:
        """Download a file, going on with what is there of it, and compare it with the hash that the hub has.

        Args:
            entry: The repository.
            commit: Of which commit.
            file: The file.
            target: Where its bytes go.
            report: Told how many of its bytes are there.

        Raises:
            OSError: If ``target`` cannot be written.
            UserError: If it cannot be fetched or is not what it should be; what is there of it stays, unless wrong.
        """
        url = huggingface_hub.hf_hub_url(
            entry.repository, file.name, repo_type=entry.kind, revision=commit, endpoint=self._api.endpoint
        )
        with self._explained(entry, file.name):
            try:
                self._allowed(lambda: self._transfer(url, file, target, report))
            except _TooLongError:
                target.unlink()
                raise self._unlike(entry, file) from None
        if not _is_as_expected(target, file):
            target.unlink()
            raise self._unlike(entry, file)

    def _unlike(self, entry: HubEntry, file: RemoteFile) -> UserError:
        return UserError(
            f"{one_line(file.name, 120)} of {entry} did not come as {self.host} describes it.",
            "Fetch it again; if that does not help, do not use this repository.",
        )

    def _transfer(self, url: str, file: RemoteFile, target: Path, report: Callable[[int], None]) -> None:
        fruitless = 0
        while True:
            with target.open("ab", buffering=0) as raw:
                begun = raw.tell()
                if begun > file.size:
                    raw.truncate(0)
                    begun = raw.seek(0)
                report(begun)
                try:
                    http_get(
                        url,
                        _Sink(raw, report, file.size),
                        resume_size=begun,
                        headers=self._headers(),
                        expected_size=file.size,
                    )
                except HfHubHTTPError as error:
                    if error.response.status_code != 416:
                        raise
                    # The hub has no such range: what is there is of another file.
                    raw.truncate(0)
                    fruitless += 1
                    failure: Exception = error
                except HTTPError as error:
                    fruitless = fruitless + 1 if raw.tell() == begun else 0
                    failure = error
                except OSError as error:
                    if error.errno is not None:
                        raise
                    # The library's own complaint about a size that is not the expected one.
                    raw.truncate(0)
                    fruitless += 1
                    failure = error
                else:
                    os.fsync(raw.fileno())
                    return
            if fruitless >= FRUITLESS:
                raise failure
            time.sleep(1)

    def _headers(self) -> dict[str, str]:
        headers = huggingface_hub.utils.build_hf_headers(
            token=self._token or False, library_name="localtune-tui", library_version=__version__
        )
        # Packed on its way, a file could not be gone on with in its middle.
        return {**headers, "accept-encoding": "identity"}

    def _allowed(self, ask: Callable[[], T]) -> T:
        """Ask without a token; where that is refused and there is one, with it."""
        try:
            return ask()
        except HfHubHTTPError as error:
            is_refusal = error.response.status_code in (401, 403, 404)
            token = self._find_token() if is_refusal and self._token is None else None
            if token is None:
                raise
        self._token = token
        return ask()

    def _find_token(self) -> str | None:
        """The user's token: from ``HF_TOKEN``, else from the file that ``hf auth login`` writes."""
        endpoint = urlsplit(self._api.endpoint)
        if endpoint.scheme != "https" and endpoint.hostname not in _LOOPBACK:
            return None
        if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
            return None
        token = os.environ.get("HF_TOKEN", "").strip()
        if not token:
            with contextlib.suppress(OSError, UnicodeDecodeError):
                token = Path(constants.HF_TOKEN_PATH).read_text(encoding="ascii").strip()
        return token if token.isprintable() and token.isascii() and token else None

    @contextlib.contextmanager
    def _explained(self, entry: HubEntry, name: str = "") -> Iterator[None]:
        """What goes wrong with a question, as a sentence."""
        noun, address = entry.kind, f"{'datasets/' if entry.kind == 'dataset' else ''}{entry.repository}"
        try:
            yield
        except GatedRepoError as error:
            raise UserError(
                f"{self.host} lets only those read {entry.repository} who have accepted its terms.",
                f"Accept them at {self._api.endpoint}/{address}, and set HF_TOKEN to a token of yours.",
            ) from error
        except RevisionNotFoundError as error:
            raise UserError(
                f"{entry.repository} has no revision {one_line(entry.revision, 60)} on {self.host}.", "Check it."
            ) from error
        except EntryNotFoundError as error:
            raise UserError(
                f"{entry.repository} has no file {one_line(name, 120)} on {self.host}.", "Fetch it again."
            ) from error
        except RepositoryNotFoundError as error:
            raise UserError(
                f"There is no {noun} {entry.repository} on {self.host} that you may read.",
                "Check the name; a private one needs a token in HF_TOKEN."
                if self._token is None
                else "Check the name, and what the token in use lets you read.",
            ) from error
        except HfHubHTTPError as error:
            code = error.response.status_code
            if code in (401, 403):
                hint = "Set HF_TOKEN to a token that may read it." if self._token is None else "Check your token."
                raise UserError(f"{self.host} does not let you read {entry.repository}.", hint) from error
            what = "asks to wait (too many requests)" if code == 429 else f"answers with the error {code}"
            raise UserError(f"{self.host} {what}.", "Try again later; what has come is kept.") from error
        except OfflineModeIsEnabled as error:
            hint = "Unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE to allow it."
            raise UserError("The environment says offline, so nothing is fetched.", hint) from error
        except HTTPError as error:
            reason = one_line(str(error), 200).rstrip(".") or type(error).__name__
            raise UserError(
                f"{self.host} cannot be reached: {reason}.",
                "Check the connection (and HF_ENDPOINT, if it is set), then fetch again: what has come is kept.",
            ) from error


class _TooLongError(Exception):
    """More comes than the hub has announced, and room was made for."""


class _Sink:
    """What the library writes into; it tells how far it is, and never writes less than it is given.

    Args:
        raw: The file.
        report: Told how many bytes are in it.
        size: The most that it may hold.
    """

    def __init__(self, raw: Any, report: Callable[[int], None], size: int) -> None:
        self._raw = raw
        self._report = report
        self._size = size

    def write(self, piece: bytes) -> int:
        """All of a piece.

        Raises:
            _TooLongError: If the file would become larger than announced.
        """
        if self._raw.tell() + len(piece) > self._size:
            raise _TooLongError
        view = memoryview(piece)
        while view:
            view = view[self._raw.write(view) :]
        self._report(self._raw.tell())
        return len(piece)

    def seek(self, offset: int, whence: int = 0) -> int:
        """As a file."""
        return int(self._raw.seek(offset, whence))

    def tell(self) -> int:
        """As a file."""
        return int(self._raw.tell())

    def truncate(self) -> int:
        """As a file."""
        return int(self._raw.truncate())


def _is_as_expected(path: Path, file: RemoteFile) -> bool:
    """Whether a file has the size and the hash that the hub has for it."""
    if path.stat().st_size != file.size:
        return False
    if not file.sha256 and len(file.blob) != 40:
        return True
    # Small files are kept in git itself, which hashes them with their length in front.
    digest = hashlib.sha256() if file.sha256 else hashlib.sha1(f"blob {file.size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as content:
        while piece := content.read(_HASH_PIECE):
            digest.update(piece)
    return digest.hexdigest() == (file.sha256 or file.blob)

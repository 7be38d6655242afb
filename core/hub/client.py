"""Hub client, the only module that connects to a hub: lists the files of a repository, and downloads them.

It is imported by the process that downloads and by no other. It asks anonymously first; the user's token is sent only
if a repository requires one, and never over an unencrypted connection. From huggingface_hub it takes the HTTP
connection and its configuration. Requests are made here, as the library's own headers reveal more about the user;
answers are read here, piece by piece, so that none is larger than expected.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

from huggingface_hub import constants
from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import get_session

from core import __version__
from core.errors import UserError
from core.hub.job import hub_endpoint, hub_host
from core.hub.listing import ANSWER_LIMIT, NOT_A_HUB, Listing, RemoteFile, read_listing
from core.hub_uri import HubEntry
from core.paths import FILE_MODE
from core.text import one_line

T = TypeVar("T")

#: Timeout in seconds for the next piece of an answer.
TIMEOUT = 30.0
#: Consecutive attempts without progress before a download fails.
FRUITLESS = 2
#: Times that a hub may ask to wait before a download fails, and the longest wait in seconds.
PATIENCE, LONGEST_WAIT = 5, 60.0

#: The file that ``hf auth login`` writes the user's token to.
TOKEN_PATH = Path(constants.HF_TOKEN_PATH)

_HASH_PIECE = 4 << 20
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_OK, _PART, _BAD_RANGE, _BUSY = 200, 206, 416, (408, 429)


class _RefusedError(Exception):
    """An HTTP error status.

    Args:
        status: HTTP status.
        code: The hub's error code; empty if there is none.
        wait: Seconds to wait before a retry, if given.
    """

    def __init__(self, status: int, code: str, wait: float | None) -> None:
        super().__init__(f"{status} {code}")
        self.status = status
        self.code = code
        self.wait = wait


class _OtherLengthError(Exception):
    """The length of an answer differs from the announced one, for which disk space was checked."""


class HubClient:
    """Client of the hub in ``HF_ENDPOINT``, by default huggingface.co.

    Raises:
        UserError: If the variable is not an address.
    """

    def __init__(self) -> None:
        self._endpoint = hub_endpoint()
        self.host = hub_host()
        """Host name of the hub."""
        self._token: str | None = None

    def list_files(self, entry: HubEntry) -> Listing:
        """List the files of a repository.

        Raises:
            UserError: If it does not exist, is not accessible, the hub cannot be reached, or its answer is invalid.
        """
        url = f"{self._endpoint}/api/{entry.kind}s/{entry.repository}"
        if entry.revision:
            url += f"/revision/{quote(entry.revision, safe='')}"
        with self._explained(entry):
            raw = self._allowed(lambda: self._read_answer(f"{url}?blobs=true"))
        listing = read_listing(raw, self.host)
        if entry.commit and listing.commit != entry.commit:
            raise UserError(
                f"{self.host} answers with the commit {listing.commit[:12]}, not with {entry.commit[:12]}.", NOT_A_HUB
            )
        return listing

    def download(
        self, entry: HubEntry, commit: str, file: RemoteFile, target: Path, report: Callable[[int], None]
    ) -> None:
        """Download a file, resuming a partial one, and verify the hub's hash.

        Args:
            entry: The repository.
            commit: Commit of the file.
            file: The file.
            target: File to write to.
            report: Called with the number of bytes present.

        Raises:
            OSError: If ``target`` cannot be written.
            UserError: If it cannot be fetched or fails verification; a partial file is kept, unless wrong.
        """
        of_kind = "datasets/" if entry.kind == "dataset" else ""
        url = f"{self._endpoint}/{of_kind}{entry.repository}/resolve/{commit}/{quote(file.name)}"
        with self._explained(entry, file.name):
            try:
                self._allowed(lambda: self._transfer(url, file, target, report))
                is_right = _is_as_expected(target, file)
            except _OtherLengthError:
                is_right = False
        if not is_right:
            target.unlink()
            raise UserError(
                f"{one_line(file.name, 120)} of {entry} did not come as {self.host} describes it.",
                "Fetch it again; if that does not help, do not use this repository.",
            )

    def _read_answer(self, url: str) -> bytes:
        """Body of an answer."""
        raw = bytearray()
        with self._asked(url) as answer:
            for piece in answer.iter_raw():
                raw += piece
                if len(raw) > ANSWER_LIMIT:
                    raise UserError(
                        f"{self.host} answers with more than {ANSWER_LIMIT >> 20} MiB about this repository.",
                        f"It may have too many files. {NOT_A_HUB}",
                    )
        return bytes(raw)

    def _transfer(self, url: str, file: RemoteFile, target: Path, report: Callable[[int], None]) -> None:
        """Append the missing bytes of a file, with retries as long as they make progress."""
        fruitless = waits = 0
        while True:
            seconds = 1.0
            with _open_partial(target) as raw:
                begun = raw.seek(0, os.SEEK_END)
                if begun > file.size:
                    raw.truncate(0)
                    begun = 0
                report(begun)
                try:
                    if begun < file.size:
                        self._receive(url, file, raw, begun, report)
                except _RefusedError as error:
                    failure: Exception = error
                    if error.status in _BUSY and waits < PATIENCE:
                        seconds = min(error.wait if error.wait is not None else 2.0**waits, LONGEST_WAIT)
                        waits += 1
                    elif error.status == _BAD_RANGE:
                        # The hub has no such range: the partial file is of another file.
                        raw.truncate(0)
                        fruitless += 1
                    else:
                        raise
                except HTTPError as error:
                    fruitless = fruitless + 1 if raw.seek(0, os.SEEK_END) == begun else 0
                    failure = error
                else:
                    os.fsync(raw.fileno())
                    return
            if fruitless >= FRUITLESS:
                raise failure
            time.sleep(seconds)

    def _receive(self, url: str, file: RemoteFile, raw: Any, begun: int, report: Callable[[int], None]) -> None:
        with self._asked(url, {"range": f"bytes={begun}-"} if begun else {}) as answer:
            if answer.status_code != _PART and begun:
                # The server ignores the range and sends the whole file.
                raw.truncate(0)
                begun = 0
            for piece in answer.iter_raw():
                begun += len(piece)
                if begun > file.size:
                    raise _OtherLengthError
                view = memoryview(piece)
                while view:
                    view = view[raw.write(view) :]
                report(begun)
        if begun < file.size:
            raise _OtherLengthError

    @contextlib.contextmanager
    def _asked(self, url: str, more: dict[str, str] | None = None) -> Iterator[Any]:
        """The response to a request, before its body is read.

        Raises:
            HTTPError: If there is no response.
            _RefusedError: If its status is an error.
            UserError: If the environment forbids or prevents a connection, or it is compressed.
        """
        # A compressed transfer could not be resumed, and its decompressed length would be unbounded.
        headers = {"user-agent": f"localtune-tui/{__version__}", "accept-encoding": "identity", **(more or {})}
        if self._token is not None:
            headers["authorization"] = f"Bearer {self._token}"
        with contextlib.ExitStack() as stack:
            answer = self._enter(stack, url, headers)
            if answer.status_code != _OK and not (more and answer.status_code == _PART):
                raise _RefusedError(answer.status_code, answer.headers.get("x-error-code", ""), _wait(answer.headers))
            if answer.headers.get("content-encoding", "identity").strip().lower() not in ("identity", ""):
                raise UserError(f"{self.host} answers packed, which it was asked not to do.", NOT_A_HUB)
            yield answer

    @staticmethod
    def _enter(stack: contextlib.ExitStack, url: str, headers: dict[str, str]) -> Any:
        """The response over the library's connection, with the proxies and certificates of the environment."""
        try:
            session = get_session()
        except Exception as error:
            raise UserError(
                f"The environment does not let a connection be made: {_reason(error)}.",
                "Check HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY, SSL_CERT_FILE and SSL_CERT_DIR.",
            ) from error
        try:
            return stack.enter_context(session.stream("GET", url, headers=headers, timeout=TIMEOUT))
        except (HTTPError, OfflineModeIsEnabled):
            raise
        except Exception as error:
            # Name resolution fails with various exceptions; a hub may redirect to any host.
            raise HTTPError("there is no host of that name") from error

    def _allowed(self, ask: Callable[[], T]) -> T:
        """Make a request without a token, and repeat it with the user's token if refused."""
        try:
            return ask()
        except _RefusedError as error:
            token = self._find_token() if error.status in (401, 403, 404) and self._token is None else None
            if token is None:
                raise
        self._token = token
        return ask()

    def _find_token(self) -> str | None:
        """The user's token: from ``HF_TOKEN``, else from the file written by ``hf auth login``."""
        endpoint = urlsplit(self._endpoint)
        if endpoint.scheme != "https" and endpoint.hostname not in _LOOPBACK:
            return None
        if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
            return None
        token = os.environ.get("HF_TOKEN", "").strip()
        if not token:
            with contextlib.suppress(OSError, UnicodeDecodeError):
                token = TOKEN_PATH.read_text(encoding="ascii").strip()
        return token if token.isprintable() and token.isascii() and token else None

    @contextlib.contextmanager
    def _explained(self, entry: HubEntry, name: str = "") -> Iterator[None]:
        """Converts errors of a request into clear messages."""
        try:
            yield
        except _RefusedError as error:
            raise self._refusal(error, entry, name) from error
        except OfflineModeIsEnabled as error:
            hint = "Unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE to allow it."
            raise UserError("The environment says offline, so nothing is fetched.", hint) from error
        except HTTPError as error:
            raise UserError(
                f"{self.host} cannot be reached: {_reason(error)}.",
                "Check the connection (and HF_ENDPOINT, if it is set), then fetch again: what has come is kept.",
            ) from error

    def _refusal(self, error: _RefusedError, entry: HubEntry, name: str) -> UserError:
        noun, repository, host = entry.kind, entry.repository, self.host
        if error.code == "GatedRepo":
            page = f"{host}/{'datasets/' if noun == 'dataset' else ''}{repository}"
            return UserError(
                f"{host} lets only those read {repository} who have accepted its terms.",
                f"Accept them at {urlsplit(self._endpoint).scheme}://{page}, and set HF_TOKEN to a token of yours.",
            )
        if error.code == "RevisionNotFound":
            return UserError(f"{repository} has no revision {one_line(entry.revision, 60)} on {host}.", "Check it.")
        if error.code == "EntryNotFound":
            return UserError(f"{repository} has no file {one_line(name, 120)} on {host}.", "Fetch it again.")
        # A private repository is reported as missing to users without access.
        if error.code == "RepoNotFound" or (error.status == 401 and self._token is None):
            return UserError(
                f"There is no {noun} {repository} on {host} that you may read.",
                "Check the name; a private one needs a token in HF_TOKEN."
                if self._token is None
                else "Check the name, and what the token in use lets you read.",
            )
        if error.status in (401, 403):
            hint = "Set HF_TOKEN to a token that may read it." if self._token is None else "Check your token."
            return UserError(f"{host} does not let you read {repository}.", hint)
        if error.status == 429:
            return UserError(f"{host} asks to wait (too many requests).", "Try again later; what has come is kept.")
        if error.status < 400:
            return UserError(f"{host} answers with the status {error.status} and nothing to read.", NOT_A_HUB)
        return UserError(f"{host} answers with the error {error.status}.", "Try again later; what has come is kept.")


def _reason(error: Exception) -> str:
    return one_line(str(error), 200).rstrip(".") or type(error).__name__


def _wait(headers: Any) -> float | None:
    """Seconds to wait before a retry, from the headers of a response."""
    said = headers.get("retry-after", "")
    return float(said) if said.isascii() and said.isdigit() and len(said) < 10 else None


def _open_partial(target: Path) -> Any:
    """Open a file to append to. A file with a second hard link is replaced, as the write would reach both names."""
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(target, flags, FILE_MODE)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        os.close(descriptor)
        target.unlink()
        descriptor = os.open(target, flags | os.O_EXCL, FILE_MODE)
    return os.fdopen(descriptor, "ab", buffering=0)


def _is_as_expected(path: Path, file: RemoteFile) -> bool:
    """True if a file has the size and the hash recorded by the hub."""
    if path.stat().st_size != file.size:
        return False
    if not file.sha256 and not file.blob:
        return True
    # Small files are stored in git itself, which hashes them with a header of their length.
    digest = hashlib.sha256() if file.sha256 else hashlib.sha1(f"blob {file.size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as content:
        while piece := content.read(_HASH_PIECE):
            digest.update(piece)
    return digest.hexdigest() == (file.sha256 or file.blob)

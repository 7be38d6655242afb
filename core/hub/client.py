"""The one module that speaks with a hub: asks what a repository holds, and downloads a file of it.

It is imported by the process that downloads and by no other. It asks anonymously first; the token of the user is sent
only where a repository refuses without one, and never over a connection that others can read. Of the library it takes
the connection and how it is set up. What is sent is written here, as the library's own headers tell more, and ask a
server for what they tell; what comes is read here, piece by piece, so that no answer is larger than expected.
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

#: Seconds that the next piece of an answer is waited for.
TIMEOUT = 30.0
#: Attempts in a row that bring nothing before a download is given up.
FRUITLESS = 2
#: How often a hub may ask to wait before a download is given up, and the most seconds that are waited each time.
PATIENCE, LONGEST_WAIT = 5, 60.0

_HASH_PIECE = 4 << 20
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_OK, _PART, _BAD_RANGE, _BUSY = 200, 206, 416, (408, 429)


class _RefusedError(Exception):
    """An answer that is no success.

    Args:
        status: Of HTTP.
        code: What the hub calls it; empty where it has no name for it.
        wait: Seconds after which one may ask again, as far as it says.
    """

    def __init__(self, status: int, code: str, wait: float | None) -> None:
        super().__init__(f"{status} {code}")
        self.status = status
        self.code = code
        self.wait = wait


class _OtherLengthError(Exception):
    """More or less has come than the hub has announced, and room was made for."""


class HubClient:
    """Speaks with the hub of ``HF_ENDPOINT``, by default huggingface.co.

    Raises:
        UserError: If the variable holds no address.
    """

    def __init__(self) -> None:
        self._endpoint = hub_endpoint()
        self._token: str | None = None

    @property
    def host(self) -> str:
        """Who is asked."""
        return hub_host()

    def list_files(self, entry: HubEntry) -> Listing:
        """Ask what a repository holds.

        Raises:
            UserError: If it does not exist, is not to be seen, the hub cannot be reached, or answers what cannot be.
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
        """What is answered to a question."""
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
        """Append what is missing of a file, again and again as long as that brings more of it."""
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
                        # The hub has no such range: what is there is of another file.
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
                # The whole file comes, as if no range had been asked for.
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
        """The answer to a request, before its body is read.

        Raises:
            HTTPError: If there is none.
            _RefusedError: If it is no success.
            UserError: If the environment forbids or prevents a connection, or it is packed.
        """
        # Packed on its way, a file could not be gone on with in its middle, and an answer would have any length.
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
        """The answer, by a connection as the library makes it: with proxies and certificates of the environment."""
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
            # Hosts that no name server knows by such a name are told in many ways; a hub may send us to them.
            raise HTTPError("there is no host of that name") from error

    def _allowed(self, ask: Callable[[], T]) -> T:
        """Ask without a token; where that is refused and there is one, with it."""
        try:
            return ask()
        except _RefusedError as error:
            token = self._find_token() if error.status in (401, 403, 404) and self._token is None else None
            if token is None:
                raise
        self._token = token
        return ask()

    def _find_token(self) -> str | None:
        """The user's token: from ``HF_TOKEN``, else from the file that ``hf auth login`` writes."""
        endpoint = urlsplit(self._endpoint)
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
        # A repository that is hidden from the one who asks is answered as one that is not there.
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
    """Seconds after which one may ask again, as an answer says."""
    said = headers.get("retry-after", "")
    return float(said) if said.isascii() and said.isdigit() and len(said) < 10 else None


def _open_partial(target: Path) -> Any:
    """A file to append to that has no other name, so that nothing else is written through it."""
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(target, flags, FILE_MODE)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        os.close(descriptor)
        target.unlink()
        descriptor = os.open(target, flags | os.O_EXCL, FILE_MODE)
    return os.fdopen(descriptor, "ab", buffering=0)


def _is_as_expected(path: Path, file: RemoteFile) -> bool:
    """Whether a file has the size and the hash that the hub has for it."""
    if path.stat().st_size != file.size:
        return False
    if not file.sha256 and not file.blob:
        return True
    # Small files are kept in git itself, which hashes them with their length in front.
    digest = hashlib.sha256() if file.sha256 else hashlib.sha1(f"blob {file.size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as content:
        while piece := content.read(_HASH_PIECE):
            digest.update(piece)
    return digest.hexdigest() == (file.sha256 or file.blob)

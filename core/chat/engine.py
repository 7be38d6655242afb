"""The client of the chat engine: a child process that holds a model, with requests over standard input and output."""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import subprocess
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from core import paths
from core.chat.request import ChatRequest
from core.directories import Progress
from core.errors import UserError
from core.helper import Helper
from core.jobs.job import last_words
from core.launch.launcher import worker_environment
from core.runs.catalog.trained import TrainedFile
from core.runs.control.protocol import ProtocolError, Request, decode_message, encode_request, refused
from core.text import one_line

#: Seconds without progress of a load before it counts as hung; a slow disk reads 30 GB of weights in less.
LOAD_SECONDS = 1800.0
#: Seconds without a token before an answer counts as hung; a long prompt is processed before the first one.
TOKEN_SECONDS = 600.0
#: Seconds for a cancelled answer to end; a step of a large model on a CPU takes less.
CANCEL_SECONDS = 10.0
#: Seconds allowed for the engine to end by itself.
CLOSE_SECONDS = 2.0
#: Engine logs kept.
LOGS_KEPT = 5


@dataclass(frozen=True)
class ModelSpec:
    """A model to load."""

    base: str
    """A directory, a GGUF file, or the name of a model."""
    adapter: str | None = None
    """A directory in PEFT's format."""
    weights: str | None = None
    """A checkpoint's safetensors file with weights that replace the base's."""
    method: str = "lora"
    """``qlora`` loads the base in 4 bit."""
    keep_16bit: tuple[str, ...] = ()
    """Names and patterns of the layers that stay in 16 bit with it."""
    precision: str = "auto"
    device: str = "auto"
    gpu: str | None = None
    """As ``hardware.gpu``."""
    template: str | None = None
    """A chat template that replaces the model's own: a Jinja file, or the name of a built-in template."""
    source_name: str = "adapter"
    """The name of the tuned source in answers: the adapter, or the model itself if its weights were trained."""
    base_sha256: str | None = None
    """The :class:`core.models.fingerprint.BaseFingerprint` of the base in training, if known."""
    file: TrainedFile | None = None
    """The file with the weights that it was trained with, and answers with."""


#: Most adapters on one base: each is loaded whole.
ADAPTER_LIMIT = 8


@dataclass(frozen=True)
class AdapterSpec:
    """An adapter to load beside others on the same base."""

    name: str
    """The source that it answers as."""
    adapter: str
    """A directory in PEFT's format."""
    source_name: str
    """The name of its answers."""
    template: str | None = None
    """A chat template that replaces the model's own, as for :class:`ModelSpec`."""
    base_sha256: str | None = None
    """The fingerprint of the base in training, if known."""


class ChatEngine:
    """Engine process of a chat. Methods block and belong in a thread; any other may call ``cancel`` and ``close``.

    Args:
        command: The module of another engine, or a command line to run instead, for tests.
        files: Its arguments: the files that a confined engine may read.
    """

    def __init__(self, command: str | list[str] | None = None, files: Sequence[str] = ()) -> None:
        self._command: str | list[str] = command or "core.worker.generate.chat_engine"
        self._files = tuple(files)
        self._ids = map(str, itertools.count(1))
        self._guard = threading.Lock()
        self._calmed = threading.Condition(self._guard)
        self._pending: dict[str, queue.Queue[dict[str, Any] | None]] = {}
        self._generating: str | None = None
        self._unfinished: set[str] = set()
        """The answers that the process has not ended yet, even if nobody waits for them."""
        self._patience: dict[str, threading.Timer] = {}
        """By cancelled answer, the timer that ends the process."""
        self.is_hung = False
        """True if the process was ended because it ignored a cancellation."""
        self._helper: Helper | None = None
        self._closed = False
        self.log_path: Path | None = None
        """The log of the engine's own output, once it has been started."""

    @property
    def pid(self) -> int | None:
        """The process id of the engine, once it has been started."""
        return self._helper.process.pid if self._helper else None

    def start(self) -> None:
        """Start the process; does nothing if it is running already.

        Raises:
            UserError: If the home cannot be written or the process cannot be started.
        """
        with self._guard:
            if self._closed:
                raise UserError("The chat has been closed.")
            if self._helper is not None:
                return
            home = paths.make_private_dir(paths.home())
            self.log_path = _new_log(paths.make_private_dir(home / "logs"))
            try:
                with self.log_path.open("wb") as log:
                    # Python imports from its working directory, and our home has no foreign 'core'.
                    self._helper = Helper(
                        self._command, *self._files, environment=worker_environment(), cwd=home, log=log.fileno()
                    )
            except OSError as error:
                raise UserError(f"The chat engine cannot be started: {error}.", "Make room, or try again.") from error
        threading.Thread(target=self._read, args=(self._helper,), name="chat-engine", daemon=True).start()

    def load(self, spec: ModelSpec, progress: Progress) -> dict[str, Any]:
        """Load a model in place of the previous one.

        Args:
            spec: The model.
            progress: Called with reports of the progress.

        Returns:
            ``device``, ``dtype`` and ``seconds``.

        Raises:
            UserError: If it cannot be loaded, or the engine ends.
        """
        self.start()
        for message in self._exchange(self._request("load", asdict(spec)), LOAD_SECONDS):
            if "progress" in message:
                progress(one_line(str(message["progress"])), _count(message.get("done")), _count(message.get("total")))
            else:
                return message
        raise AssertionError("unreachable: an exchange ends with an answer or an error")

    def add(self, spec: AdapterSpec) -> None:
        """Load another adapter onto the base; no effect if an adapter of its name is loaded.

        Raises:
            UserError: If it is for another base or does not fit, or the engine ends.
        """
        for _ in self._exchange(self._request("add", asdict(spec)), LOAD_SECONDS):
            pass

    def remove(self, name: str) -> None:
        """Unload an adapter by the name of its source.

        Raises:
            UserError: If no model is loaded, or the engine ends.
        """
        for _ in self._exchange(self._request("remove", {"name": name}), LOAD_SECONDS):
            pass

    def generate(self, request: ChatRequest) -> Generator[dict[str, Any], None, None]:
        """Answer a conversation.

        Yields:
            ``{"token": text}`` for each piece, then the answer. The text is the model's own, unchanged. Closing the
            generator before its end cancels the answer.

        Raises:
            UserError: If the model cannot answer, or the engine ends.
        """
        asked = self._request("generate", request.to_args())
        with self._guard:
            self._generating = asked.id
            self._unfinished.add(asked.id)
        finished = False
        try:
            for message in self._exchange(asked, TOKEN_SECONDS):
                finished = "token" not in message
                yield message
        finally:
            if not finished:
                self._cancel(asked.id)
            with self._guard:
                if self._generating == asked.id:
                    self._generating = None

    def cancel(self) -> None:
        """Cancel the current answer, within about one token; it then says ``cancelled``.

        An engine that continues for :data:`CANCEL_SECONDS` is killed.
        """
        with self._guard:
            target = self._generating
        if target is not None:
            self._cancel(target)

    def _cancel(self, target: str) -> None:
        with self._guard:
            if target not in self._unfinished or target in self._patience:
                return
            timer = self._patience[target] = threading.Timer(CANCEL_SECONDS, self._give_up, [target])
            timer.daemon = True
            timer.start()
        with contextlib.suppress(UserError):  # an engine that has ended writes nothing any more
            self._write(self._request("cancel", {"id": target}))

    def _give_up(self, target: str) -> None:
        """End the process if an answer has not ended yet."""
        with self._guard:
            if target not in self._unfinished or self._helper is None:
                return
            self.is_hung = True
            helper = self._helper
        helper.end()

    def _ended(self, target: str) -> None:
        """Note the end of an answer."""
        with self._guard:
            self._unfinished.discard(target)
            timer = self._patience.pop(target, None)
            self._calmed.notify_all()
        if timer is not None:
            timer.cancel()

    def calm(self) -> None:
        """Wait until the cancelled answers have ended, or the process has been killed for them."""
        with self._calmed:
            self._calmed.wait_for(lambda: not self._patience, CANCEL_SECONDS + CLOSE_SECONDS)

    def anew(self) -> ChatEngine:
        """Another engine of the same kind, in its own process, with no model."""
        return ChatEngine(self._command, self._files)

    @property
    def is_open(self) -> bool:
        """True if it takes requests: it has not been closed, and its process has not ended by itself."""
        is_gone = self._helper is not None and self._helper.process.poll() is not None
        return not self._closed and not self.is_hung and not is_gone

    def ping(self, timeout: float = 5.0) -> bool:
        """Send a ping; True if the engine answers."""
        try:
            next(self._exchange(self._request("ping", {}), timeout))
        except UserError:
            return False
        return True

    def close(self) -> None:
        """End the process; waiting calls end with an error. The engine takes no more commands."""
        with self._guard:
            self._closed = True
            helper = self._helper
        if helper is None:
            return
        with contextlib.suppress(OSError):  # it may have ended already
            helper.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            helper.process.wait(CLOSE_SECONDS)
        helper.end()
        self._release()

    def __enter__(self) -> ChatEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _request(self, command: str, args: dict[str, Any]) -> Request:
        return Request(next(self._ids), command, args)

    def _exchange(self, request: Request, timeout: float) -> Iterator[dict[str, Any]]:
        """Send a request and yield its replies, the answer last."""
        messages: queue.Queue[dict[str, Any] | None] = queue.Queue()
        with self._guard:
            self._pending[request.id] = messages
        try:
            self._write(request)
            while True:
                message = self._next(messages, timeout)
                if "ok" not in message:
                    yield message
                elif message["ok"] is True:
                    yield {key: value for key, value in message.items() if key not in ("id", "ok")}
                    return
                else:
                    raise refused(
                        one_line(str(message.get("error") or "The chat engine refused.")),
                        one_line(str(message.get("hint") or "")),
                        message,
                    )
        finally:
            with self._guard:
                self._pending.pop(request.id, None)

    def _next(self, messages: queue.Queue[dict[str, Any] | None], timeout: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout
        while True:
            try:
                message = messages.get(timeout=max(0.0, min(1.0, deadline - time.monotonic())))
            except queue.Empty:
                if time.monotonic() >= deadline:
                    raise UserError(
                        f"The chat engine has not answered for {timeout:.0f} seconds.", f"Its log is {self.log_path}."
                    ) from None
                if self._helper is None or self._helper.process.poll() is not None:
                    raise self._death() from None
                continue
            if message is None:
                raise self._death()
            return message

    def _write(self, request: Request) -> None:
        if self._helper is None:
            raise UserError("The chat engine has not been started.")
        try:
            with self._guard:
                self._helper.send(encode_request(request))
        except (OSError, ValueError) as error:  # a closed pipe raises one or the other
            raise self._death() from error

    def _read(self, helper: Helper) -> None:
        """The reader thread: pass each line to the request that it answers."""
        for line in helper.lines():
            try:
                message = decode_message(line)
            except ProtocolError:
                continue  # only the engine writes here
            if "ok" in message:
                self._ended(str(message.get("id")))
            with self._guard:
                waiting = self._pending.get(str(message.get("id")))
            if waiting is not None:
                waiting.put(message)
        self._release()

    def _release(self) -> None:
        """Wake all threads that are still waiting."""
        with self._guard:
            waiting, unfinished = list(self._pending.values()), list(self._unfinished)
        for target in unfinished:
            self._ended(target)
        for messages in waiting:
            messages.put(None)

    def _death(self) -> UserError:
        """The error for an engine that has ended."""
        if self._closed:
            return UserError("The chat has been closed.")
        if self.is_hung:
            return UserError(
                f"The answer did not end within {CANCEL_SECONDS:g} s of being cancelled, so its process was ended.",
                "Ask again, which loads the model anew; if it happens again, take another chat template.",
            )
        code = None
        if self._helper is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):  # its output closes a moment before it ends
                code = self._helper.process.wait(CLOSE_SECONDS)
        reason = f"was killed by signal {-code}" if code is not None and code < 0 else "ended unexpectedly"
        last = ""
        if self.log_path is not None:
            with contextlib.suppress(OSError), self.log_path.open("rb") as log:
                last = last_words(log)
        hint = "The machine may be out of memory." if code == -9 else "Open the model again."
        said = f": {last}" if last else ""
        return UserError(f"The chat engine {reason}{said}.", f"{hint} Its log is {self.log_path}.")


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _new_log(directory: Path) -> Path:
    """A log for a new engine; the oldest ones are removed."""
    logs = sorted(directory.glob("chat-*.log"), key=lambda path: path.name)
    for path in logs[: max(0, len(logs) - LOGS_KEPT + 1)]:
        path.unlink(missing_ok=True)
    # A single reading of the clock, so that names sort by the start even within a second.
    seconds, fraction = divmod(time.time_ns(), 10**9)
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(seconds))
    path = directory / f"chat-{stamp}-{fraction:09d}-{os.getpid()}.log"
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, paths.FILE_MODE))
    return path

"""A real server whose models are played: ``python -m tests.core.serve.fake_server`` with options as JSON.

A question's text selects its answer: ``say TEXT`` answers in pieces of a few characters, ``hang`` never
ends, ``long N`` has N pieces, ``die`` ends the session as a killed engine would, ``refuse`` blames the question. The
option ``files`` is how many files the server may have open.
"""

from __future__ import annotations

import json
import resource
import sys
import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from core.chat.request import ChatRequest, QuestionError
from core.chat.session import ChatSession
from core.commands.common import say
from core.config.schema import ChatSection
from core.directories import Progress
from core.errors import UserError
from core.serve.models import Models, ServedModel, SessionHolder
from core.serve.options import ServeOptions, ServerAddress
from core.serve.server import serve_models


class PlayedSession(ChatSession):
    """A session without a model."""

    opened = 0
    is_open = True
    most_at_once = 0
    _at_once = 0

    def __init__(self) -> None:
        type(self).opened += 1
        self._cancelled = threading.Event()

    def prepare(self, progress: Progress) -> None:
        progress("loading", 1, 1)

    def stream(self, request: ChatRequest) -> Generator[dict[str, Any], None, None]:
        self._cancelled.clear()
        kind = type(self)
        kind._at_once += 1
        kind.most_at_once = max(kind.most_at_once, kind._at_once)
        try:
            yield from self._play(request)
        finally:
            kind._at_once -= 1

    def _play(self, request: ChatRequest) -> Iterator[dict[str, Any]]:
        asked = str(request.messages[-1]["content"]) if request.prompt is None else str(request.prompt)
        word, _, rest = asked.partition(" ")
        if word == "hang":
            yield {"token": "…"}
            self._cancelled.wait()
            return
        if word == "die":
            self.is_open = False
            raise UserError("The chat engine was killed by signal 9.", "The machine may be out of memory.")
        if word == "refuse":
            raise QuestionError("The conversation is too long.", "Shorten it.", "context_length_exceeded")
        if word == "mistake":
            raise RuntimeError("a secret of the machine")
        if word == "seed":
            rest = str(request.settings.seed)
        if word == "counts":
            rest = json.dumps([self.opened, self.most_at_once])
        pieces = ["x" * 1000] * int(rest) if word == "long" else [rest[at : at + 3] for at in range(0, len(rest), 3)]
        for piece in pieces:
            if self._cancelled.is_set():
                return
            if request.logprobs is not None:
                yield {"logprobs": [{"token": piece, "logprob": -0.5, "top": [["other", -0.1]][: request.logprobs]}]}
            yield {"token": piece}
        told = {"finish": "stop", "tokens": len(pieces), "prompt_tokens": len(asked), "source": "step-7"}
        yield {"text": "".join(pieces), "first_token_seconds": 0.0, "tokens_per_second": 1.0, **told}

    def cancel(self) -> None:
        self._cancelled.set()

    def close(self) -> None:
        self.is_open = False
        self._cancelled.set()


def main() -> None:
    options = json.loads(sys.argv[1])
    if uds := options.pop("uds", None):
        options["uds"] = Path(uds)
    if files := options.pop("files", None):
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    holder = SessionHolder(PlayedSession, lambda *_: None)
    chat = ChatSection()
    models = [
        ServedModel("run-1", holder, "tuned", chat, int(time.time()), parent="tiny"),
        ServedModel("tiny", holder, "base", chat, int(time.time())),
    ]

    def ready(address: ServerAddress) -> None:
        say(json.dumps({"url": address.url, "key": address.key}))

    serve_models(Models(models), ServeOptions(("run-1",), **options), ready)
    say("ended")


if __name__ == "__main__":
    main()

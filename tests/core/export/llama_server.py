"""llama-server as people run it, from the package ``xllamacpp``: ``python -m tests.core.export.llama_server``.

It is a process of its own, as a crash in it must not take the tests along. It prints its address, and ends with its
input.
"""

from __future__ import annotations

import contextlib
import json
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.helper import Helper


class LlamaServer:
    """A running server.

    Args:
        address: Where it listens, on loopback.
    """

    def __init__(self, address: str) -> None:
        self._address = address

    def post(self, route: str, **body: Any) -> dict[str, Any]:
        """The answer to a request."""
        request = urllib.request.Request(  # noqa: S310 - loopback
            f"{self._address}{route}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310
            found: dict[str, Any] = json.loads(answer.read())
        return found

    def answer(self, messages: list[dict[str, Any]], count: int) -> tuple[list[int], list[int]]:
        """Tokens of a conversation by its own Jinja and its own tokenizer, and of the likeliest answer to it."""
        prompt = self.post("/apply-template", messages=messages)["prompt"]
        asked = {"prompt": prompt, "n_predict": count, "temperature": 0, "return_tokens": True}
        tokens = self.post("/tokenize", content=prompt, add_special=True, parse_special=True)["tokens"]
        return tokens, self.post("/completion", **asked)["tokens"]


@contextlib.contextmanager
def llama_server(model: Path) -> Iterator[LlamaServer]:
    """A server of a GGUF file, on one thread."""
    with Helper("tests.core.export.llama_server", str(model)) as helper:
        for line in helper.lines():
            if line.startswith(b"http://127.0.0.1:"):
                yield LlamaServer(line.decode().strip())
                return
        raise AssertionError(f"llama-server has ended: {helper.process.wait()}")


def main() -> None:
    """Serve until the input is closed."""
    import os

    address = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = sys.argv[1]
    settings.n_ctx = 512
    settings.n_parallel = 1
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    settings.n_gpu_layers = 0
    settings.warmup = False
    settings.use_jinja = True
    server = xllamacpp.Server(settings)
    address.write(f"{server.listening_address}\n")
    address.flush()
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()

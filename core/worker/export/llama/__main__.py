"""The reader of GGUF files: ``python -m core.worker.export.llama``, a child of whoever asks.

It speaks :mod:`core.runs.protocol` on standard input and output as the chat engine does, with the same ``load``
and ``generate``, so that a session of the chat talks to either. Commands:

``load``
    ``base`` (a GGUF file), ``adapter`` (a GGUF file with a LoRA adapter, or null), ``source_name`` (what its answers
    are called), ``template`` (the chat template of the training, a Jinja file or the name of one of ours, or null: that
    of the file is used, and held against it). Sends ``{"id", "progress", "done", "total"}`` before its answer; a
    progress that ends with a full stop is a warning.
``generate``
    :class:`core.chat.request.ChatRequest`. Sends ``{"id", "token"}`` before its answer.
``template``
    The chat templates of the metadata by name, and the special tokens that they are given.
``tokenize``
    ``messages`` or ``text``: the token ids, of messages those of the rendered prompt.
``logits``
    ``tokens``, ``positions`` and ``count``: the likeliest tokens at each place with their logarithms of probability.
``cancel``, ``ping``
    Answered at once.
"""

from __future__ import annotations

from core.worker.export.llama.engine import GgufEngine
from core.worker.process.command_server import CommandServer, private_streams


def main() -> None:
    """Serve until the input is closed."""
    requests, answers = private_streams()
    engine = GgufEngine()
    CommandServer("The reader of the GGUF file", engine.handlers, requests, answers).serve()


if __name__ == "__main__":
    main()

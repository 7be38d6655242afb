"""The reader of GGUF files: ``python -m core.worker.export.llama FILE…``, a child of whoever asks.

It is confined, and reads no files of the user's but those that it is started with: what is loaded must be among them.

It speaks :mod:`core.runs.control.protocol` on standard input and output as the chat engine does, with the same ``load``
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

import sys

from core.paths import runs_dir
from core.sandbox.limits import enclose, limit_process, machine_memory
from core.sandbox.rights import reading
from core.worker.process.command_server import CommandServer, private_streams


def main() -> None:
    """Serve until the input is closed."""
    requests, answers = private_streams()
    # The engine limits itself further, by the size of the file that it loads.
    limit_process(machine_memory())
    # Runs, as a model is not loaded where it crowds out one in training.
    enclose(reading(*sys.argv[1:], runs_dir()))
    # Afterwards, as numpy starts threads, which the walls would not be around.
    from core.worker.export.llama.engine import GgufEngine

    engine = GgufEngine()
    CommandServer("The reader of the GGUF file", engine.handlers, requests, answers).serve()


if __name__ == "__main__":
    main()

"""The reader of GGUF files: ``python -m core.worker.export.llama FILE…``, a child of its user's process.

It is sandboxed, and reads none of the user's files except its arguments: loaded files must be among them.

It speaks :mod:`core.runs.control.protocol` on standard input and output like the chat engine, with the same ``load``
and ``generate``, so that a chat session works with either. Commands:

``load``
    ``base`` (a GGUF file), ``adapter`` (a GGUF file with a LoRA adapter, or null), ``source_name`` (label of its
    answers), ``template`` (the chat template of the training, a Jinja file or the name of a built-in one, or null: the
    file's template is used, and compared with it). Sends ``{"id", "progress", "done", "total"}`` before its answer; a
    progress that ends with a full stop is a warning.
``generate``
    :class:`core.chat.request.ChatRequest`. Sends ``{"id", "token"}`` before its answer.
``tokenize``
    ``messages`` or ``text``: the token ids; for messages those of the rendered prompt.
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
    # The engine tightens the limit by the size of the loaded file.
    limit_process(machine_memory())
    # The run directories are readable, since a model may not crowd out a run in training.
    enclose(reading(*sys.argv[1:], runs_dir()))
    # Imported last: numpy starts threads, which the sandbox would not cover.
    from core.worker.export.llama.engine import GgufEngine

    engine = GgufEngine()
    CommandServer("The reader of the GGUF file", engine.handlers, requests, answers).serve()


if __name__ == "__main__":
    main()

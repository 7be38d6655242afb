"""A measurement of the proof: ``python -m core.worker.export.verify``.

It reads one request as a line of JSON from standard input, and writes lines of JSON: ``{"progress": {"activity",
"done", "total"}}`` as it gets on, and at the end ``{"result": …}``, or ``{"error", "hint"}``. Requests have a ``task``:

``reference``
    ``run``, ``step``, ``directory``, ``rows``, ``plain_base``, ``as_file``: see
    :func:`core.worker.export.verify.reference.measure_reference`.
``gguf``, ``merged``, ``adapter``
    ``directory`` (of the measured answers), ``exported``, and ``base`` where the export is an adapter: a GGUF file, or
    the name of the model, in 4 bits if ``quantized``.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import Any

from core.atomic import NO_ROOM
from core.errors import UserError
from core.helper import private_output, tie_to_parent
from core.text import one_line
from core.worker.process import environment
from core.worker.process.answers import Answers


def measure(request: dict[str, Any], answers: Answers) -> dict[str, Any]:
    """Carry a request out."""
    directory = Path(request["directory"])
    if request["task"] == "reference":
        return _reference(request, directory, answers)
    from core.worker.export.verify.store import Proof

    proof = Proof.read(directory)
    exported, base = Path(request["exported"]), request.get("base")
    if request["task"] == "gguf":
        from core.worker.export.verify.gguf import compare_gguf

        model, adapter = (exported, None) if base is None else (Path(base), exported)
        return compare_gguf(proof, model, adapter, answers.progress)
    from core.worker.export.verify.plain import compare_plain
    from core.worker.model.starter import resolve_base
    from core.worker.process.openmp import SpinControl

    SpinControl().start()

    if base is None:
        return compare_plain(proof, exported, None, answers.progress)
    place = resolve_base(base, answers.progress)
    return compare_plain(proof, place, exported, answers.progress, quantized=bool(request["quantized"]))


def _reference(request: dict[str, Any], directory: Path, answers: Answers) -> dict[str, Any]:
    from core.runs.store import Run
    from core.runs.trained import find_trained

    trained = find_trained(Run(Path(request["run"])), request["step"])
    if trained.config.hardware.device != "cpu":
        environment.choose_gpu(trained.config.hardware.gpu)
    answers.progress("importing the libraries")
    from core.worker.export.verify.reference import measure_reference
    from core.worker.process.openmp import SpinControl

    SpinControl().start()

    proof = measure_reference(
        trained,
        directory,
        int(request["rows"]),
        answers.progress,
        plain_base=bool(request["plain_base"]),
        as_file=bool(request["as_file"]),
    )
    return {"rows": len(proof.rows), "places": proof.places}


def main() -> None:
    """Carry out the request on standard input."""
    tie_to_parent()
    answers = Answers(private_output())
    environment.prepare()
    request = json.loads(sys.stdin.readline())
    try:
        answers.send({"result": measure(request, answers)})
    except UserError as error:
        answers.send({"error": error.message, "hint": error.hint})
    except MemoryError:
        answers.send({"error": "Memory ran out in the proof of the export.", "hint": "Close what else holds memory."})
    except OSError as error:
        full = error.errno in NO_ROOM
        said = f"{one_line(str(error.filename or request['directory']))} cannot be used: {error.strerror or error}."
        answers.send({"error": said, "hint": "Make room there." if full else "Check the path and its permissions."})
    except Exception as error:  # a bug, or a failure of a library that nobody has foreseen
        traceback.print_exc()
        first = one_line(str(error).strip().partition("\n")[0], 200).rstrip(".")
        answers.send(
            {"error": f"The proof of the export failed: {type(error).__name__}: {first}.", "hint": "Please report it."}
        )


if __name__ == "__main__":
    main()

"""Importance matrix: how far quantized GGUF files are from the 16-bit one, with one from training rows and without.

``python bench/importance.py`` quantizes the starter model, asks llama.cpp for the logits of held-out tickets, and
writes ``bench/results/importance-DATE.json``. Divergences are in nats, means over all positions of the rows.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

import sample_data
from core.export.request import Quant
from core.hardware.cpu import cpu_name
from core.models.find import STARTER_NAME, find_model
from core.template.tokenizer import ModelTokenizer, load_tokenizer
from core.worker.export.gguf.write import GgufOptions, write_gguf
from core.worker.export.llama.model import GgufModel

RESULTS = Path(__file__).resolve().parent / "results"
REFERENCE: Quant = "BF16"
QUANTS: tuple[Quant, ...] = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0")


def token_rows(tokenizer: ModelTokenizer, name: str, count: int) -> tuple[tuple[int, ...], ...]:
    """Rows of the sample data as token ids, by the model's own template."""
    template = tokenizer.own_template()
    if template is None:
        raise SystemExit("The starter model has no chat template.")
    lines = sample_data.path(name).read_text(encoding="utf-8").splitlines()[:count]
    return tuple(tuple(tokenizer.encode([template.render(json.loads(line)["messages"])])[0]) for line in lines)


def log_probabilities(path: Path, rows: tuple[tuple[int, ...], ...]) -> list[Any]:
    """Log-probabilities of the next token after each token of each row: ``(tokens, vocabulary)`` in fp64."""
    model = GgufModel(path, exact=True)
    found = []
    for row in rows:
        logits = np.stack(list(model.logits(row, range(len(row))))).astype(np.float64)
        shifted = logits - logits.max(axis=-1, keepdims=True)
        found.append(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))
    model.close()
    return found


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10, help="held-out rows")
    parser.add_argument("--calibration", type=int, default=48, help="training rows that the matrix is computed from")
    parser.add_argument("--quants", nargs="*", default=list(QUANTS), choices=QUANTS)
    arguments = parser.parse_args()
    base = find_model(STARTER_NAME)
    if base is None:
        raise SystemExit("The starter model is not prepared: python -m core.worker.model.starter")
    tokenizer = load_tokenizer(base)
    rows = token_rows(tokenizer, "tickets_eval.jsonl", arguments.rows)
    calibration = token_rows(tokenizer, "tickets_train.jsonl", arguments.calibration)
    measured: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as work:

        def ask(quant: Quant, given: tuple[tuple[int, ...], ...]) -> tuple[list[Any], int]:
            path = Path(work) / "model.gguf"
            write_gguf(base, path, quant, GgufOptions(calibration=given), lambda *_: None)
            found, size = log_probabilities(path, rows), path.stat().st_size
            path.unlink()
            return found, size

        reference, _ = ask(REFERENCE, ())
        for quant in arguments.quants:
            for given in ((), calibration) if quant != "Q8_0" else ((),):
                found, size = ask(quant, given)
                pairs = list(zip(reference, found, strict=True))
                result = {
                    "quant": quant,
                    "importance_matrix": bool(given),
                    "bytes": size,
                    "divergence": float(np.mean([(np.exp(a) * (a - b)).sum(axis=-1).mean() for a, b in pairs])),
                    "top1": float(np.mean([(a.argmax(-1) == b.argmax(-1)).mean() for a, b in pairs])),
                }
                print(json.dumps(result), flush=True)
                measured.append(result)
    today = datetime.date.today().isoformat()
    content = {
        "machine": cpu_name(),
        "llama-cpp-py-sync": version("llama-cpp-py-sync"),
        "rows": len(rows),
        "calibration_tokens": sum(map(len, calibration)),
        "measured": measured,
    }
    (RESULTS / f"importance-{today}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

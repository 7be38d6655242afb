"""The loss of a GGUF file by llama.cpp, in a process of its own: ``python -m …held_out_loss FILE < ROWS``.

Rows are JSON: a list of token ids with the places that are learned. The mean over all of these is printed.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np

from core.worker.export.llama.model import GgufModel


def main(path: str) -> None:
    """Print the loss."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    model = GgufModel(Path(path), exact=True)
    losses = []
    for ids, places in json.load(sys.stdin):
        found = model.logits(ids, [place - 1 for place in places])
        for place, logits in zip(places, found, strict=True):
            shifted = logits.astype(np.float64) - logits.max()
            losses.append(np.log(np.exp(shifted).sum()) - shifted[ids[place]])
    answers.write(json.dumps(float(np.mean(losses))))
    answers.flush()


if __name__ == "__main__":
    main(sys.argv[1])

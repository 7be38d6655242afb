"""Latency per token of JSON Schema decoding: the mask alone, by the starter's tokenizer, without a model.

python bench/json_schema.py [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import torch
from transformers import AutoTokenizer

from core.worker.generate.generate import Grammar
from core.worker.model.starter import prepare_starter

SCHEMA = {
    "type": "object",
    "properties": {
        "area": {"enum": ["billing", "login", "printer", "network", "refund"]},
        "urgency": {"type": "integer", "minimum": 1, "maximum": 5},
        "summary": {"type": "string"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "reference": {"type": ["string", "null"]},
    },
    "required": ["area", "urgency", "summary", "tags", "reference"],
    "additionalProperties": False,
}
ANSWER = {
    "area": "network",
    "urgency": 4,
    "summary": "Router 12 is dead since the storm, the spare one does not start either.",
    "tags": ["router", "hardware", "spare part"],
    "reference": None,
}


def main() -> None:
    """Measure, print, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(prepare_starter(lambda *_: None))
    stops = [tokenizer.eos_token_id]
    began = time.perf_counter()
    Grammar(tokenizer, stops, json.dumps(SCHEMA))
    first = time.perf_counter() - began
    ids = tokenizer.encode(json.dumps(ANSWER), add_special_tokens=False)
    logits = torch.randn(len(tokenizer))
    begins, tokens = [], []
    for _ in range(20):
        began = time.perf_counter()
        grammar = Grammar(tokenizer, stops, json.dumps(SCHEMA))
        begins.append(time.perf_counter() - began)
        for token in ids:
            began = time.perf_counter()
            allowed = grammar.allow(logits)
            grammar.take(token)
            tokens.append(time.perf_counter() - began)
            assert allowed[token] > -torch.inf
    result = {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "vocabulary": len(tokenizer),
        "tokens": len(ids),
        "first_schema_ms": round(first * 1e3, 1),
        "next_schema_ms": round(statistics.median(begins) * 1e3, 2),
        "token_ms_median": round(statistics.median(tokens) * 1e3, 3),
        "token_ms_p95": round(statistics.quantiles(tokens, n=20)[-1] * 1e3, 3),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()

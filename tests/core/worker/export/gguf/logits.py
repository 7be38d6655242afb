"""Logits as llama.cpp computes them, and how far they are from others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from core.worker.export.llama.model import GgufModel


def read_logits(model: GgufModel, ids: Sequence[int]) -> npt.NDArray[np.float32]:
    """Logits after every token of a sequence: ``(tokens, vocabulary)``."""
    return np.stack(list(model.logits(ids, range(len(ids)))))


def centered(logits: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Logits with a mean of zero at each position: a constant that is added to all of them changes nothing."""
    result: npt.NDArray[Any] = logits - logits.mean(axis=-1, keepdims=True)
    return result


def mean_divergence(reference: npt.NDArray[Any], found: npt.NDArray[Any]) -> float:
    """Mean Kullback-Leibler divergence in nats."""
    first, second = _log_softmax(reference), _log_softmax(found)
    return float((np.exp(first) * (first - second)).sum(axis=-1).mean())


def _log_softmax(logits: npt.NDArray[Any]) -> npt.NDArray[Any]:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    result: npt.NDArray[Any] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result

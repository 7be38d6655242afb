"""Attention memory, kept and transient: torch's kernels, the worker's function for short rows, and eager attention."""

from __future__ import annotations

from core.memory.batching import SHORT_ROW
from core.memory.steps import FP32, Arithmetic, Step
from core.models.architecture.architecture import Attention

#: Most features of a head for flash attention.
FLASH_HEAD = 256


def keeps_output(attention: Attention, how: Arithmetic, row: int) -> bool:
    """Whether the output is kept for attention itself: torch's kernels that do not materialize scores keep it.

    Args:
        attention: Shapes of the attention.
        how: Dtypes and kernels.
        row: Tokens of a row, padding included.
    """
    return attention.kernel == "sdpa" and not _is_short(attention, how, row) and not _makes_scores(attention, how)


def attention_step(attention: Attention, how: Arithmetic, row: int, held: float) -> Step:
    """Attention step, from the projected queries, keys and values on, rotary embeddings included.

    Args:
        attention: Shapes of the attention.
        how: Dtypes and kernels.
        row: Tokens of a row, padding included: a sliding window shorter than it needs a mask.
        held: Bytes per token alive meanwhile.
    """
    a, queries, keys = how.bytes, attention.queries, attention.keys
    # After the rotation queries and keys are new tensors; the values are views of the projection's output.
    kept = a * (queries + 2 * keys)
    beside = held + a * (queries + keys) + a * queries
    if attention.kernel == "eager":
        return _eager(attention, how, beside)
    if _is_short(attention, how, row):
        return _short(attention, how, row, kept, held)
    if _makes_scores(attention, how):
        kept_scores, beside_scores = _scores(attention)
        return Step(
            "attention",
            kept=3 * FP32 * queries + kept - a * (queries + 2 * keys),
            kept_scores=kept_scores,
            beside=beside,
            beside_scores=beside_scores,
        )
    kept += a * queries + FP32 * attention.heads
    grouped = attention.heads != attention.kv_heads
    if grouped and (_is_masked(attention, row) or (how.cuda and not _is_flash(attention, how))):
        # With a mask, and by a kernel that knows no grouped heads, keys and values are repeated for every query head.
        kept += 2 * a * (queries - keys)
    if not how.cuda:
        return Step("attention", kept=kept, beside=beside)
    # Flash attention sums up the gradient of the queries in fp32, and those of keys and values for every query head.
    scratch = FP32 * queries + (2 * a * queries if grouped else 0)
    return Step("attention", kept=kept, beside=beside, beside_backward=scratch + a * (queries + 2 * keys))


def scores_of_sdpa(attention: Attention, how: Arithmetic, row: int) -> int:
    """Bytes of SDPA's scores per pair of tokens of a row, if it materializes them.

    Args:
        attention: Shapes of the attention.
        how: Dtypes and kernels.
        row: Tokens of a row, padding included.
    """
    made = attention.kernel == "sdpa" and not _is_short(attention, how, row) and _makes_scores(attention, how)
    return sum(_scores(attention)) if made else 0


def _scores(attention: Attention) -> tuple[int, int]:
    """Kept and transient bytes of SDPA's own scores, as in :func:`scores_of_sdpa`."""
    return (3 if attention.dropout else 1) * FP32 * attention.heads, FP32 * attention.heads


def _is_masked(attention: Attention, row: int) -> bool:
    return attention.window is not None and attention.window < row


def _is_short(attention: Attention, how: Arithmetic, row: int) -> bool:
    """Whether the worker's own function for short rows is used."""
    plain = attention.kernel == "sdpa" and not attention.dropout and not _is_masked(attention, row)
    return how.short_attention and plain and row <= SHORT_ROW


def _makes_scores(attention: Attention, how: Arithmetic) -> bool:
    """Whether SDPA materializes scores, in fp32: the CPU has no kernel with dropout, and a GPU none for grouped heads
    where flash attention does not serve. The worker's function repeats keys there.
    """
    if how.cuda:
        grouped = attention.heads != attention.kv_heads
        return grouped and not how.fused_attention and not _is_flash(attention, how)
    return bool(attention.dropout)


def _is_flash(attention: Attention, how: Arithmetic) -> bool:
    """Whether flash attention serves on a GPU."""
    return how.flash and attention.head_dim <= FLASH_HEAD


def _short(attention: Attention, how: Arithmetic, row: int, kept: float, held: float) -> Step:
    """Attention of short rows: queries, keys, values and probabilities are kept; scores and their gradients are
    fp32.
    """
    a, queries, keys, heads = how.bytes, attention.queries, attention.keys, attention.heads
    # In fp32 probabilities are not cast.
    narrow = a != FP32
    folded = a * (queries + 2 * keys)
    return Step(
        "attention",
        kept=kept,
        kept_scores=a * heads,
        beside=held + folded,
        beside_scores=FP32 * heads * (2 if narrow else 1),
        beside_once=FP32 * heads // attention.kv_heads * row * row,
        beside_backward=folded + a * (2 * queries + keys),
        beside_backward_scores=FP32 * heads * (3 if narrow else 2),
    )


def _eager(attention: Attention, how: Arithmetic, beside: float) -> Step:
    a, queries = how.bytes, attention.queries
    # The softmax is computed in fp32 and cast back, which makes no second tensor of fp32 scores.
    scores = attention.heads * (FP32 + (a if how.autocast else 0) + (a if attention.softcap else 0))
    return Step(
        "attention",
        kept=3 * a * queries,
        kept_scores=scores,
        beside=beside + 2 * a * queries,
        beside_scores=attention.heads * (FP32 + a),
        beside_backward=3 * a * queries,
        beside_backward_scores=attention.heads * (2 * FP32 + a),
    )

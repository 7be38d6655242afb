"""Measurement of a model's passes at a few sizes per regime of row lengths, and the fit of growths to them."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence, Set

from core.memory.batching import BLOCK_ROW, LENGTH_MULTIPLE, SHORT_ROW, padded_length
from core.models.architecture import measuring
from core.models.architecture.measuring import Growth, LayerGrowth, Peak, Regime
from core.worker.measure.layers import LayerPasses, Passes, Points, SizedPass, kinds_without_scores, layer_multiples
from core.worker.measure.skeleton import Skeleton

#: Rows of the smallest measured micro-batch; with few rows their shared part is small.
ROWS = 2
#: Shortest measured rows of the last regime.
LONG = 512
#: Longest measured rows of the other regimes: windows may have hundreds of thousands of tokens.
LONGEST = 8192
#: Shortest measured rows for layers without scores, and the number of doublings: scans of long rows take long.
SCAN, DOUBLED = 128, 2
#: Rows and lengths at which moments of a peak are compared; a moment that is the largest at none of them is dropped.
_COMPARED_ROWS = (1, 2, 4, 8, 16, 64, 256)
_COMPARED_LENGTHS = (8, 64, 256, 512, 1024, 4096, 16_384, 131_072)

Told = Callable[[str], None]
#: A measured size: rows, tokens of a row, bytes.
Sample = tuple[int, int, float]
#: Fit of growths to samples.
Fit = Callable[[Sequence[Sample]], tuple[Growth, ...]]


def measure_passes(skeleton: Skeleton, told: Told = lambda _what: None) -> measuring.Passes:
    """Measure the passes of a model.

    Args:
        skeleton: The model, ready to be trained.
        told: Called with the current measurement.
    """
    passes = Passes(skeleton, told)
    bounds = _bounds(skeleton)
    multiples = layer_multiples(skeleton, passes.kinds)
    scans = _scans(passes, multiples, kinds_without_scores(skeleton, passes.kinds))
    regimes = [
        _regime(passes, multiples, shortest, longest, scans)
        for shortest, longest in zip((0, *bounds), (*bounds, None), strict=True)
    ]
    trained = Counter(
        (parameter.shape[0], parameter.numel() // parameter.shape[0]) if parameter.dim() > 1 else (parameter.numel(), 1)
        for parameter in skeleton.model.parameters()
        if parameter.requires_grad
    )
    # The adapters of the matrices of a layer's experts are nested around one module.
    adapted = {
        name.replace(".base_layer", "")
        for name, module in skeleton.causal.named_modules()
        if getattr(module, "lora_A", None)
    }
    # In the order of names within a layer.
    ordered = sorted(adapted, key=lambda name: [part for part in name.split(".") if not part.isdecimal()])
    targets = Counter(name.rpartition(".")[2] for name in ordered)
    return measuring.Passes(
        tuple(passes.kinds),
        tuple(regimes),
        tuple((rows, columns, count) for (rows, columns), count in trained.items()),
        tuple(targets.items()),
        passes.gradient_from,
    )


def _bounds(skeleton: Skeleton) -> list[int]:
    """Row lengths at which other kernels or masks are used."""
    how, config = skeleton.how, skeleton.causal.config
    eager = config._attn_implementation == "eager"
    found = {SHORT_ROW, BLOCK_ROW} if how.short_attention and not eager else set()
    if eager or not (how.cuda and how.fused_attention and how.flash):
        for name in ("sliding_window", "attention_chunk_size"):
            window = getattr(config, name, None)
            if isinstance(window, int) and window > LENGTH_MULTIPLE:
                # A row as long as the window already has a mask.
                found.add((window - 1) // LENGTH_MULTIPLE * LENGTH_MULTIPLE)
    bounds: list[int] = []
    for bound in sorted(found):
        if bound >= (bounds[-1] if bounds else 0) + 2 * LENGTH_MULTIPLE:
            bounds.append(bound)
    return bounds


def _scans(passes: Passes, multiples: dict[int, int], kinds: Set[int]) -> tuple[LayerGrowth, ...]:
    """Layers without scores, for every regime: measured at rows that are multiples of the chunk length."""
    if not kinds:
        return ()
    piece = max(multiples[kind] for kind in kinds)
    short = -(-SCAN // piece) * piece
    lengths = [short << times for times in range(DOUBLED + 1)]
    sizes = [
        passes.measure(rows, length, set(passes.kinds) - kinds)
        for rows, length in ((ROWS, short), (2 * ROWS, short), *((ROWS, length) for length in lengths[1:]))
    ]
    return tuple(
        _layer(sizes, kind, reached, multiples[kind], [one.kinds[kind, reached] for one in sizes], fit_scan)
        for kind, reached in sizes[0].kinds
    )


def _regime(
    passes: Passes, multiples: dict[int, int], shortest: int, longest: int | None, known: tuple[LayerGrowth, ...]
) -> Regime:
    """The regime of rows longer than ``shortest``, up to ``longest`` tokens; ``known`` layers are the same in all."""
    if longest is None:
        short = max(LONG, 2 * shortest)
        long = 2 * short
    else:
        long = min(longest, max(LONGEST, 2 * shortest))
        short = padded_length((shortest + long) // 2)
    but = {layer.kind for layer in known}
    sizes = [passes.measure(rows, length, but) for rows, length in ((ROWS, short), (2 * ROWS, short), (ROWS, long))]
    middle = (short + long) // 2
    around = [(one.rows, one.length, float(one.around)) for one in sizes]
    around += [
        (rows, length, float(passes.around(rows, length))) for rows, length in ((2 * ROWS, long), (ROWS, middle))
    ]
    return Regime(
        longest,
        fit_around(around),
        _fitted(sizes, [one.shared for one in sizes], _fit),
        _fitted(sizes, [one.end_kept for one in sizes], _fit),
        _peak(sizes, [one.end_backward for one in sizes], _fit),
        tuple(
            _layer(sizes, kind, reached, multiples[kind], [one.kinds[kind, reached] for one in sizes], _fit)
            for kind, reached in sizes[0].kinds
        )
        + known,
    )


def _fit(samples: Sequence[Sample]) -> tuple[Growth, ...]:
    return (fit_layer(samples),)


def _layer(
    sizes: Sequence[SizedPass], kind: int, reached: bool, multiple: int, found: Sequence[LayerPasses], fit: Fit
) -> LayerGrowth:
    return LayerGrowth(
        kind,
        reached,
        multiple,
        kept=_fitted(sizes, [one.kept for one in found], fit),
        casts=_fitted(sizes, [one.casts for one in found], fit),
        forward=_peak(sizes, [one.forward for one in found], fit),
        backward=_peak(sizes, [one.backward for one in found], fit),
        again=_peak(sizes, [one.again for one in found], fit),
    )


def _fitted(sizes: Sequence[SizedPass], values: Sequence[int], fit: Fit) -> Growth:
    """Growth at rows of any length: the last one of the fit counts."""
    return _grown(sizes, values, fit)[-1]


def _grown(sizes: Sequence[SizedPass], values: Sequence[int], fit: Fit) -> tuple[Growth, ...]:
    return fit([(one.rows, one.length, float(value)) for one, value in zip(sizes, values, strict=True)])


def _peak(sizes: Sequence[SizedPass], traces: Sequence[Points], fit: Fit) -> Peak:
    """The moments of a pass that are its peak at some size; where the number of operations differs between sizes, as in
    loops over chunks of a row, the peak itself.
    """
    if len(set(map(len, traces))) > 1:
        moments = [[max(points, default=0) for points in traces]]
    else:
        moments = [list(moment) for moment in zip(*traces, strict=True)]
    unique = {tuple(moment) for moment in moments}
    growths = [growth for moment in unique for growth in _grown(sizes, moment, fit)]
    kept: dict[Growth, None] = {}
    for length in _COMPARED_LENGTHS:
        for rows in _COMPARED_ROWS:
            if growths:
                kept[max(growths, key=lambda growth: growth.at(rows * length, length))] = None
    return tuple(kept)


def fit_layer(samples: Sequence[Sample]) -> Growth:
    """Growth of a figure of a layer whose tensors all have a part for each row.

    Args:
        samples: At ``(r, l)``, ``(2r, l)`` and ``(r, k)`` rows and tokens, in this order.
    """
    (rows, length, first), (_, _, double), (_, longer, third) = samples
    # Doubling the rows adds once the part that grows with them.
    tokens = double - first
    once = first - tokens
    pairs = (third - once) / (rows * longer) - tokens / (rows * length)
    per_pair = pairs / (longer - length)
    return Growth(_whole(once), _whole(tokens / (rows * length) - per_pair * length), _whole(per_pair))


def fit_scan(samples: Sequence[Sample]) -> tuple[Growth, ...]:
    """Growth of a figure of a layer with a state, which has no term for pairs of tokens.

    Args:
        samples: At ``(r, l)``, ``(2r, l)``, and ``(r, k)`` rows and tokens, then at longer rows.

    Returns:
        A growth for each two successive lengths; for a peak the larger counts, since short and long rows peak at
        different moments.
    """
    (rows, length, first), (_, _, double), *longer = samples
    once = 2 * first - double
    by_row = [(length, (first - once) / rows), *((tokens, (value - once) / rows) for _, tokens, value in longer)]
    found = []
    for (short, less), (long, more) in itertools.pairwise(by_row):
        per_token = (more - less) / (long - short)
        found.append(Growth(_whole(once), _whole(per_token), per_row=_whole(less - per_token * short)))
    return tuple(found)


def fit_around(samples: Sequence[Sample]) -> Growth:
    """Growth of the memory around the layers, some of which is shared by all rows.

    Args:
        samples: At ``(r, l)``, ``(2r, l)``, ``(r, k)`` and ``(2r, k)`` rows and tokens and ``(r, m)``, in this order.
    """
    (rows, length, first), (_, _, double), (_, longer, third), (_, _, fourth), (_, longest, fifth) = samples
    # The part that grows with the rows, and the rest.
    by_rows = ((length, (double - first) / rows), (longer, (fourth - third) / rows))
    per_pair = (by_rows[1][1] / longer - by_rows[0][1] / length) / (longer - length)
    per_token = by_rows[0][1] / length - per_pair * length
    rest = [
        (tokens, value - rows * tokens * (per_token + tokens * per_pair))
        for tokens, value in ((length, first), (longer, third), (longest, fifth))
    ]
    (a, x), (b, y), (c, z) = rest
    per_square = ((z - x) / (c - a) - (y - x) / (b - a)) / (c - b)
    per_column = (y - x) / (b - a) - per_square * (a + b)
    once = x - a * per_column - a * a * per_square
    return Growth(_whole(once), _whole(per_token), _whole(per_pair), _whole(per_column), _whole(per_square))


def _whole(value: float) -> float:
    """A figure without rounding noise."""
    return round(value, 6) + 0.0

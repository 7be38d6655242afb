"""Rough bound of a model's passes by the shapes of its layers, used until they are measured.

It has the form of a measurement, so that plans are made the same way. For usual decoder layers it is an upper bound, up
to twice the measurement; layers that carry a state from token to token may take more.
"""

from __future__ import annotations

from collections import Counter

from core.config.schema import WEIGHT_METHODS, Config
from core.memory.batching import BLOCK_ROW, QUERY_BLOCK, SHORT_ROW
from core.memory.sizes import EXPERT_BUFFER, EXPERTS, FP32, Arithmetic, split_by_targets
from core.memory.weights import adapter_tensors, own_tensors
from core.models.architecture.architecture import Architecture, Layer, Linear
from core.models.architecture.measuring import Growth, LayerGrowth, Passes, Regime


def rough_passes(model: Architecture, config: Config, how: Arithmetic) -> Passes:
    """A bound of the passes of a model.

    Args:
        model: The base model.
        config: Configuration of the run.
        how: Its arithmetic.
    """
    method, targets = config.method, Counter[str]()
    if method.name in WEIGHT_METHODS:
        tensors, adapted = own_tensors(model, config), [frozenset[str]()] * len(model.layers)
    else:
        tensors, adapted = adapter_tensors(model, config), []
        runs = split_by_targets(model, method)
        for layer in model.layers:
            names, left = frozenset[str](), layer.count
            while left:
                _, count, found = next(runs)
                targets.update({name.rpartition(".")[2]: count for name in sorted(found)})
                names, left = names | found, left - count
            adapted.append(names)
    is_below = method.name == "freeze" and method.trainable_end == "last"
    first = max(model.depth - method.trainable_layers, 0) if is_below else 0
    norm = Growth(per_token=2 * FP32 * model.hidden)
    # Token ids, labels and positions; the sines and cosines of positions.
    head = max(layer.attention.head_dim for layer in model.layers)
    masked = any(layer.attention.kernel == "eager" or layer.attention.window is not None for layer in model.layers)
    around = Growth(0, 16, 2 * how.bytes if masked else 0, 4 * FP32 * head)
    regimes = [
        Regime(
            longest,
            around=around,
            shared=Growth(),
            end=norm,
            end_backward=(Growth(per_token=7 * FP32 * model.hidden),),
            layers=tuple(
                _layer(kind, layer, names, model.hidden, config, how, longest)
                for kind, (layer, names) in enumerate(zip(model.layers, adapted, strict=True))
            ),
        )
        for longest in ([SHORT_ROW, BLOCK_ROW, None] if how.short_attention else [None])
    ]
    return Passes(
        kinds=tuple(kind for kind, layer in enumerate(model.layers) for _ in range(layer.count)),
        regimes=tuple(regimes),
        trained=tuple(tensors),
        targets=tuple(targets.items()),
        gradient_from=-1 if method.name == "full" else first,
    )


def _layer(
    kind: int,
    layer: Layer,
    targets: frozenset[str],
    hidden: int,
    config: Config,
    how: Arithmetic,
    longest: int | None,
) -> LayerGrowth:
    """A bound of a layer.

    Args:
        kind: Number of its kind.
        layer: Its shapes.
        targets: Its linear layers with adapters.
        hidden: Hidden size.
        config: Configuration of the run.
        how: Its arithmetic.
        longest: Tokens of the longest rows.
    """
    a, method, attention = how.bytes, config.method, layer.attention
    is_trained = method.name in WEIGHT_METHODS
    is_plain = how.fused_layers and not (method.dora or method.init == "pissa")
    adapted = [linear for linear in layer.linears if linear.name in targets]
    linears = list(layer.linears)
    routed = 0
    if (experts := layer.experts) is not None:
        one = [Linear(EXPERTS, inputs, outputs) for outputs, inputs in experts.matrices]
        linears += one * experts.active
        adapted += one * experts.active if EXPERTS in targets else []
        routed = a * sum(linear.inputs + linear.outputs for linear in one) * experts.active
    # The outputs of all linear layers, queries, keys and values after the rotation, and the output of attention.
    kept = a * (sum(linear.outputs for linear in linears) + 3 * attention.queries + 2 * attention.keys)
    # Norms, and the inputs of attention and of the network.
    kept += ((2 * a if is_trained else a) if is_plain else FP32 + 2 * a) * max(layer.norms, 4) * hidden
    if not is_plain:
        # Inputs, activation and product of the network.
        kept += 3 * a * max(layer.width, hidden) + a * sum(linear.inputs for linear in adapted)
        kept += (2 * a if method.dora else 0) * sum(linear.outputs for linear in adapted)
    if method.dropout:
        kept += (2 * FP32 + a) * sum(linear.inputs for linear in adapted)
    # Rows gathered for each expert, and their weighted sum.
    kept += a * method.rank * len(adapted) + routed
    casts = a * method.rank * sum(linear.inputs + linear.outputs for linear in adapted) if how.autocast else 0
    without_flash = how.cuda and not how.flash and not how.fused_attention
    scores = 0.0
    if attention.kernel == "eager" or attention.dropout or without_flash:
        scores = attention.heads * (3 * FP32 + 2 * a)
    elif longest == SHORT_ROW:
        scores = attention.heads * a
    wide = max((linear.inputs + linear.outputs for linear in linears), default=hidden)
    largest = max((linear.weights for linear in linears), default=0)
    once = (a if how.quantized or how.merged else 0) * largest
    if method.dora:
        # Norms of whole weights, each dequantized; PEFT multiplies B, A and an identity matrix.
        once += 3 * FP32 * largest + a * sum(linear.weights for linear in adapted)
        once += FP32 * max((linear.inputs for linear in adapted), default=0) ** 2
    if experts is not None and how.quantized:
        # One buffer is filled while the other is in use.
        once += (2 if how.cuda else 1) * EXPERT_BUFFER
    # Scores of a block of queries, their probabilities and gradients; keys and values, and their gradients, in fp32.
    blocks = QUERY_BLOCK * attention.heads * (3 * FP32 + a) + 4 * FP32 * attention.keys if longest == BLOCK_ROW else 0
    peak = Growth(
        once + casts,
        kept + blocks + max(4 * a * wide + a * (attention.queries + 2 * attention.keys), 6 * FP32 * hidden),
        scores + (3 * FP32 * attention.heads if scores else 0),
    )
    return LayerGrowth(kind, True, 1, Growth(casts, kept, scores), Growth(casts), (peak,), (peak,), (peak,))

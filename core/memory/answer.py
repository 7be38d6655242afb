"""Memory of an answer: the KV cache of its conversation, and the transient memory of a prefill chunk."""

from __future__ import annotations

from core.models.architecture.architecture import Architecture, Layer

#: Copies of a token's hidden state that a pass of a layer holds at once: input, normalized, residual, output.
_HIDDEN_COPIES = 4
#: Copies of the logits of one position, in fp32: as computed, scaled, and sorted.
_LOGIT_COPIES = 3
_FP32 = 4


def kv_bytes(model: Architecture, tokens: int, width: int, sliding: int = 0) -> int:
    """Bytes of the keys and values of a conversation.

    Args:
        model: The architecture.
        tokens: Tokens of the conversation, the answer included.
        width: Bytes of an element of the model's arithmetic.
        sliding: Number of layers that keep only the tokens of their sliding window.
    """
    depth, found = max(model.depth, 1), 0
    for layer in model.layers:
        window = layer.attention.window
        short = tokens if window is None else min(tokens, window)
        slides = layer.count * sliding // depth
        found += _of_layer(layer, tokens, width) * (layer.count - slides) + _of_layer(layer, short, width) * slides
    return found


def answer_bytes(
    model: Architecture, *, prompt: int, answer: int, width: int, chunk: int, kept: int = 0, sliding: int = 0
) -> int:
    """Most bytes of an answer beside the model.

    Args:
        model: The architecture.
        prompt: Tokens of the conversation before it.
        answer: Its most tokens.
        width: Bytes of an element of the model's arithmetic.
        chunk: Tokens of the conversation that are read in a pass.
        kept: Tokens of the conversation whose keys and values are cached already.
        sliding: As for :func:`kv_bytes`.
    """
    total, read = prompt + answer, min(chunk, max(prompt - kept, 1))
    # The new keys and values of a layer are made beside the old ones.
    growing = max((_of_layer(layer, total, width) for layer in model.layers), default=0)
    held = kv_bytes(model, total, width, sliding) - kv_bytes(model, kept, width, sliding) + growing
    passing = max((_pass(layer, model.hidden, read, prompt, width) for layer in model.layers), default=0)
    return held + passing + _LOGIT_COPIES * _FP32 * model.vocabulary


def _of_layer(layer: Layer, tokens: int, width: int) -> int:
    return 2 * layer.attention.keys * tokens * width


def _pass(layer: Layer, hidden: int, read: int, prompt: int, width: int) -> int:
    """Transient bytes of a layer's pass; the mask and, without a kernel, the scores are of all pairs of tokens."""
    attention = layer.attention
    network = 3 * layer.width if layer.gated else 2 * layer.width
    experts = layer.experts
    if experts is not None:
        network = max(network, 3 * experts.width * experts.active)
    wide = max(2 * attention.queries + 2 * attention.keys, network)
    pairs = read * prompt
    scores = attention.heads * (_FP32 + width) * pairs if attention.kernel == "eager" else 0
    return width * read * (_HIDDEN_COPIES * hidden + wide) + pairs * (width + 1) + scores

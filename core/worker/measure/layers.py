"""Measured passes of single layers: bytes kept for backward, and peaks, at given sizes of a micro-batch."""

from __future__ import annotations

import contextlib
import functools
import gc
from collections import UserDict
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from core.memory.batching import SHORT_ROW
from core.worker.fused.mode import apply
from core.worker.measure.skeleton import Skeleton, without_values
from core.worker.measure.tracker import AllocationTracker, RememberedOperations, Run, run_operation
from core.worker.model.model import decoder_layers, decoder_of

#: Attributes with a layer's or module's own number in transformers.
_NUMBERS = frozenset(("layer_idx", "layer_number", "layer_id", "idx"))


#: Chunk length of the gated delta rule in transformers.
DELTA_CHUNK = 64


#: Bytes alive after each operation of a pass, relative to its start.
Points = tuple[int, ...]


@dataclass(frozen=True)
class LayerPasses:
    """Passes of a layer at one size, without its input, its output and the output's gradient, each of which counts once
    where layers meet.

    Args:
        kept: Bytes kept for backward, the input among them if it is kept.
        forward: Forward pass.
        backward: Backward pass with activations kept.
        again: Recomputation and backward pass, without the layer's input.
        casts: Bytes kept beside the input if activations are recomputed.
        left: Bytes left after recomputation and backward pass: states that the layer shares with other layers.
    """

    kept: int
    forward: Points
    backward: Points
    again: Points
    casts: int
    left: int


@dataclass
class _Call:
    """Arguments of the model's call to a layer, except the hidden states."""

    shape: torch.Size
    dtype: torch.dtype
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def arguments(self, slot: torch.Tensor | None) -> _Call:
        """A copy for a single use: tensors that need a gradient depend on ``slot``, if given."""

        def fresh(value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                if slot is None or not value.requires_grad:
                    return value.detach()
                return apply(_Alias, slot, [value.detach()])
            if isinstance(value, (tuple, list)):
                return type(value)(map(fresh, value))
            if isinstance(value, (dict, UserDict)):
                return type(value)({key: fresh(inner) for key, inner in value.items()})
            return value

        return _Call(self.shape, self.dtype, fresh(self.args), fresh(self.kwargs))


@dataclass
class SizedPass:
    """All measurements at one size of a micro-batch.

    Args:
        rows: Number of rows.
        length: Tokens of a row.
        around: Bytes alive while layers run: masks, positions, inputs shared by all layers.
        shared: Bytes that recomputation leaves beside a layer: the gradients of arguments of all layers, and states
            that layers share.
        end_kept: Bytes that the end of the decoder, its last norm, keeps for backward.
        end_backward: Its peak in backward, relative to before the end, without its output and gradient.
        kinds: Passes by the number of the kind, and by whether the layer's input needs a gradient.
    """

    rows: int
    length: int
    around: int = 0
    shared: int = 0
    end_kept: int = 0
    end_backward: Points = ()
    kinds: dict[tuple[int, bool], LayerPasses] = field(default_factory=dict)


#: Types of layers with a state from token to token instead of attention scores.
WITHOUT_SCORES = frozenset(("linear_attention", "mamba", "conv", "recurrent", "moe", "mlp"))


def kinds_without_scores(skeleton: Skeleton, kinds: list[int]) -> frozenset[int]:
    """Kinds of layers whose memory is linear in the tokens, whatever the length of a row."""
    return frozenset(
        kind for number, kind in enumerate(kinds) if layer_type(skeleton.causal.config, number) in WITHOUT_SCORES
    )


def layer_multiples(skeleton: Skeleton, kinds: list[int]) -> dict[int, int]:
    """Chunk length of a layer of each kind, as scans over a state have; 1 for most."""
    found: dict[int, int] = {}
    for number, (kind, layer) in enumerate(zip(kinds, decoder_layers(skeleton.causal), strict=True)):
        sizes = [size for module in layer.modules() if isinstance(size := getattr(module, "chunk_size", None), int)]
        if layer_type(skeleton.causal.config, number) == "linear_attention":
            sizes.append(DELTA_CHUNK)
        found.setdefault(kind, max(sizes, default=1))
    return found


class _ReachedError(Exception):
    """The decoder has reached its first layer."""


def layer_kinds(causal: Any) -> list[int]:
    """The kind of every decoder layer, numbered in order of appearance: layers of one kind have the same modules with
    the same settings, and the same parameters.
    """
    known: dict[Any, int] = {}
    return [
        known.setdefault((_signature(layer), layer_type(causal.config, number)), len(known))
        for number, layer in enumerate(decoder_layers(causal))
    ]


def layer_type(config: Any, number: int) -> str:
    """The type of a layer by the configuration: ``sliding_attention``; empty if it has none."""
    types = getattr(config, "layer_types", None) or ()
    return str(types[number]) if number < len(types) else ""


def _signature(layer: Any) -> tuple[Any, ...]:
    found: list[Any] = []
    for name, module in layer.named_modules():
        # The value of a factor does not matter to memory, but its presence does.
        own = {
            key: bool(value) if isinstance(value, float) else value
            for key, value in vars(module).items()
            if isinstance(value, (bool, int, float, str, tuple)) and key not in _NUMBERS and not key.startswith("_")
        }
        parameters = {
            key: (tuple(value.shape), value.dtype, value.requires_grad)
            for key, value in module._parameters.items()
            if value is not None
        }
        found.append((name, type(module), repr(sorted(own.items())), repr(sorted(parameters.items()))))
    return tuple(found)


class Passes:
    """Runs the layers of a skeleton.

    Args:
        skeleton: The model.
        told: Called with the current measurement.
    """

    def __init__(self, skeleton: Skeleton, told: Callable[[str], None] = lambda _what: None) -> None:
        self._skeleton = skeleton
        self._told = told
        # A model with values runs as it is.
        mode = skeleton.mode
        self._run: Run = RememberedOperations(mode) if isinstance(mode, FakeTensorMode) else run_operation
        self._layers = decoder_layers(skeleton.causal)
        self.kinds = layer_kinds(skeleton.causal)
        self._first = dict(sorted((kind, self.kinds.index(kind)) for kind in set(self.kinds)))
        self.gradient_from = self._gradient_from()
        # For kinds that have run: their further return values; and True if layers share states.
        self._beside: dict[int, tuple[Any, ...]] = {}
        self._shared = False

    def measure(self, rows: int, length: int, but: Set[int] = frozenset()) -> SizedPass:
        """Measure a micro-batch.

        Args:
            rows: Number of its rows.
            length: Tokens of a row.
            but: Kinds of layers to leave out.
        """
        found = SizedPass(rows, length)
        with self._running() as tracker:
            calls = self._run_decoder(tracker, found)
            first = self.kinds[self.gradient_from] if self.gradient_from >= 0 else None
            for kind, number in self._first.items():
                if kind in but:
                    continue
                self._told(f"layer {number + 1}, {rows} x {length} tokens")
                for reached in (True, False) if kind == first else (True,):
                    found.kinds[kind, reached] = self._measure(tracker, self._layers[number], calls[kind], reached)
            # The accumulated gradient, and the part that a layer adds.
            found.shared = 2 * _learned_from(calls.values())
            found.shared += sum(passes.left for (_, reached), passes in found.kinds.items() if reached)
        return found

    def around(self, rows: int, length: int) -> int:
        """Bytes alive while layers run, as :attr:`SizedPass.around`."""
        found = SizedPass(rows, length)

        def stop(_number: int, hidden: torch.Tensor, _args: tuple[Any, ...], _kwargs: dict[str, Any]) -> Any:
            found.around = max(tracker.live - before - hidden.nbytes, 0)
            raise _ReachedError

        with self._running() as tracker, contextlib.suppress(_ReachedError):
            before = tracker.live
            self._decode(found, stop)
        return found.around

    def _gradient_from(self) -> int:
        """Number of the first layer with trained parameters; -1 if the embeddings are trained."""
        if self._skeleton.causal.get_input_embeddings().weight.requires_grad:
            return -1
        trained = (
            number
            for number, layer in enumerate(self._layers)
            if any(parameter.requires_grad for parameter in layer.parameters())
        )
        return next(trained, 0)

    @contextlib.contextmanager
    def _running(self) -> Iterator[AllocationTracker]:
        how, tracker = self._skeleton.how, AllocationTracker(self._run)
        gc.collect()
        with contextlib.ExitStack() as stack:
            if gc.isenabled():
                # Its frees would be attributed to an operation.
                gc.disable()
                stack.callback(gc.enable)
            for parameter in self._skeleton.model.parameters():
                if parameter.requires_grad:
                    # As where gradients are added to existing ones.
                    stack.callback(parameter.register_post_accumulate_grad_hook(_drop_gradient).remove)
            stack.enter_context(self._skeleton.mode)
            stack.enter_context(tracker)
            stack.enter_context(without_values(how))
            if how.cuda and how.autocast:
                # PEFT and others query it.
                stack.callback(torch.set_autocast_enabled, "cuda", torch.is_autocast_enabled("cuda"))
                torch.set_autocast_enabled("cuda", True)
            yield tracker

    # The decoder around its layers

    def _run_decoder(self, tracker: AllocationTracker, found: SizedPass) -> dict[int, _Call]:
        """Run the decoder with its layers bypassed, except the first of each kind, which may fill shared states."""
        calls: dict[int, _Call] = {}
        slot = torch.empty((), requires_grad=True)
        before = tracker.live

        def capture(number: int, hidden: torch.Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            kind, layer = self.kinds[number], self._layers[number]
            if number == 0:
                found.around = max(tracker.live - before - hidden.nbytes, 0)
                hidden = apply(_Begin, slot, hidden.shape, hidden.dtype)
            if kind not in calls:
                calls[kind] = _Call(hidden.shape, hidden.dtype, args, kwargs)
                self._shared = self._shared or any(isinstance(value, (dict, UserDict)) for value in kwargs.values())
                # Masks of short rows are made in the first layer that needs them, and kept for all.
                if self._shared or kind not in self._beside or found.length <= SHORT_ROW:
                    out = type(layer).forward(layer, hidden, *args, **kwargs)
                    self._beside[kind] = tuple(None for _ in out[1:]) if isinstance(out, tuple) else ()
            return (hidden, *self._beside[kind]) if self._beside[kind] else hidden

        def pass_by(number: int, hidden: torch.Tensor, _args: tuple[Any, ...], _kwargs: dict[str, Any]) -> Any:
            beside = self._beside[self.kinds[number]]
            if number == 0:
                hidden = apply(_Begin, slot, hidden.shape, hidden.dtype)
            return (hidden, *beside) if beside else hidden

        self._decode(found, capture)
        before = tracker.live
        out = self._decode(found, pass_by)
        found.end_kept = tracker.live - before - out.nbytes
        end = apply(_End, out)
        del out
        found.end_backward = self._backward(tracker, end, before, 0)
        return calls

    def _decode(self, found: SizedPass, instead: Callable[..., Any]) -> torch.Tensor:
        """The decoder's output, with ``instead`` in place of each layer."""
        ids = torch.zeros(found.rows, found.length, dtype=torch.int64)
        usual = [vars(layer).get("forward") for layer in self._layers]

        def forward(number: int, *args: Any, **kwargs: Any) -> Any:
            hidden = args[0] if args else kwargs.pop("hidden_states")
            return instead(number, hidden, args[1:], kwargs)

        for number, layer in enumerate(self._layers):
            layer.forward = functools.partial(forward, number)
        try:
            with self._skeleton.arithmetic():
                out = decoder_of(self._skeleton.causal)(input_ids=ids, use_cache=False).last_hidden_state
        finally:
            for layer, replaced in zip(self._layers, usual, strict=True):
                if replaced is None:
                    del layer.forward
                else:
                    layer.forward = replaced
        states: torch.Tensor = out
        return states

    # A single layer

    def _measure(self, tracker: AllocationTracker, layer: Any, call: _Call, reached: bool) -> LayerPasses:
        slot = torch.empty((), requires_grad=True) if reached else None
        # Layers may store states in their arguments.
        arguments = call.arguments(slot)
        hidden = call.shape.numel() * call.dtype.itemsize
        base = tracker.live
        x = _begin(slot, call)
        tracker.begin()
        with self._skeleton.arithmetic():
            out = _first_of(layer(x, *arguments.args, **arguments.kwargs))
        forward = tuple(point - base - 2 * hidden for point in tracker.points)
        del x
        kept = tracker.live - base - out.nbytes
        if not out.requires_grad:
            return LayerPasses(0, forward, (), (), 0, 0)
        end = apply(_End, out)
        del out
        backward = self._backward(tracker, end, base, hidden)
        arguments = call.arguments(slot)
        base = tracker.live
        x = _begin(slot, call)
        with self._skeleton.arithmetic():
            out = _first_of(
                checkpoint(
                    lambda states: layer(states, *arguments.args, **arguments.kwargs),
                    x,
                    use_reentrant=False,
                    preserve_rng_state=False,
                    # Function modes are off inside backward.
                    context_fn=lambda: (contextlib.nullcontext(), self._skeleton.operations()),
                )
            )
        del x
        casts = tracker.live - base - out.nbytes - hidden
        end = apply(_End, out)
        del out
        again = self._backward(tracker, end, base, 2 * hidden)
        left = tracker.live - base
        del end
        return LayerPasses(kept, forward, backward, again, max(casts, 0), max(left, 0))

    def _backward(self, tracker: AllocationTracker, end: torch.Tensor, base: int, elsewhere: int) -> Points:
        tracker.begin()
        end.backward()  # type: ignore[no-untyped-call]
        return tuple(point - base - elsewhere for point in tracker.points)


def _learned_from(calls: Iterable[_Call]) -> int:
    """Bytes of the tensors that need a gradient among the layers' arguments; each storage counts once."""
    tensors = (
        leaf
        for call in calls
        for leaf in tree_leaves((call.args, [value for value in call.kwargs.values() if not isinstance(value, dict)]))
        if isinstance(leaf, torch.Tensor) and leaf.requires_grad
    )
    return sum({(storage := tensor.untyped_storage())._cdata: storage.nbytes() for tensor in tensors}.values())


def _drop_gradient(parameter: torch.Tensor) -> None:
    parameter.grad = None


def _begin(slot: torch.Tensor | None, call: _Call) -> torch.Tensor:
    """Hidden states that enter a layer; not a leaf, whose gradient would be kept."""
    if slot is None:
        return torch.empty(call.shape, dtype=call.dtype)
    return apply(_Begin, slot, call.shape, call.dtype)


def _first_of(made: Any) -> torch.Tensor:
    first: torch.Tensor = made[0] if isinstance(made, tuple) else made
    return first


class _Begin(torch.autograd.Function):
    """Creates hidden states; their gradient is dropped."""

    @staticmethod
    def forward(ctx: Any, slot: torch.Tensor, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:  # noqa: ARG004
        """Hidden states without values."""
        return torch.empty(shape, dtype=dtype)

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[None, None, None]:  # noqa: ARG004
        """No gradient."""
        return None, None, None


class _Alias(torch.autograd.Function):
    """A tensor that depends on the slot; its gradient is dropped."""

    @staticmethod
    def forward(ctx: Any, slot: torch.Tensor, held: list[torch.Tensor]) -> torch.Tensor:  # noqa: ARG004
        """The tensor in the list."""
        return held[0].view_as(held[0])

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[None, None]:  # noqa: ARG004
        """No gradient."""
        return None, None


class _End(torch.autograd.Function):
    """Consumes hidden states without keeping any, and creates their gradient."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor) -> torch.Tensor:
        """A scalar."""
        ctx.shape, ctx.dtype = hidden.shape, hidden.dtype
        return torch.empty((), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> torch.Tensor:  # noqa: ARG004
        """The gradient of the hidden states."""
        return torch.empty(ctx.shape, dtype=ctx.dtype)

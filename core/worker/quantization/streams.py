"""Several streams of hidden states through a model side by side: each in 16 bits in some layers, in 4 bits in others.

The model's own forward runs once. At each call of a layer, the layer is read from the files, all streams pass through
it, and it is dropped: only one layer is in memory, whatever the number of streams, and each layer is read once.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from core.worker.quantization.layers import LayeredModel, held_bytes

#: Called with the place of a finished layer.
LayerDone = Callable[[int], None]


class EntangledError(Exception):
    """A layer passes more than hidden states to the next, so streams cannot go side by side."""


@dataclass
class Stream:
    """Hidden states on their way through the layers.

    Args:
        quantized: Layers in 4 bits.
        hidden: ``(rows, length, hidden)``; None while equal to the first stream's.
        passed: States passed to later layers beside it, by the name of the argument.
    """

    quantized: frozenset[int]
    hidden: torch.Tensor | None = None
    passed: dict[str, Any] = field(default_factory=dict)


class StreamedForward:
    """The forward of a model with several streams.

    Args:
        driver: The model whose forward runs, with its own weights outside the layers.
        plain: Source of layers in 16 bits.
        coarse: Source of layers in 4 bits.
        streams: The streams; the driver sees the first.
        done: Called after each layer.
        sizes: Filled with the bytes of each layer, by its place and whether it is in 4 bits.
    """

    def __init__(
        self,
        driver: LayeredModel,
        plain: LayeredModel,
        coarse: LayeredModel,
        streams: Sequence[Stream],
        done: LayerDone = lambda _: None,
        sizes: dict[tuple[int, bool], int] | None = None,
    ) -> None:
        self.driver, self._models = driver, (plain, coarse)
        self._streams = list(streams)
        self._done = done
        self._sizes = {} if sizes is None else sizes
        self._last: Any = None
        self._further: dict[int, tuple[Any, ...] | None] = {}
        """Further return values of each layer; None where it returns only hidden states."""
        # Streams beside the first wait in host memory.
        self._kept = torch.device("cpu")

    @torch.no_grad()
    def run(self, forward: Callable[[], Any]) -> Any:
        """Run the driver's forward; returns its result for the first stream.

        Args:
            forward: Calls the driver.

        Raises:
            EntangledError: If there are several streams, and they cannot go side by side in this model.
            UserError: If a layer cannot be read.
        """
        return self._with(self._through, forward)

    @torch.no_grad()
    def end(self, stream: Stream, row: int, forward: Callable[[], Any]) -> Any:
        """Run the driver's forward for a row, with a stream's hidden states in place of its layers' results; after
        :meth:`run`."""
        found = self._streams[0].hidden if stream.hidden is None else stream.hidden
        hidden = None if found is None else found[row : row + 1]

        def answer(index: int, *args: Any, **kwargs: Any) -> Any:
            taken = _incoming(args, kwargs)
            return _as_returned(self._further[index], hidden.to(taken.device) if hidden is not None else taken)

        return self._with(answer, forward)

    def _with(self, call: Callable[..., Any], forward: Callable[[], Any]) -> Any:
        layers = self.driver.layers
        for index, layer in enumerate(layers):
            layer.forward = functools.partial(call, index)
        try:
            return forward()
        finally:
            for layer in layers:
                del layer.forward

    def _through(self, index: int, *args: Any, **kwargs: Any) -> Any:
        """Pass all streams through a layer; returns its result for the first."""
        first, *others = self._streams
        incoming = _incoming(args, kwargs)
        if others and self._last is not None and incoming is not self._last:
            raise EntangledError
        for stream in others:
            if stream.hidden is None and (index in stream.quantized) != (index in first.quantized):
                # A copy, as a layer may change its input.
                stream.hidden = incoming.clone()
                stream.passed = {name: copy.copy(each) for name, each in kwargs.items() if isinstance(each, dict)}
        returned: Any = None
        for coarse, model in enumerate(self._models):
            going = [each for each in others if each.hidden is not None and (index in each.quantized) == bool(coarse)]
            leads = (index in first.quantized) == bool(coarse)
            if not going and not leads:
                continue
            layer = model.materialize(index)
            self._sizes[index, bool(coarse)] = held_bytes(layer)
            for stream in going:
                own_args, own_kwargs = _for_stream(stream, args, kwargs, incoming.device)
                stream.hidden = _hidden(layer(*own_args, **own_kwargs)).to(self._kept)
            if leads:
                returned = layer(*args, **kwargs)
            del layer
        if others and not isinstance(returned, torch.Tensor) and any(each is not None for each in returned[1:]):
            raise EntangledError
        self._last = _hidden(returned)
        if index == len(self.driver.layers) - 1:
            first.hidden = self._last.to(self._kept)
        self._further[index] = None if isinstance(returned, torch.Tensor) else tuple(returned[1:])
        self._done(index)
        return returned


def _incoming(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """The hidden states among a layer's arguments."""
    found: torch.Tensor = args[0] if args else kwargs["hidden_states"]
    return found


def _for_stream(
    stream: Stream, args: tuple[Any, ...], kwargs: dict[str, Any], device: torch.device
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a layer for a stream: masks, positions and other arguments are the first stream's."""
    if stream.hidden is None:
        raise ValueError("the stream goes with the first one")
    hidden, own = stream.hidden.to(device), kwargs | stream.passed
    return ((hidden, *args[1:]), own) if args else (args, own | {"hidden_states": hidden})


def _hidden(returned: Any) -> torch.Tensor:
    found: torch.Tensor = returned if isinstance(returned, torch.Tensor) else returned[0]
    return found


def _as_returned(further: tuple[Any, ...] | None, hidden: torch.Tensor) -> Any:
    return hidden if further is None else (hidden, *further)

"""The sources of one loaded base: the base itself, and adapters on it by name, of which one answers at a time."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.chat.engine import ADAPTER_LIMIT
from core.chat.request import BASE, TUNED
from core.errors import UserError
from core.models.adapters import check_adapter
from core.models.fingerprint import BaseFingerprint
from core.text import one_line
from core.worker.fused.file_weights import FileWeights
from core.worker.generate.folding import FoldedAdapter, fold
from core.worker.generate.prefix_cache import PrefixCache
from core.worker.model.adapters import TRAINED, add_adapter, switched_off
from core.worker.model.model import LoadedModel


@dataclass(frozen=True)
class _Adapter:
    peft_name: str
    said: str
    """What its answers are called."""
    template: str | None
    """The chat template of its training, in place of the model's own."""


class Sources:
    """A loaded base with its adapters.

    Args:
        loaded: The model, with or without an adapter.
        base: Its directory.
        said: What answers of :data:`~core.chat.request.TUNED` are called: of the adapter, or of trained weights.
        has_adapter: Whether an adapter is loaded; else the model answers for either.
        template: The chat template in place of the model's own.
        fingerprint: That of the base, where it has been computed.
        file_weights: Those that the adapter answers with, where it was trained for a file.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        base: Path,
        *,
        said: str,
        has_adapter: bool,
        template: str | None,
        fingerprint: BaseFingerprint | None = None,
        file_weights: FileWeights | None = None,
    ) -> None:
        self.loaded = loaded
        self.kept = PrefixCache()
        """Keys and values of earlier turns."""
        self._model = loaded.model
        self._base, self._fingerprint, self._template = base, fingerprint, template
        self._adapters = {TUNED: _Adapter(TRAINED, said, template)} if has_adapter else {}
        # A model without an adapter is its own base, unless its weights have been trained; then it has a name.
        self._said_of_base = BASE if has_adapter or said == "adapter" else said
        self._numbers = itertools.count(1)
        self._folded: FoldedAdapter | None = None
        self._file_weights = file_weights

    @property
    def model(self) -> Any:
        """The model: a ``PeftModel`` once there is an adapter."""
        return self._model

    @property
    def is_folded(self) -> bool:
        """Whether the adapter is part of the weights now."""
        return self._folded is not None

    def fold(self) -> None:
        """Fold a single adapter into the weights, where that can be done: until another source is asked, decoding takes
        no longer than the base's. Then it stays apart, so that switching costs nothing."""
        is_single = len(self._adapters) == 1 and len(self._model.peft_config) == 1
        if is_single and self._folded is None and self._file_weights is None:
            self._folded = fold(self._model, next(iter(self._adapters.values())).peft_name)
            self.kept.forget()

    def said_of(self, source: str) -> str:
        """What the answers of a source are called.

        Raises:
            UserError: If there is no such source.
        """
        adapter = self._find(source)
        return adapter.said if adapter is not None else self._said_of_base

    def template_of(self, source: str) -> str | None:
        """The chat template that a source is asked with."""
        adapter = self._find(source)
        return adapter.template if adapter is not None else self._template

    def add(self, name: str, directory: Path, *, said: str, template: str | None, base_sha256: str | None) -> None:
        """Load another adapter onto the base.

        Args:
            name: The source that it answers as.
            directory: In PEFT's format.
            said: What its answers are called.
            template: The chat template of its training.
            base_sha256: The fingerprint of the base that it was trained on; None where it is not known.

        Raises:
            UserError: If it is for another base, does not fit, or there are too many.
        """
        if name in self._adapters:
            return
        if len(self._adapters) >= ADAPTER_LIMIT:
            raise UserError(f"{ADAPTER_LIMIT} adapters are loaded on this base.", "Open it by itself.")
        if self._said_of_base != BASE:
            raise UserError(
                f"The weights of {self._said_of_base} were trained themselves, so no adapter of another run fits them.",
                "Open the other one by itself.",
            )
        check_adapter(directory, self._base)
        if base_sha256 is not None:
            self._fingerprint = self._fingerprint or BaseFingerprint(self._base)
            self._fingerprint.settle()
            if not self._fingerprint.matches(base_sha256):
                raise UserError(
                    f"{one_line(name, 200)} was trained on another base model than {self._base.name}, or that has "
                    "changed since.",
                    "Open it by itself, on its own base.",
                )
        self._unfold()
        peft_name = f"source_{next(self._numbers)}" if hasattr(self._model, "peft_config") else TRAINED
        self._model = add_adapter(self._model, directory, peft_name)
        self._model.eval()
        # Loading repacks weights in 4 bits on some CPUs, which then compute a little else.
        self.kept.forget()
        self._adapters[name] = _Adapter(peft_name, said, template)

    def remove(self, name: str) -> None:
        """Unload an adapter; the one that the model was opened with stays."""
        if name == TUNED or name not in self._adapters:
            return
        self._unfold()
        self.kept.forget(name)
        if len(self._adapters) == 1:
            # PEFT keeps at least one; it costs little, and answers to no name any more.
            del self._adapters[name]
            return
        adapter = self._adapters.pop(name)
        self._model.set_adapter(next(iter(self._adapters.values())).peft_name)
        self._model.delete_adapter(adapter.peft_name)

    @contextlib.contextmanager
    def answering(self, source: str) -> Iterator[Any]:
        """The model answers as a source inside.

        Yields:
            The model.

        Raises:
            UserError: If there is no such source.
        """
        adapter = self._find(source)
        if not hasattr(self._model, "disable_adapter"):
            yield self._model
        elif adapter is None:
            self._unfold()
            with self._weights_of(source), switched_off(self._model):
                yield self._model
        else:
            if self._model.active_adapters != [adapter.peft_name]:
                self._model.set_adapter(adapter.peft_name)
            with self._weights_of(source):
                yield self._model

    def _weights_of(self, source: str) -> contextlib.AbstractContextManager[None]:
        """The weights of the file for the adapter that was trained with them, the base's own for all others."""
        if self._file_weights is None or (source == TUNED and TUNED in self._adapters):
            return contextlib.nullcontext()
        return self._file_weights.base_alone()

    def _unfold(self) -> None:
        if self._folded is not None:
            self._folded.unfold()
            self._folded = None
            self.kept.forget()

    def _find(self, source: str) -> _Adapter | None:
        """The adapter of a source; None for the base."""
        if source == BASE or (source == TUNED and TUNED not in self._adapters):
            return None
        if source not in self._adapters:
            raise UserError(
                f"There is no source {one_line(source, 120)} here.", f"There are {', '.join([BASE, *self._adapters])}."
            )
        return self._adapters[source]

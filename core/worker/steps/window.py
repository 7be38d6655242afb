"""The gradients of one optimizer step, whatever micro-batches it takes to get them."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator

from core.errors import UserError
from core.memory.batching import TOKEN_BUDGETS, WHOLE, padded_length
from core.worker.data.batches import collate, largest_micro_batch, split_window, supervised_count
from core.worker.data.encode import TokenizedRow
from core.worker.loss.loss import SupervisedLoss
from core.worker.loss.objectives import Objective, Rewards, SupervisedObjective
from core.worker.model.activation_offload import ActivationOffload
from core.worker.model.model import LoadedModel, set_gradient_checkpointing
from core.worker.oom.retry import Attempt, MemoryShortageError, TornUpdateError, attempt, release
from core.worker.process.rng import restore_rng, rng_state
from core.worker.steps.neftune import EmbeddingNoise


@dataclass(frozen=True)
class WindowResult:
    """What one window's pass gave; its gradients are in the parameters."""

    loss: float
    """Mean over the supervised tokens of the whole window, or over what else the objective takes it."""
    tokens: int
    supervised_tokens: int
    rewards: Rewards


class WindowGradients:
    """Forward and backward over an optimizer step's rows, cut into micro-batches by a token budget.

    The loss is summed over the window and divided by its weight, in supervised learning its supervised tokens, so the
    result does not depend on the cut.
    When memory runs out anywhere in a window, its gradients are dropped, the random state is put back, the budget is
    halved and the window is run again: never a smaller step, never a changed order.

    Args:
        loaded: The model, adapters attached.
        loss: Sums the loss of a batch.
        rows: All training rows.
        accelerator: Carries autocast and backward.
        max_rows: The most rows of a micro-batch; None for no limit but the budget.
        notice: Told what was cut, and why: ``notice(code, message, hint)``.
        noise: Put on the embeddings; None for none.
        partial: Whether the window on hand has changed weights already, as an update inside backward does.
        whole: Whether a window must be one micro-batch.
        place: Says where a row comes from: ``rows.jsonl, line 7``.
        objective: What is learned; None for the supervised tokens.
        free_caches: Gives up memory that only saves time; says whether there was any.
        offload: Moves to host memory what recomputing starts from, when asked to or when memory runs out; None where
            there is no way, or it is not to be.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        loss: SupervisedLoss,
        rows: Sequence[TokenizedRow],
        *,
        accelerator: Accelerator,
        max_rows: int | None,
        notice: Callable[[str, str, str], None],
        noise: EmbeddingNoise | None = None,
        partial: Callable[[], bool] = lambda: False,
        whole: bool = False,
        place: Callable[[int], str] = lambda row: f"row {row + 1}",
        objective: Objective | None = None,
        free_caches: Callable[[], bool] = lambda: False,
        offload: ActivationOffload | None = None,
    ) -> None:
        self._free_caches = free_caches
        self._loaded = loaded
        self._loss = loss
        self._objective = SupervisedObjective(loss, rows) if objective is None else objective
        self._rows = rows
        self._lengths = [row.longest for row in rows]
        self._accelerator = accelerator
        self._max_rows = max_rows
        self._notice = notice
        self._noise = noise
        self._partial = partial
        self._whole = whole
        self._place = place
        self._pad_id = loaded.tokenizer.pad_token_id or 0
        self.token_budget = first_budget(loaded.device, whole=whole)
        self._offload = offload
        self.checkpointing = False
        self.offloading = False

    def set_checkpointing(self, enabled: bool, *, offload: bool = False) -> None:
        """Recompute activations in backward, or keep them; ``offload`` moves what that starts from to host memory,
        where there is a way."""
        self.offloading = enabled and offload and self._offload is not None
        set_gradient_checkpointing(self._loaded.model, enabled, self._offload if self.offloading else None)
        self.checkpointing = enabled

    def run(self, window: Sequence[int], *, where: str) -> WindowResult:
        """Compute a window's gradients, cutting finer until it fits.

        Args:
            window: Row indices.
            where: For messages: ``step 12`` or ``the rehearsal``.

        Raises:
            UserError: If a single row does not fit, even with activations recomputed and their beginnings in host
                memory, where there is a way.
            TornUpdateError: If weights have been changed by a part of the window.
        """
        before = rng_state()
        while True:
            batches = self._split(window)
            tried = self._try(batches)
            if tried.result is not None:
                return tried.result
            self._drop_gradients()
            if self._partial():
                raise TornUpdateError(
                    f"Memory ran out at {where}, when a part of the weights had been updated already.",
                    "Lower train.batch_size or train.max_length, and start again; checkpoints from before are whole.",
                )
            restore_rng(before)
            self._cut(batches, where)

    def _try(self, batches: list[list[int]]) -> Attempt[WindowResult]:
        try:
            return attempt(functools.partial(self._pass, batches))
        except MemoryShortageError as error:
            # An optimizer inside backward that has given up after several tries.
            if not self._partial():
                raise
            reason = error.message
        release()
        return Attempt(None, reason)

    def has_largest(self, window: Sequence[int], batch_size: int) -> bool:
        """Whether a window has a micro-batch as large as any that the data can produce, so that running it rehearses.

        Args:
            window: Row indices.
            batch_size: Rows in an optimizer step.
        """
        with self._loss.sharing_least():
            largest = self._tokens_at_work(self._largest(batch_size))
        return any(self._tokens_at_work(batch) >= largest for batch in self._split(window))

    def rehearse(self, batch_size: int) -> tuple[int, int]:
        """Forward and backward on the largest micro-batch that the data can produce; gradients and random state are
        left as before.

        Returns:
            Rows and padded length of the micro-batch that fits.

        Raises:
            UserError: As :meth:`run`.
        """
        before = rng_state()
        while True:
            batch = self._largest(batch_size)
            budget = self.token_budget
            with self._loss.sharing_least():
                self.run(batch, where="the rehearsal")
            self._drop_gradients()
            restore_rng(before)
            if self.token_budget == budget:
                return len(batch), max(self._lengths[row] for row in batch)

    def _largest(self, batch_size: int) -> list[int]:
        shared = self._loss.shared_by_all
        return largest_micro_batch(self._lengths, batch_size, self._row_budget, self._max_rows, shared=shared)

    def _tokens_at_work(self, batch: list[int]) -> int:
        return self._loss.tokens(*collate(self._objective.sequences(batch), self._pad_id, torch.device("cpu")))

    def _pass(self, batches: list[list[int]]) -> WindowResult:
        window = [row for batch in batches for row in batch]
        weight = self._objective.begin(window, self.token_budget)
        total = torch.zeros((), dtype=torch.float32, device=self._loaded.device)
        if self._noise is not None:
            self._noise.begin_window()
        for batch in batches:
            sequences = self._objective.sequences(batch)
            input_ids, supervised = collate(sequences, self._pad_id, self._loaded.device)
            with self._noisy(batch), self._accelerator.autocast():
                loss = self._objective.loss(batch, input_ids, supervised)
            total += loss.detach()
            if self._whole and not math.isfinite(float(loss)):
                break  # inside backward, some weights would be updated before the first gradient that is not finite
            self._accelerator.backward(loss / weight)
        tokens = sum(self._rows[row].tokens for row in window)
        supervised_tokens = sum(supervised_count(self._rows[row]) for row in window)
        return WindowResult(float(total) / weight, tokens, supervised_tokens, self._objective.rewards())

    @property
    def _row_budget(self) -> int:
        """The token budget for rows as long as their longest sequence."""
        return max(1, self.token_budget // self._objective.sequences_per_row)

    def _split(self, window: Sequence[int]) -> list[list[int]]:
        return split_window(window, self._lengths, self._row_budget, self._max_rows)

    def _noisy(self, batch: list[int]) -> contextlib.AbstractContextManager[None]:
        if self._noise is None:
            return contextlib.nullcontext()
        return self._noise.on(batch, [self._lengths[row] for row in batch])

    def _padded_tokens(self, batch: Sequence[int]) -> int:
        sequences = len(batch) * self._objective.sequences_per_row
        return sequences * padded_length(max(self._lengths[row] for row in batch))

    def _drop_gradients(self) -> None:
        for parameter in self._loaded.model.parameters():
            parameter.grad = None
        if self._loaded.device.type == "cuda":
            torch.cuda.empty_cache()

    def _cut(self, batches: list[list[int]], where: str) -> None:
        largest = max(batches, key=self._padded_tokens)
        if self._free_caches():
            message = f"Memory ran out at {where}: 4-bit weights are dequantized each time they are used from now on."
            self._notice("memory_weights", message, "The numbers are the same; it takes a little more time.")
        elif not self._whole and max(len(batch) for batch in batches) > 1:
            self.token_budget = max(1, min(self.token_budget, self._padded_tokens(largest)) // 2)
            rows = max(map(len, self._split(largest)))
            message = f"Memory ran out at {where}: micro-batches of {len(largest)} rows are cut to {rows}."
            self._notice("memory_cut", message, "The optimizer step keeps its rows; nothing is lost.")
        elif not self.checkpointing:
            self.set_checkpointing(True)
            what = "the whole step" if self._whole else "one row"
            message = f"Memory ran out at {where} with {what}: activations are recomputed from now on."
            self._notice("memory_checkpointing", message, "This takes about a quarter more time.")
        elif self._offload is not None and not self.offloading:
            self.set_checkpointing(True, offload=True)
            message = f"Memory ran out at {where}: the inputs of layers are kept in the machine's memory from now on."
            self._notice("memory_offload", message, "The result is the same; they go over the bus and back.")
        elif self._whole and len(largest) > 1:
            raise UserError(
                f"Memory ran out at {where} with the {len(largest)} rows of a step and activations {self._saved}; the "
                "update inside backward needs them all in one pass.",
                "Lower train.batch_size or train.max_length, or set memory.optimizer_in_backward = off.",
            )
        else:
            length = self._lengths[largest[0]]
            kept = self._offload is None and self._loaded.device.type == "cuda"
            first = "Set memory.activation_offload = auto, or" if kept else "Set"
            raise UserError(
                f"Memory ran out at {where} with a single row of {length} tokens ({self._place(largest[0])}) and "
                f"activations {self._saved}.",
                f"{first} train.max_length below {length}, lower method.rank, or choose a smaller base model.",
            )

    @property
    def _saved(self) -> str:
        """What has been done to activations by then."""
        return "recomputed from what is kept in the machine's memory" if self.offloading else "recomputed"


def first_budget(device: torch.device, *, whole: bool) -> int:
    """Tokens of a micro-batch, padding included, until memory runs out.

    Args:
        device: Where it runs.
        whole: Whether a window must be one micro-batch.
    """
    return WHOLE if whole else TOKEN_BUDGETS.get(device.type, TOKEN_BUDGETS["cuda"])


def make_accelerator(loaded: LoadedModel) -> Accelerator:
    """Accelerate for one process: autocast in the model's dtype, and a gradient scaler where fp16 needs one."""
    names: dict[Any, Any] = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "no"}
    return Accelerator(cpu=loaded.device.type == "cpu", mixed_precision=names[loaded.dtype])

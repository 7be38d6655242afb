"""Going back to where the weights were whole, when memory ran out with some of a step's updates made.

Where weights are updated inside backward, such a step cannot be run again. The run goes back within its process to its
newest checkpoint, or without one to the untouched base, and does the steps from there again with activations
recomputed. Rows, order, schedule and random state are those of that moment, so that what comes out is, bit for bit,
what a run gives that had activations recomputed from there on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from core.errors import UserError
from core.models.fingerprint import BaseFingerprint
from core.worker.checkpoint.checkpoint import Checkpoint
from core.worker.model.model import load_model
from core.worker.oom.retry import Retry, TornUpdateError, release
from core.worker.process.rng import restore_rng, rng_state

if TYPE_CHECKING:
    from core.worker.train import FinetuneRecipe


class Recovery:
    """Puts a recipe back, once: when it runs out of memory in this way again, activations are recomputed already.

    Args:
        recipe: The recipe, its optimization prepared and no step done, nor a checkpoint put back.
    """

    def __init__(self, recipe: FinetuneRecipe) -> None:
        self._recipe = recipe
        self._random = rng_state()
        # Without a tensor: no optimizer has states before the first step.
        self._optimizers = recipe.update.state_dict() if recipe.update.in_backward else {}
        self._selection, self._health = recipe.selection.facts(), recipe.health.facts()

    def go_back(self, error: TornUpdateError) -> None:
        """Go on from the newest valid checkpoint, else from the base, with activations recomputed.

        What was set while the run was on (``set``) stays in force.

        Args:
            error: What has happened.

        Raises:
            TornUpdateError: The same, if activations are recomputed already.
            UserError: If weights cannot be put back.
        """
        recipe = self._recipe
        if recipe.windows.checkpointing:
            raise error
        torn = recipe.step + 1
        recipe.update.drop()
        found = recipe.keeper.newest()
        where = recipe.config.model.base if found is None else found.path.name
        recipe.recorder.phase("loading_model", where)
        Retry(lambda: f"step {torn}", recipe.warn).run(
            lambda: self._to_base() if found is None else recipe.keeper.put_back(found),
            lambda: None,
            "in going back",
            error.hint,
        )
        recipe.windows.set_checkpointing(True)
        recipe.last_eval = None
        recipe.recorder.end_step(recipe.step)
        recipe.warn("memory_replay", f"{error.message} {_sentence(found)}", "This takes about a quarter more time.")
        recipe.recorder.phase("training", done=recipe.step, total=recipe.total_steps)

    def _to_base(self) -> None:
        """As if no step had been done."""
        recipe = self._recipe
        self._read_base()
        recipe.update.load_state_dict(self._optimizers)
        recipe.step, recipe.keeper.last_step = 0, None
        recipe.selection.restore(self._selection, None)
        recipe.health.restore(self._health)
        restore_rng(self._random)

    def _read_base(self) -> None:
        """Read the weights as they were read at first: into the memory of those there are, which is given back before.

        The parameters stay the same objects, as optimizers and hooks hold them.
        """
        recipe, config = self._recipe, self._recipe.config
        if BaseFingerprint(recipe.base).value != recipe.base_fingerprint.value:
            raise UserError(
                f"The base model {config.model.base} has changed since the run began.", "Start the run again."
            )
        parameters: dict[str, Any] = dict(recipe.loaded.model.named_parameters())
        for parameter in parameters.values():
            parameter.data = torch.empty(0, dtype=parameter.dtype, device=parameter.device)
        release()
        fresh = load_model(
            recipe.base,
            method=config.method.name,
            precision=config.train.precision,
            device=config.hardware.device,
            for_training=True,
            tokenizer=recipe.tokenizer,
        )
        for name, parameter in fresh.model.named_parameters():
            parameters[name].data = parameter.data


def _sentence(found: Checkpoint | None) -> str:
    if found is None:
        return "There is no checkpoint yet: the run begins again with the untouched base, with activations recomputed."
    return f"The run goes on from {found.path.name}, with activations recomputed."

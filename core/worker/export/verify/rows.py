"""The rows of a proof: the user's held-out data, rendered and tokenized by the code of training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.config.schema import Config
from core.data.conversation import Example, RowError
from core.template.settings import mask_settings
from core.worker.data.dataset import Dataset, Loader
from core.worker.data.encode import Encoder, TokenizedRow, as_model_tokenizer
from core.worker.export.verify.store import ProofRow, places_kept

#: Characters of a plain text whose tokens are compared.
_TEXT_CHARACTERS = 4000


def make_encoder(
    config: Config, base: Path, tokenizer: Any, stop_ids: list[int], template: str | None, now: Any
) -> Encoder:
    """The encoder of the training."""
    return Encoder(tokenizer, stop_ids, template, settings=mask_settings(config, str(base)), now=now)


def choose_rows(
    config: Config, encoder: Encoder, vocabulary: int, count: int, progress: Callable[[int], None]
) -> tuple[list[ProofRow], str]:
    """Rows that were not trained on, as far as there are any: of ``data.eval``, else of the share held out.

    Args:
        config: The configuration of the run.
        encoder: That of its training.
        vocabulary: Tokens that the model knows.
        count: How many rows.
        progress: Told how many rows have been read; may raise to give up.

    Returns:
        The rows, and where they are from: ``eval``, ``held_out`` or ``training``.

    Raises:
        UserError: If the files cannot be read any more.
    """
    loader = Loader(config, encoder, vocabulary=vocabulary, progress=progress)
    data, dataset = "training", None
    if config.data.eval is not None:
        data, dataset = "eval", loader.load(config.data.eval, limit=count)
    elif config.data.eval_share:
        _, dataset = loader.training()
        data = "held_out"
    if dataset is None or not dataset.rows:
        data, dataset = "training", loader.load(config.data.train, limit=count)
    chosen = _spread(dataset, count)
    most = places_kept(len(chosen), vocabulary)
    return [_proof_row(example, row, encoder, most) for example, row in chosen], data


def _spread(dataset: Dataset, count: int) -> list[tuple[Example, TokenizedRow]]:
    """Rows at even distances; of an example that has several rows, one."""
    single = {id(example): (example, row) for example, row in zip(dataset.examples, dataset.rows, strict=True)}
    pairs = list(single.values())
    if len(pairs) <= count:
        return pairs
    return [pairs[place * len(pairs) // count] for place in range(count)]


def _proof_row(example: Example, row: TokenizedRow, encoder: Encoder, most: int) -> ProofRow:
    learned = [int(place) - 1 for place in row.supervised.nonzero()[0] if place > 0][:most]
    messages = [message.fields() for message in example.prompt] if example.messages else []
    tools = [dict(tool) for tool in example.tools]
    text = example.text[:_TEXT_CHARACTERS] if not messages else ""
    prompt: list[int] = []
    if messages:
        try:
            prompt = encoder.prompt_ids(messages, tools)
        except RowError:
            messages = []  # a history that the template takes only as a whole row
    elif text:
        prompt = as_model_tokenizer(encoder.tokenizer, ()).encode([text])[0]
    ids = row.input_ids[: learned[-1] + 1].tolist() if learned else row.input_ids[:1].tolist()
    return ProofRow(messages, tools, text, prompt, ids, learned)

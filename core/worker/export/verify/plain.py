"""Reading of a merged model by plain transformers, and of an adapter by plain PEFT, for the verification.

None of our code is in between: a directory that only this project could read would be worthless elsewhere.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers
from peft import PeftConfig, PeftModel
from transformers import AutoConfig, AutoTokenizer

from core.data.conversation import RowError
from core.directories import Progress
from core.errors import UserError
from core.export.plan import LOADING_FILE
from core.models.description import auto_class, read_description
from core.text import one_line
from core.worker.data.encode import as_model_tokenizer
from core.worker.export.verify.compare import Proof, ProofRow, compare
from core.worker.model.completeness import first_line
from core.worker.model.decode.checkpoint import concrete_class, weights_source
from core.worker.model.expert_adapters import as_it_is, prepare
from core.worker.model.model import keep_gradients
from core.worker.model.quantizer import four_bit_config, install

_DATED = "strftime_now"


def _with_adapter(model: Any, adapter: Path, *, quantized: bool) -> Any:
    """A model with an adapter, by PEFT; for experts in 4 bits, which PEFT does not support, computed as in training."""
    if not quantized:
        return PeftModel.from_pretrained(model, str(adapter), local_files_only=True)
    config = PeftConfig.from_pretrained(str(adapter), local_files_only=True)
    config.inference_mode = True
    with as_it_is() if prepare(config, model) else contextlib.nullcontext():
        return PeftModel.from_pretrained(model, str(adapter), config=config, local_files_only=True)


class PlainReader:
    """A directory as ``transformers`` reads it, in fp32.

    Args:
        directory: The model's.
        adapter: A directory in PEFT's format to put on top, whose tokenizer is used; None for none.
        quantized: Load the model in 4 bits, as the adapter was trained.
        now: The date for templates.
        keep_16bit: Names and patterns of layers that stayed in 16 bits in training.
    """

    def __init__(
        self,
        directory: Path,
        adapter: Path | None,
        *,
        quantized: bool,
        now: datetime | None,
        keep_16bit: Sequence[str] = (),
    ) -> None:
        place = adapter or directory
        quantization = None
        if quantized:
            # The choice of 4-bit layers is the training's; the rest is bitsandbytes' own.
            install()
            quantization = four_bit_config(torch.float32, keep_16bit)
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=True)
            loader = getattr(transformers, auto_class(read_description(directory / "config.json") or {}))
            # transformers reads some quantizations differently than the training, and others not at all, so an
            # adapter's base is decoded for it. A merged model is not quantized.
            config = AutoConfig.from_pretrained(directory, local_files_only=True)
            with weights_source(directory, config, "qlora" if quantized else "lora") as source:
                found = concrete_class(loader, source["config"]) if source else loader
                self._model: Any = found.from_pretrained(
                    **{"pretrained_model_name_or_path": directory, **source},
                    dtype=torch.float32,
                    device_map={"": "cpu"},
                    quantization_config=quantization,
                    local_files_only=True,
                )
            if adapter is not None:
                self._model = _with_adapter(self._model, adapter, quantized=quantized)
        except Exception as error:  # any error of a library on damaged files
            failed = f"{'PEFT' if adapter is not None else 'transformers'} cannot load {one_line(str(place))}"
            raise UserError(f"{failed}: {first_line(error)}.", "Export it again.") from error
        # In fp32, like the trained model: bitsandbytes would compute in bf16 on some CPUs.
        keep_gradients(self._model)
        self._model.eval()
        self._now = now
        self.name = f"transformers {transformers.__version__}"
        if adapter is not None:
            self.name = f"PEFT {peft.__version__}, {self.name}"

    def prompt_ids(self, row: ProofRow) -> list[int]:
        """Tokens of a row's prompt, by the directory's own tokenizer and template."""
        if not row.messages:
            found: list[int] = self._tokenizer(row.text, add_special_tokens=False)["input_ids"]
            return found
        template = self._tokenizer.chat_template
        if isinstance(template, str) and _DATED in template:
            # transformers would render today's date, where the rows have the run's.
            return self._dated(row)
        try:
            text = self._tokenizer.apply_chat_template(
                row.messages, tools=row.tools or None, add_generation_prompt=True, tokenize=False
            )
        except Exception as error:  # a template may raise anything
            raise RowError("template_error", one_line(str(error), 200)) from error
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _dated(self, row: ProofRow) -> list[int]:
        ours = as_model_tokenizer(self._tokenizer, ())
        template = ours.own_template(self._now)
        if template is None:
            raise RowError("template_error", "There is no chat template.")
        text = template.render(row.messages, tools=row.tools, add_generation_prompt=True)
        return ours.encode([text])[0]

    @torch.no_grad()
    def logits(self, tokens: Sequence[int], positions: Sequence[int]) -> Iterator[np.ndarray[Any, np.dtype[Any]]]:
        """Logits after the tokens at some positions."""
        found = self._model(input_ids=torch.tensor([list(tokens)]), use_cache=False).logits[0]
        yield from (row.numpy() for row in found[list(positions)].float())


def compare_plain(
    proof: Proof,
    directory: Path,
    adapter: Path | None,
    progress: Progress,
    *,
    quantized: bool = False,
    keep_16bit: Sequence[str] = (),
) -> dict[str, Any]:
    """Compare a merged model, or an adapter on its base, with the measured answers.

    Args:
        proof: The measured answers.
        directory: The model's directory.
        adapter: The exported adapter's; None for a merged model.
        progress: Called with each stage; it may raise to cancel.
        quantized: The adapter was trained on the model in 4 bits.
        keep_16bit: As for :class:`PlainReader`.

    Raises:
        UserError: If the library cannot load it, or its logits are not finite.
    """
    progress(LOADING_FILE, None, None)
    now = datetime.fromisoformat(proof.now) if proof.now else None
    reader = PlainReader(directory, adapter, quantized=quantized, now=now, keep_16bit=keep_16bit)
    return compare(proof, reader, progress).to_dict(proof, reader.name)

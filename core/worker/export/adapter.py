"""An adapter as a directory in PEFT's format, with the tokenizer and the chat template of its training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from core.errors import UserError
from core.export.base import describe_base
from core.models.description import read_description
from core.runs.catalog.trained import TrainedModel
from core.worker.export.beside import Conversation, copy_tokenizer

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def write_adapter(base: Path, trained: TrainedModel, directory: Path, conversation: Conversation) -> None:
    """Write an adapter into a directory: its weights byte for byte, its configuration with the base's name on the hub.

    Args:
        base: The directory of the base.
        trained: What was trained, with an adapter.
        directory: Where it goes.
        conversation: How the model is talked to.

    Raises:
        UserError: If its configuration cannot be read.
        OSError: If it cannot be written.
    """
    if trained.adapter is None:
        raise ValueError(f"{trained.label} has no adapter")
    config = read_description(trained.adapter / _CONFIG)
    if config is None:
        raise UserError(f"{trained.adapter} has no {_CONFIG}.", "Export another step.")
    # On another machine only the hub's name leads to the base; a base from elsewhere is found where it was here.
    config["base_model_name_or_path"] = describe_base(trained.base, base).hub_id or str(base)
    shutil.copyfile(trained.adapter / _WEIGHTS, directory / _WEIGHTS)
    text = json.dumps(config, indent=2, ensure_ascii=False, sort_keys=True)
    (directory / _CONFIG).write_text(text + "\n", encoding="utf-8")
    copy_tokenizer(base, directory, conversation)

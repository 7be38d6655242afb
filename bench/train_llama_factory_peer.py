"""``python train_llama_factory_peer.py SPEC``: one training by LLaMA-Factory, in an environment that has it.

Its input and output are those of ``train_peer.py``.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.update(
    HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false", DISABLE_VERSION_CHECK="1"
)

try:
    import torchaudio  # noqa: F401
except (ImportError, OSError):
    # It uses torchaudio, which nothing here has; one built for another torch cannot be imported.
    sys.modules["torchaudio"] = importlib.util.module_from_spec(importlib.machinery.ModuleSpec("torchaudio", None))

from datasets import Dataset, DatasetDict
from llamafactory.train.tuner import run_exp
from transformers import TrainerCallback


class Clock(TrainerCallback):
    """A callback that records the end of each step."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w")

    def on_step_end(self, *_: Any, **__: Any) -> None:
        print(json.dumps({"t": time.time()}), file=self._file, flush=True)


def main() -> None:
    """Run the training."""
    spec = json.loads(Path(sys.argv[1]).read_text())
    rows = [json.loads(line) for line in Path(spec["rows"]).read_text().splitlines()]
    nothing = {"images": None, "videos": None, "audios": None}
    tokenized = Path(spec["output"]) / "tokenized"
    DatasetDict(
        {
            "train": Dataset.from_list(
                [{**row, "attention_mask": [1] * len(row["input_ids"]), **nothing} for row in rows]
            )
        }
    ).save_to_disk(str(tokenized))
    run_exp(
        {
            "stage": "sft",
            "do_train": True,
            "model_name_or_path": spec["model"],
            "tokenized_path": str(tokenized),
            "dataset": "rows",  # required, though the rows are tokens already
            "template": "empty",
            "finetuning_type": "lora",
            "lora_rank": 16,
            "lora_alpha": 32,
            "lora_dropout": 0.0,
            "lora_target": "all",
            "quantization_bit": 4,
            "quantization_method": "bnb",
            "double_quantization": True,
            "output_dir": spec["adapter"],
            "overwrite_output_dir": True,
            "max_steps": spec["steps"],
            "per_device_train_batch_size": spec["batch_size"],
            "gradient_accumulation_steps": 1,
            "learning_rate": spec["learning_rate"],
            "lr_scheduler_type": "cosine",
            "warmup_steps": spec["warmup"],
            "weight_decay": 0.0,
            "max_grad_norm": 1.0,
            "optim": "adamw_torch_fused",
            "bf16": True,
            "use_cpu": True,
            "disable_shuffling": True,
            "disable_gradient_checkpointing": not spec["checkpointing"],
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "plot_loss": False,
            "seed": spec["seed"],
        },
        callbacks=[Clock(Path(sys.argv[1] + ".steps"))],
    )


if __name__ == "__main__":
    main()

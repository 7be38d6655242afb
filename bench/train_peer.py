"""``python train_peer.py SPEC``: one training by TRL's SFTTrainer, as its documentation has it.

Writes the moments of the steps and the losses to ``SPEC.steps``, one JSON object a line, and the adapter to the
directory that the specification names.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false", TQDM_DISABLE="1")

import torch
from datasets import Dataset
from peft import LoraConfig
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, TrainerCallback
from trl import SFTConfig, SFTTrainer


class InOrder(SFTTrainer):  # type: ignore[misc]
    """A trainer that takes the rows in their order."""

    def _get_train_sampler(self, dataset: Dataset | None = None) -> SequentialSampler:
        return SequentialSampler(dataset if dataset is not None else self.train_dataset)


class Clock(TrainerCallback):  # type: ignore[misc]
    """A callback that records the end of each step and its loss."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w")

    def on_step_end(self, *_: Any, **__: Any) -> None:
        print(json.dumps({"t": time.time()}), file=self._file, flush=True)

    def on_log(self, _args: Any, _state: Any, _control: Any, logs: dict[str, Any] | None = None, **__: Any) -> None:
        if logs and "loss" in logs:
            print(json.dumps({"loss": float(logs["loss"])}), file=self._file, flush=True)


def main() -> None:
    """Run the training."""
    spec = json.loads(Path(sys.argv[1]).read_text())
    rows = [json.loads(line) for line in Path(spec["rows"]).read_text().splitlines()]
    dataset = Dataset.from_list(
        [
            {"input_ids": row["input_ids"], "completion_mask": [int(label != -100) for label in row["labels"]]}
            for row in rows
        ]
    )
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    model = AutoModelForCausalLM.from_pretrained(spec["model"], dtype=torch.bfloat16, quantization_config=quantization)
    config = SFTConfig(
        output_dir=spec["output"],
        max_steps=spec["steps"],
        per_device_train_batch_size=spec["batch_size"],
        learning_rate=spec["learning_rate"],
        lr_scheduler_type="cosine",
        warmup_steps=spec["warmup"],
        weight_decay=0.0,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        completion_only_loss=True,
        packing=False,
        max_length=None,
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=spec["checkpointing"],
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=spec["seed"],
    )
    trainer = InOrder(
        model=model,
        args=config,
        train_dataset=dataset,
        processing_class=AutoTokenizer.from_pretrained(spec["model"]),
        peft_config=LoraConfig(
            r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
        callbacks=[Clock(Path(sys.argv[1] + ".steps"))],
    )
    trainer.train()
    trainer.model.save_pretrained(spec["adapter"])


if __name__ == "__main__":
    main()

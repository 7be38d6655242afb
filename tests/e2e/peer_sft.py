"""``python peer_sft.py SPEC``: the same training by TRL's SFTTrainer, printed as a JSON list of losses.

The specification is a JSON file: ``model`` and ``adapter`` (the initial one) as directories, ``rows`` as
``input_ids`` and ``completion_mask`` in the order of training, and the numbers of the recipe.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from core.worker.process import environment

environment.prepare()

import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from peft import PeftModel  # noqa: E402
from torch.utils.data import SequentialSampler  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402
from trl import SFTConfig, SFTTrainer  # noqa: E402


class InOrder(SFTTrainer):  # type: ignore[misc]
    """Takes the rows as they come."""

    def _get_train_sampler(self, dataset: Dataset | None = None) -> SequentialSampler:
        return SequentialSampler(dataset if dataset is not None else self.train_dataset)


def main() -> None:
    """Train and print."""
    spec = json.loads(Path(sys.argv[1]).read_text())
    tokenizer = AutoTokenizer.from_pretrained(spec["model"])
    base = AutoModelForCausalLM.from_pretrained(spec["model"], dtype=torch.float32)
    model = PeftModel.from_pretrained(base, spec["adapter"], is_trainable=True)
    with tempfile.TemporaryDirectory() as directory:
        config = SFTConfig(
            output_dir=directory,
            max_steps=spec["steps"],
            per_device_train_batch_size=spec["batch_size"],
            learning_rate=spec["learning_rate"],
            lr_scheduler_type="cosine",
            warmup_steps=spec["warmup"],
            weight_decay=0.0,
            max_grad_norm=1.0,
            optim="adamw_torch",
            completion_only_loss=True,
            packing=False,
            max_length=None,
            bf16=False,
            fp16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = InOrder(
            model=model, args=config, train_dataset=Dataset.from_list(spec["rows"]), processing_class=tokenizer
        )
        trainer.train()
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    Path(sys.argv[2]).write_text(json.dumps(history))


if __name__ == "__main__":
    main()

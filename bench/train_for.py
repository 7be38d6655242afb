"""Training for the file that is exported, measured: does it pay to train through the quantizer of a GGUF file?

``python bench/train_for.py`` trains the starter model on the sample tickets. With each seed and method most of a run is
done once; from there its last part is done once as always, and once for each type with the weights of the adapted
layers merged and quantized as a file of that type holds them, gradients passed straight through (arXiv 1308.3432). Both
ends have the same number of steps, and are measured on the held-out tickets with the weights of such a file, embeddings
in Q8_0 as llama.cpp writes them for this model. The end of the run as always is also merged into the base in 16 bit.

``--write DIR`` writes every end as a merged model in 32 bit, to be converted; ``--json FILE`` the figures. Options of
the runs are set by ``--set``: ``eval.exact_match=false`` leaves the answers out, which take longest.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.worker.process import environment

environment.prepare()

import torch
from safetensors.torch import load_file, save_file

import sample_data
from core.atomic import write_atomic
from core.config.document import dump_config, load_config
from core.runs.record.state import RunState, hostname
from core.runs.record.store import Run
from core.worker.fused.frozen_weight import merge_exactly
from core.worker.fused.ggml_quant import GgmlType, fake_quantize
from core.worker.fused.lora import FusedLora
from core.worker.libraries import import_libraries
from core.worker.model.model import trainable_parameters
from core.worker.process.control import Controls
from core.worker.process.openmp import SpinControl
from core.worker.process.recorder import Recorder
from core.worker.setup.build import Parts, build
from core.worker.train import FinetuneRecipe

#: The type of the embeddings in files of either type, for rows that are no multiple of 256.
EMBEDDINGS: GgmlType = "Q8_0"


@dataclass(frozen=True)
class Moment:
    """Changes of the weights up to a step."""

    step: int
    parameters: list[torch.Tensor]
    optimizer: dict[str, Any]


class Trial:
    """A run of the sample in this process, whose layers can be used as a file has them.

    Args:
        directory: An empty directory.
        seed: Of the run.
        steps: Of the run.
        method: ``qlora`` or ``lora``.
        settings: Further options, ``section.key=value``.
    """

    def __init__(self, directory: Path, seed: int, steps: int, method: str, settings: list[str]) -> None:
        options = [f"train.seed={seed}", f"train.max_steps={steps}", f"method.name={method}", *settings]
        config = load_config(sample_data.path("tickets.toml"), options)
        run = Run(directory / f"{method}-{seed}")
        run.path.mkdir()
        write_atomic(run.config_path, dump_config(config))
        RunState(state="queued", host=hostname(), updated=time.time()).write(run.state_path)
        recorder, controls = Recorder(run), Controls()
        self.parts: Parts = build(config, recorder, controls, None)
        self.recipe = FinetuneRecipe(config, recorder, controls, self.parts)
        self.model = self.parts.loaded.model
        self.base = Path(self.model.get_base_model().config._name_or_path)
        self.layers = {
            name.removeprefix("base_model.model."): module.forward
            for name, module in self.model.named_modules()
            if isinstance(module.forward, FusedLora)
        }
        self._embeddings = self.model.get_base_model().get_input_embeddings().weight
        self._stored_embeddings = self._embeddings.detach().clone()

    def train_for(self, kind: GgmlType | None) -> None:
        """Use all layers as a file of a type has them; None: as always."""
        for layer in self.layers.values():
            layer.weight.train_for(kind)
            layer.weight.keep(self.parts.loaded.dtype)
        stored = self._stored_embeddings
        with torch.no_grad():
            self._embeddings.copy_(stored if kind is None else fake_quantize(stored, EMBEDDINGS))

    def _changed(self) -> None:
        for layer in self.layers.values():
            layer.weight.forget_merged()

    def train(self, until: int) -> float:
        """Do the steps up to a step; returns their median in seconds."""
        seconds = []
        while self.parts.state.step < until:
            began = time.monotonic()
            self.recipe.step()
            self._changed()
            seconds.append(time.monotonic() - began)
            if self.parts.state.step % 10 == 0:
                print(f"step {self.parts.state.step}: {seconds[-1]:.1f} s", file=sys.stderr, flush=True)
        return statistics.median(seconds)

    def moment(self) -> Moment:
        """Weights trained so far."""
        parameters = [parameter.detach().clone() for parameter in trainable_parameters(self.model)]
        return Moment(self.parts.state.step, parameters, copy.deepcopy(self.parts.update.state_dict()))

    def go_to(self, moment: Moment) -> None:
        """Go on from a moment. Rows and schedule depend on the seed and the step alone."""
        self.parts.state.step = moment.step
        self.take(moment)
        self.parts.update.load_state_dict(copy.deepcopy(moment.optimizer))

    def take(self, moment: Moment) -> None:
        """Take the adapters of a moment."""
        with torch.no_grad():
            for parameter, value in zip(trainable_parameters(self.model), moment.parameters, strict=True):
                parameter.copy_(value)
        self._changed()

    def measure(self, kind: GgmlType | None) -> dict[str, float | None]:
        """Held-out loss and exact matches with the weights of a file of a type; None: as always."""
        evaluator = self.parts.evaluations.evaluator
        assert evaluator is not None
        self.train_for(kind)
        event, _ = evaluator.measure(self.parts.state.step, lambda *_: None)
        return {"loss": event.loss, "exact_match": event.exact_match}

    def write(self, directory: Path) -> None:
        """Write the merged model in 32 bit, not quantized, in the format of transformers."""
        directory.mkdir(parents=True)
        self.train_for(None)
        tensors = {name: tensor.float() for name, tensor in load_file(self.base / "model.safetensors").items()}
        for name, layer in self.layers.items():
            adapter = layer.applied()
            assert adapter is not None
            stored = layer.weight.matrix(self.parts.loaded.dtype)
            tensors[f"{name}.weight"] = merge_exactly(stored, adapter.down.detach(), adapter.up.detach(), adapter.scale)
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
            shutil.copy(self.base / name, directory / name)
        shutil.copy(self.base / "chat_template.jinja", directory / "chat_template.jinja")
        config = json.loads((directory / "config.json").read_text()) | {"dtype": "float32"}
        (directory / "config.json").write_text(json.dumps(config))


def compare(args: argparse.Namespace, seed: int, method: str, work: Path) -> Iterator[dict[str, Any]]:
    """The figures of a seed and a method, as they come."""
    trial = Trial(work, seed, args.steps, method, args.set)
    begins = round(args.steps * (1 - args.share))
    common: dict[str, Any] = {"seed": seed, "method": method, "steps": args.steps, "begins": begins}
    trial.train(begins)
    fork = trial.moment()
    seconds = trial.train(args.steps)
    end = trial.moment()
    if args.write:
        trial.write(args.write / f"as-always-{method}-{seed}")
    yield {**common, "trained": "as always", "weights": "as trained", **trial.measure(None), "step_seconds": seconds}
    for kind in args.types:
        yield {**common, "trained": "as always", "weights": kind, **trial.measure(kind)}
    for kind in args.types:
        trial.go_to(fork)
        trial.train_for(kind)
        seconds = trial.train(args.steps)
        measured = trial.measure(kind)
        yield {**common, "trained": f"for {kind}", "weights": kind, **measured, "step_seconds": seconds}
        yield {**common, "trained": f"for {kind}", "weights": "as trained", **trial.measure(None)}
        if args.write:
            trial.write(args.write / f"for-{kind}-{method}-{seed}")
    if method == "qlora":
        (work / "plain").mkdir()
        plain = Trial(work / "plain", seed, args.steps, "lora", args.set)
        plain.take(end)
        for kind in args.types:
            weights = f"{kind}, 16-bit base"
            yield {**common, "trained": "as always", "weights": weights, **plain.measure(kind)}


def main() -> None:
    """Train, measure, print the figures as they come."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--methods", nargs="+", choices=["qlora", "lora"], default=["qlora", "lora"])
    parser.add_argument("--types", nargs="+", choices=get_args(GgmlType), default=["Q4_0", "Q8_0"])
    parser.add_argument("--steps", type=int, default=150, help="optimizer steps of each run")
    parser.add_argument("--share", type=float, default=1 / 3, help="of the steps, the last ones, that differ")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="further options")
    parser.add_argument("--write", type=Path, metavar="DIR", help="write merged models there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    args = parser.parse_args()
    import_libraries()
    SpinControl().start()
    found = []
    for seed, method in itertools.product(args.seeds, args.methods):
        with tempfile.TemporaryDirectory() as work:
            for figures in compare(args, seed, method, Path(work)):
                print(json.dumps(figures), flush=True)
                found.append(figures)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""The chat engine: a child of the app that holds a base model and answers as the base or with adapters on it.

``python -m core.worker.generate.chat_engine`` speaks :mod:`core.runs.control.protocol` on standard input and output.
It ends when its input is closed, whatever it is doing. Commands:

``load``
    ``base``, ``adapter`` (a directory or null), ``weights`` (a file of trained weights or null), ``method``,
    ``keep_16bit`` (the patterns of ``model.keep_16bit``), ``precision``, ``device``, ``gpu`` (as ``hardware.gpu``, or
    null), ``template`` (a Jinja file or null), ``source_name`` (label for answers of the adapter or of trained
    weights), ``base_sha256`` (fingerprint of the base that they were trained on, or null), ``file``
    (:class:`core.runs.catalog.trained.TrainedFile` or null). Sends ``{"id", "progress", "done", "total"}`` before its
    answer; a progress that ends with a full stop is a warning.
``add``
    ``name`` (of the source), ``adapter`` (a directory), ``source_name``, ``template`` and
    ``base_sha256`` as for ``load``: another adapter on the same base.
``remove``
    ``name`` of such an adapter, to be unloaded.
``generate``
    :class:`core.chat.request.ChatRequest`. Sends ``{"id", "token"}`` before its answer, and ``{"id", "logprobs"}``
    (:class:`core.worker.generate.scores.TokenScores`) before the text of these tokens.
``cancel``
    ``id`` of the ``generate`` to cancel; answered at once, in the middle of it.
``ping``
    Answered at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.chat.request import ChatRequest
from core.errors import UserError
from core.template.builtin import named_or_file
from core.worker.process import environment
from core.worker.process.command_server import Call, CommandServer, Handler, private_streams

if TYPE_CHECKING:
    from core.models.fingerprint import BaseFingerprint
    from core.worker.generate.sources import Sources
    from core.worker.model.model import LoadedModel
    from core.worker.process.openmp import SpinControl

#: Output features per block of bitsandbytes' inference kernel for CPUs.
_KERNEL_ROWS = 32


class ChatEngine:
    """Executes the commands with the most recently loaded base model."""

    def __init__(self) -> None:
        self._sources: Sources | None = None
        self._spin_control: SpinControl | None = None
        self.handlers: dict[str, Handler] = {
            "load": self._load,
            "add": self._add,
            "remove": self._remove,
            "generate": self._generate,
        }

    def _load(self, call: Call) -> dict[str, Any]:
        began = time.monotonic()
        args = call.args

        def report(detail: str, done: int | None = None, total: int | None = None) -> None:
            call.tell({"progress": detail, "done": done, "total": total})

        if args.get("device") != "cpu":
            environment.choose_gpu(args.get("gpu"))
        report("importing the libraries")
        from core.runs.catalog.trained import TrainedFile
        from core.worker.generate.sources import Sources
        from core.worker.model.model import answer_with_file
        from core.worker.model.support import resolve_base
        from core.worker.process.openmp import SpinControl

        if self._spin_control is None:
            self._spin_control = SpinControl()
            self._spin_control.start()

        # The previous model is freed first: two may not fit.
        self._sources = None
        base = resolve_base(str(args["base"]), report)
        template = named_or_file(args.get("template"))
        loaded, fingerprint = load_trained(base, args, report)
        adapter, file, weights_of_file = args.get("adapter"), args.get("file"), None
        if adapter and file:
            report("merging the weights as the file has them")
            weights_of_file = answer_with_file(loaded, base, TrainedFile(file["type"], file["dtype"]))
        self._sources = Sources(
            loaded,
            base,
            said=str(args.get("source_name", "adapter")),
            has_adapter=bool(adapter),
            template=template,
            fingerprint=fingerprint,
            file_weights=weights_of_file,
        )
        if adapter and weights_of_file is None:
            report("folding the adapter into the weights")
            self._sources.fold()
        return {
            "device": str(loaded.device),
            "dtype": str(loaded.dtype).removeprefix("torch."),
            "seconds": time.monotonic() - began,
        }

    def _add(self, call: Call) -> dict[str, Any]:
        args = call.args
        recorded = args.get("base_sha256")
        self._loaded.add(
            str(args["name"]),
            Path(str(args["adapter"])),
            said=str(args.get("source_name", args["name"])),
            template=named_or_file(args.get("template")),
            base_sha256=str(recorded) if recorded else None,
        )
        return {}

    def _remove(self, call: Call) -> dict[str, Any]:
        self._loaded.remove(str(call.args["name"]))
        return {}

    @property
    def _loaded(self) -> Sources:
        if self._sources is None:
            raise UserError("No model is loaded.", "Open a model first.")
        return self._sources

    def _generate(self, call: Call) -> dict[str, Any]:
        began = time.monotonic()
        sources = self._loaded
        from core.worker.data.encode import as_model_tokenizer
        from core.worker.generate.generate import answer_prompt, prepare_prompt
        from core.worker.generate.room import ask_for_room, runs_on
        from core.worker.generate.scores import TokenScores

        asked = ChatRequest.from_args(call.args)
        loaded, source = sources.loaded, asked.source
        with sources.answering(source) as model:
            prompt = prepare_prompt(
                model,
                loaded.tokenizer,
                asked.messages,
                asked.budget,
                sources.template_of(source),
                tools=asked.tools,
                text=asked.prompt,
                forced_tools=asked.forced_tools,
                several_calls=asked.several_calls,
                echo=asked.echo,
            )
            if runs := runs_on(loaded.device):
                ask_for_room(
                    prompt,
                    loaded.dtype,
                    loaded.device,
                    kept=sources.kept.tokens_of(source),
                    copied=sources.kept.copied_of(prompt),
                    give_up=sources.kept.forget,
                    beside=f"run {runs[0]}",
                )
            try:
                generation = answer_prompt(
                    model,
                    loaded.tokenizer,
                    prompt,
                    asked.settings,
                    lambda text: call.tell({"token": text}),
                    call.cancelled,
                    began=began,
                    kept=sources.kept,
                    source=source,
                    json_schema=asked.json_schema,
                    scores=TokenScores.of(asked, as_model_tokenizer(loaded.tokenizer, ()).token_bytes, call.tell),
                )
            except UserError:
                # Memory may have run out: the caches of other turns are dropped first.
                sources.kept.forget()
                raise
        return {**generation.to_answer(sources.said_of(source)), "reused_tokens": generation.reused_tokens}


def load_trained(
    base: Path, args: Mapping[str, Any], report: Callable[[str], None]
) -> tuple[LoadedModel, BaseFingerprint | None]:
    """Load a base with the adapter, or the trained weights, of a ``load`` command.

    Args:
        base: The directory of the base.
        args: Arguments of the command.
        report: Receives the progress.

    Returns:
        The model, ready to answer; and the fingerprint of its base, if it was compared with the fingerprint of the
        training.

    Raises:
        UserError: If they do not belong together, cannot be loaded, or do not fit.
    """
    from core.models.check import check_adapter
    from core.models.fingerprint import BaseFingerprint
    from core.worker.model.full_weights import put_weights
    from core.worker.model.model import load_model

    method, device = str(args.get("method", "lora")), str(args.get("device", "auto"))
    adapter, weights, recorded = args.get("adapter"), args.get("weights"), args.get("base_sha256")
    if adapter:
        check_adapter(Path(adapter), base)
    # Computed during the loading, which reads the same files.
    fingerprint = BaseFingerprint(base) if recorded else None
    report("loading the model")
    _ask_beside_runs(base, method, device)
    loaded = load_model(
        base,
        method=method,
        precision=str(args.get("precision", "auto")),
        device=device,
        adapter=Path(adapter) if adapter else None,
        keep_16bit=[str(entry) for entry in args.get("keep_16bit") or ()],
    )
    if fingerprint is not None:
        report("comparing the base model with that of the training")
        fingerprint.settle()
        fingerprint.require(str(recorded), str(adapter or weights))
    if weights:
        put_weights(loaded.model, Path(weights), method)
    loaded.model.eval()
    allow_fast_kernels(loaded.model)
    return loaded, fingerprint


def _ask_beside_runs(base: Path, method: str, device: str) -> None:
    """Check that a model fits beside a run on the same device, before it is loaded.

    Raises:
        UserError: If it does not.
    """
    from core.models.tensors import read_decoded, weight_files
    from core.runs.control.devices import model_bytes, refuse_crowding
    from core.worker.generate.room import free_bytes, runs_on
    from core.worker.model.device import choose_device

    chosen = choose_device(device)
    weights = read_decoded(base)
    size = 2 * weights.elements if weights.encoded else sum(path.stat().st_size for path in weight_files(base))
    refuse_crowding(model_bytes(size, method), free_bytes(chosen), lambda: runs_on(chosen))


def allow_fast_kernels(model: Any) -> None:
    """Let 4-bit layers on a CPU use bitsandbytes' inference kernel, which doubles the speed of a conversation.

    It has no backward pass, so models in training must not use it; this process never trains. It takes whole blocks
    only, and some layers, such as the input of Granite's state-space layers, are no multiple of them.
    """
    import bitsandbytes as bnb
    from bitsandbytes.functional import has_avx512bf16

    supported = bool(has_avx512bf16())
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            whole = module.out_features % _KERNEL_ROWS == 0 and module.in_features % module.weight.blocksize == 0
            module.support_avx512bf16_for_cpu = supported and whole


def main() -> None:
    """Serve until the input is closed."""
    requests, answers = private_streams()
    environment.prepare()
    CommandServer("The chat engine", ChatEngine().handlers, requests, answers).serve()


if __name__ == "__main__":
    main()

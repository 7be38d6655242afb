"""Chat: first token, decode rate and later turns beside transformers' ``generate``: ``python bench/chat.py``.

One process holds the model twice on the same device, plain and with an adapter (random, on all linear layers). The
ways to answer take turns, over several rounds, on the same prompt and the same number of tokens, greedily and without
an end; the table has the medians, the JSON file in ``bench/results`` every value. A round's shares are of the base in
that round, so that what else the machine does counts for both. With ``--llama`` the base is written as a GGUF file of
the same dtype first, and llama.cpp's library (the extra ``export``) takes its turns as well.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

_TEXT = "Ticket: the router in room 12 drops the connection every few minutes, and nobody in the office can work. "
_FOLLOW_UP = "And what would you ask the customer first?"
#: Ways to answer, by the name in the table.
_WAYS = (
    "generate, base",
    "ours, base",
    "generate, adapter",
    "ours, adapter apart",
    "ours, adapter folded in",
    "llama.cpp, base",
)


@dataclasses.dataclass(frozen=True)
class Timing:
    """Time an answer."""

    first_token_seconds: float
    tokens_per_second: float


def main() -> None:
    """Measure, print the table, and write the results."""
    options = _parse()
    from core.worker.process import environment

    environment.prepare()
    from core.worker.model.support import resolve_base

    base = resolve_base(options.base, lambda *_: None)
    bench = Bench(base, options)
    for number in range(options.rounds):
        bench.round()
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
        if options.results:
            # After each round, so that what was measured stays if it is ended.
            Path(options.results).write_text(json.dumps(bench.results(), indent=1) + "\n", encoding="utf-8")
    bench.print_table()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="smollm2-135m-instruct", help="a model's directory or name")
    parser.add_argument("--method", default="lora", choices=("lora", "qlora"), help="16 or 32 bits, or 4")
    parser.add_argument("--precision", default="auto", choices=("auto", "bf16", "fp16", "fp32"))
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--rank", type=int, default=16, help="of the adapter")
    parser.add_argument("--prompt-tokens", type=int, default=400, help="about as many")
    parser.add_argument("--tokens", type=int, default=48, help="of an answer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--cpu-time", action="store_true", help="processor time, for a CPU that others use; with OMP_NUM_THREADS=1"
    )
    parser.add_argument("--llama", action="store_true", help="llama.cpp as well, on the same weights; on the processor")
    parser.add_argument("--results", default="", help="a file for the values")
    return parser.parse_args()


class Bench:
    """The model in both forms, and what was measured.

    Args:
        base: The directory of the model.
        options: Of the command line.
    """

    def __init__(self, base: Path, options: argparse.Namespace) -> None:
        from core.worker.generate.sources import Sources
        from core.worker.model.model import load_model

        self._options = options
        loading = {"method": options.method, "precision": options.precision, "device": options.device}
        self._plain = load_model(base, **loading)
        with tempfile.TemporaryDirectory() as directory:
            _write_adapter(self._plain.model, Path(directory), base, options.rank)
            self._plain = load_model(base, **loading)
            adapted = load_model(base, **loading, adapter=Path(directory))
        for loaded in (self._plain, adapted):
            loaded.model.eval()
        self._adapted = adapted
        self._sources = Sources(adapted, base, said="adapter", has_adapter=True, template=None)
        self._messages = [{"role": "user", "content": self._prompt_text()}]
        self._timings: dict[str, list[Timing]] = {}
        self._turns: dict[str, list[float]] = {"read anew": [], "kept": []}
        self._llama = _open_gguf(base, str(self._plain.dtype)) if options.llama else None
        self.folds = False

    def _prompt_text(self) -> str:
        per_text: int = len(self._plain.tokenizer(_TEXT)["input_ids"])
        return _TEXT * max(1, self._options.prompt_tokens // per_text)

    def round(self) -> None:
        """Every way once."""
        for name, way in zip(_WAYS, self._ways(), strict=True):
            if (timing := way()) is not None:
                self._timings.setdefault(name, []).append(timing)
        for name, seconds in self._later_turn().items():
            self._turns[name].append(seconds)

    def _ways(self) -> list[Callable[[], Timing | None]]:
        return [
            lambda: self._generate(self._plain.model),
            lambda: self._ours(self._plain.model),
            lambda: self._generate(self._adapted.model),
            lambda: self._ours(self._adapted.model.get_base_model()),
            self._folded,
            self._by_llama,
        ]

    def _prompt(self, model: Any, messages: list[dict[str, str]] | None = None) -> Any:
        from core.worker.generate.generate import prepare_prompt

        found = prepare_prompt(model, self._plain.tokenizer, messages or self._messages, self._options.tokens)
        return dataclasses.replace(found, stop_ids=frozenset())

    def _ours(self, model: Any, kept: Any = None, messages: list[dict[str, str]] | None = None) -> Timing:
        from core.chat.request import GenerationSettings
        from core.worker.generate.generate import answer_prompt

        prompt = self._prompt(model, messages)

        def answer(tokens: int) -> None:
            answer_prompt(
                model,
                self._plain.tokenizer,
                dataclasses.replace(prompt, budget=tokens),
                GenerationSettings(tokens),
                lambda _text: None,
                lambda: False,
                began=time.monotonic(),
                kept=kept,
            )

        return self._timed(answer)

    def _folded(self) -> Timing | None:
        from core.worker.generate.sources import fold

        folded = fold(self._adapted.model, "default")
        self.folds = folded is not None
        if folded is None:
            return None
        try:
            return self._ours(self._adapted.model.get_base_model())
        finally:
            folded.unfold()

    def _generate(self, model: Any) -> Timing:
        """By transformers, or PEFT around it: one token, then all of them."""
        import torch

        ids = torch.tensor([self._prompt(self._plain.model).tokens], device=self._plain.device)

        def answer(tokens: int) -> None:
            with torch.no_grad():
                model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    do_sample=False,
                    max_new_tokens=tokens,
                    min_new_tokens=tokens,
                    pad_token_id=self._plain.pad_id,
                )

        return self._timed(answer)

    def _by_llama(self) -> Timing | None:
        if self._llama is None:
            return None
        from core.chat.request import GenerationSettings

        model, tokens = self._llama, self._prompt(self._plain.model).tokens
        return self._timed(
            lambda count: model.generate(tokens, GenerationSettings(count), lambda _text: None, lambda: False),
            # Another prompt, so that the keys and values of this one are gone.
            before=lambda: list(model.logits([tokens[-1]], [0])),
        )

    def _timed(self, answer: Callable[[int], object], before: Callable[[], object] = lambda: None) -> Timing:
        """Generate a token, then all of them."""
        clock = time.process_time if self._options.cpu_time else time.monotonic
        seconds = []
        for tokens in (1, self._options.tokens):
            before()
            self._synchronize()
            began = clock()
            answer(tokens)
            self._synchronize()
            seconds.append(clock() - began)
        return Timing(seconds[0], (self._options.tokens - 1) / max(seconds[1] - seconds[0], 1e-9))

    def _later_turn(self) -> dict[str, float]:
        """Seconds to the first token of a second question, the conversation read anew and its keys and values kept."""
        from core.worker.generate.generate import PrefixCache

        later = [
            *self._messages,
            {"role": "assistant", "content": "It is the network."},
            {"role": "user", "content": _FOLLOW_UP},
        ]
        kept = PrefixCache()
        self._ours(self._plain.model, kept)
        found = {"kept": self._ours(self._plain.model, kept, later).first_token_seconds}
        found["read anew"] = self._ours(self._plain.model, None, later).first_token_seconds
        return found

    def _synchronize(self) -> None:
        import torch

        if self._plain.device.type == "cuda":
            torch.cuda.synchronize()

    def print_table(self) -> None:
        """Medians, and shares of the base, round by round."""
        print(f"\n{'':26}{'first token s':>14}{'tok/s':>9}{'of generate':>13}{'of base':>9}")
        for name, timings in self._timings.items():
            first = statistics.median(each.first_token_seconds for each in timings)
            rate = statistics.median(each.tokens_per_second for each in timings)
            plain = self._share(name, "generate, base" if name.endswith("base") else "generate, adapter")
            print(f"{name:26}{first:14.3f}{rate:9.1f}{plain:13.2f}{self._share(name, 'ours, base'):9.2f}")
        for name, seconds in self._turns.items():
            print(f"{'later turn, ' + name:26}{statistics.median(seconds):14.3f}")

    def _share(self, name: str, of: str) -> float:
        pairs = zip(self._timings[name], self._timings[of], strict=True)
        return statistics.median(mine.tokens_per_second / other.tokens_per_second for mine, other in pairs)

    def results(self) -> dict[str, Any]:
        """All values, with the machine."""
        import torch
        import transformers

        device = self._plain.device
        return {
            "date": time.strftime("%Y-%m-%d"),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
            "cores": len(os.sched_getaffinity(0)),
            "dtype": str(self._plain.dtype).removeprefix("torch."),
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
            "options": {name: value for name, value in vars(self._options).items() if name != "results"},
            "prompt_tokens": len(self._prompt(self._plain.model).tokens),
            "answers": {
                name: [dataclasses.asdict(each) for each in timings] for name, timings in self._timings.items()
            },
            "later_turn_first_token_seconds": self._turns,
        }


def _open_gguf(base: Path, dtype: str) -> Any:
    """The base in llama.cpp, which goes on to the end of what it is asked for."""
    from core.worker.export.gguf.write import GgufOptions, write_gguf
    from core.worker.export.llama.model import GgufModel

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model.gguf"
        quant = {"torch.float32": "F32", "torch.float16": "F16", "torch.bfloat16": "BF16"}[dtype]
        write_gguf(base, path, quant, GgufOptions(), lambda *_: None)  # type: ignore[arg-type]
        # The file is mapped, and stays until it is closed.
        model = GgufModel(path)
    model.ends_answer = lambda _token: False  # type: ignore[method-assign]
    return model


def _write_adapter(model: Any, directory: Path, base: Path, rank: int) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear", task_type="CAUSAL_LM")
    config.base_model_name_or_path = str(base)
    adapted = get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)
    adapted.save_pretrained(str(directory))


if __name__ == "__main__":
    main()

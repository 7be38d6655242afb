"""The counts before a run and the run itself agree: same rows used, same rows dropped, same reasons."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Protocol

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.analysis.job import analyze
from core.analysis.result import Analysis, request_for
from core.analysis.survey import survey
from core.config.schema import Config
from core.errors import UserError
from core.template.settings import mask_settings
from core.worker.data.dataset import Loader
from core.worker.data.encode import Encoder
from tests.cases import cases
from tests.core.data.sample_files import json_lines, write, write_parquet
from tests.examples import examples

#: Tokens of the embedding in ``padded_model``, more than the tokenizer has.
EMBEDDED = 352


@pytest.fixture(scope="module")
def padded_model(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer whose model has a vocabulary that is filled up to a round number, as many have."""
    directory = tmp_path_factory.mktemp("padded") / "model"
    shutil.copytree(tiny_model_dir, directory, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "vocab_size": EMBEDDED}))
    return directory


class Both(Protocol):
    def __call__(self, config: Config, *, apart: bool = False) -> tuple[Analysis, dict[str, Any] | str]: ...


@pytest.fixture(scope="module")
def both(padded_model: Path) -> Both:
    """Analyze and load for a configuration: the analysis, and the run's counts or its refusal."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(padded_model)

    def look(config: Config, *, apart: bool = False) -> tuple[Analysis, dict[str, Any] | str]:
        encoder = Encoder(tokenizer, [tokenizer.eos_token_id], settings=mask_settings(config, str(padded_model)))
        analysis = (analyze if apart else survey)(request_for(config, model=str(padded_model)))
        try:
            dataset, _ = Loader(config, encoder, vocabulary=EMBEDDED).training()
        except UserError as error:
            return analysis, error.message
        event = dataset.event()
        return analysis, {"rows": event.rows, "used": event.used, "dropped": event.dropped}

    return look


def counts(analysis: Analysis) -> dict[str, Any]:
    assert analysis.rows == analysis.used + sum(analysis.dropped.values())
    for code, count in analysis.dropped.items():
        if code not in ("held_out", "not_sampled"):
            problem = analysis.problem(code)
            assert problem is not None, code
            assert (problem.count, problem.kind.level) == (count, "drop")
    return {"rows": analysis.rows, "used": analysis.used, "dropped": analysis.dropped}


def agreed(found: tuple[Analysis, dict[str, Any] | str]) -> dict[str, Any]:
    analysis, run = found
    assert counts(analysis) == run
    return counts(analysis)


def config(
    train: Path | list[Path], max_length: int = 120, seed: int = 7, objective: str = "sft", **data: Any
) -> Config:
    names = [str(path) for path in train] if isinstance(train, list) else str(train)
    train_section = {"max_length": max_length, "seed": seed, "objective": objective}
    return Config.model_validate({"data": {"train": names, **data}, "train": train_section})


def chat(question: str, answer: str = "yes", **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer, **more}]}


def line(row: Any) -> str:
    return row if isinstance(row, str) else json.dumps(row)


CASES = yaml.safe_load(Path(__file__).with_name("rows.yaml").read_text(encoding="utf-8"))
#: Rows of messages by their defect.
MESSY: dict[str, Any] = {
    **CASES["messy"],
    "long question": chat("z" * 300),
    "long answer": chat("x", "z" * 300),
}


def test_messages_with_everything_wrong(both: Both, tmp_path: Path) -> None:
    text = "".join(line(row) + "\n" for row in MESSY.values()).encode()
    path = write(tmp_path / "a.jsonl", text + b'{"messages": "\xff"}\n\n')
    found = agreed(both(config(path)))
    # The blank row does not count; the row with invalid bytes does.
    assert found["rows"] == len(MESSY)
    codes = {"not_utf8", "not_json", "no_answer", "empty_answer", "overlong", "special_in_content", "template_drops"}
    assert codes <= set(found["dropped"])
    assert found["used"] == 2


LONG_TOKENS = [{"input_ids": [5] * 200}, {"input_ids": [5] * 200, "labels": [-100] * 199 + [5]}]
LONG_CHAT = {"conversations": [{"from": "human", "value": "q" * 300}, {"from": "gpt", "value": "a"}]}


@cases("overlong", ["drop", "truncate"])
@cases(
    ("name", "content"),
    [
        ("tokens.jsonl", json_lines([*CASES["tokens"], *LONG_TOKENS])),
        ("sharegpt.jsonl", json_lines([*CASES["sharegpt"], LONG_CHAT])),
        ("alpaca.json", json.dumps(CASES["alpaca"])),
        ("pairs.csv", 'prompt,completion\nq,a\n"a, b",c\nq\nq,a,b\n,\nq,"' + "z" * 400 + '"\n'),
        ("text.txt", "plain words\n\n \t \n" + "z" * 400 + "\nmore\r\n"),
        ("cut.json", '[{"prompt": "q", "completion": "a"}, {"prompt": "q", "compl'),
    ],
)
def test_every_format_is_counted_alike(both: Both, tmp_path: Path, name: str, content: str, overlong: str) -> None:
    found = agreed(both(config(write(tmp_path / name, content), overlong=overlong)))
    assert found["used"] >= 1
    assert found["dropped"] or (name, overlong) == ("text.txt", "truncate")


def test_the_vocabulary_is_the_models_and_not_the_tokenizers(both: Both, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", json_lines([{"input_ids": [5, EMBEDDED - 1]}, {"input_ids": [5, EMBEDDED]}]))
    found = agreed(both(config(path)))
    assert found == {"rows": 2, "used": 1, "dropped": {"bad_tokens": 1}}


def test_several_sources_shards_and_registries_with_a_limit(both: Both, tmp_path: Path) -> None:
    messy = [line(row) for row in MESSY.values()]
    shards = tmp_path / "shards"
    write(shards / "part-1.jsonl", "\n".join(messy))
    write(shards / "part-2.jsonl", "\n".join(messy[:4]))
    # Rows behind the limit have another format, which must not affect detection.
    capped = [{"prompt": f"q{n}", "completion": "a" if n % 2 else ""} for n in range(7)]
    others = [{"text": "t"}] * 100
    write(tmp_path / "capped.jsonl", json_lines([*capped, *others]))
    registry = {"capped": {"file_name": "capped.jsonl", "columns": {"prompt": "prompt", "response": "completion"}}}
    registry["capped"]["num_samples"] = 7  # type: ignore[assignment]
    write(tmp_path / "dataset_info.json", json.dumps(registry))
    table = write_parquet(tmp_path / "t.parquet", [{"text": "one"}, {"text": None}, {"text": " "}, {"text": "z" * 400}])
    sources = [shards, tmp_path / "dataset_info.json#capped", table]
    found = agreed(both(config(sources)))
    assert found["rows"] == (len(messy) - 1) + 3 + 7 + 4
    assert agreed(both(config(sources, weights=[2, 0.5, 1])))["dropped"]["not_sampled"] == 1
    assert agreed(both(config(sources, eval_share=0.3)))["dropped"]["held_out"] >= 1


@pytest.mark.parametrize(
    "good", [{"prompt": "q", "chosen": "a", "rejected": "b"}, {"prompt": "q", "completion": "a", "label": True}]
)
def test_formats_that_are_not_trained_on_use_no_row(both: Both, tmp_path: Path, good: dict[str, Any]) -> None:
    path = write(tmp_path / "a.jsonl", json_lines([good, good, {**good, "prompt": ""}]) + "{broken\n")
    analysis, refusal = both(config(path))
    assert isinstance(refusal, str)
    assert "train.objective is sft" in refusal
    assert counts(analysis)["used"] == 0
    assert analysis.dropped == {"not_trained_on": 3, "not_json": 1}
    assert analysis.lengths is not None
    assert analysis.lengths.rows == 3
    without = survey(request_for(config(path), model=None))
    assert without.dropped == analysis.dropped


@pytest.mark.parametrize("objective", ["dpo", "orpo"])
def test_pairs_count_as_a_run_counts_them(both: Both, tmp_path: Path, objective: str) -> None:
    pairs: list[dict[str, Any]] = [
        {"prompt": "q", "chosen": "a", "rejected": "bb"},
        {"prompt": "r", "chosen": "a", "rejected": "b" * 300},
        {"prompt": "s", "chosen": "a", "rejected": "x <|im_end|> y"},
    ]
    path = write(tmp_path / "a.jsonl", json_lines([*pairs, chat("q")]))
    analysis, run = both(config(path, max_length=128, objective=objective))
    assert counts(analysis) == run
    assert analysis.used == 1
    assert analysis.dropped == {"overlong": 1, "special_in_content": 1, "wrong_keys": 1}
    assert analysis.lengths is not None
    assert analysis.lengths.max > 300, "the longer answer is the length of a pair"


def test_rows_too_long_where_a_run_is_refused_for_them(both: Both, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", json_lines([chat("q"), chat("z" * 300), chat("z" * 400)]))
    analysis, refusal = both(config(path, overlong="refuse"))
    assert isinstance(refusal, str)
    assert counts(analysis)["dropped"] == {"overlong": 2}
    problem = analysis.problem("overlong")
    assert problem is not None
    assert "A run is refused" in problem.detail
    assert refusal.endswith(problem.detail.partition(" A run")[0])
    agreed(both(config(path, 1000, overlong="refuse")))


def test_many_rows_looked_at_by_several_processes(both: Both, tmp_path: Path) -> None:
    rows = [line(row) for row in MESSY.values() if row != MESSY["blank"]]
    path = write(tmp_path / "a.jsonl", "\n".join(rows[number % len(rows)] for number in range(4000)))
    settled = config(path, overlong="truncate", eval_share=0.1)
    analysis, run = both(settled, apart=True)
    assert counts(analysis) == run
    assert analysis.rows == 4000


@settings(max_examples=examples(40), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kinds=st.lists(st.sampled_from(sorted(MESSY)), min_size=1, max_size=40),
    overlong=st.sampled_from(["drop", "truncate"]),
    supervise=st.sampled_from(["assistant", "last", "all"]),
    special=st.sampled_from(["drop", "keep"]),
    share=st.sampled_from([0.0, 0.1, 0.5]),
    weight=st.sampled_from([0.3, 1, 1.5]),
    seed=st.integers(0, 9),
)
def test_any_rows_and_any_options(
    both: Both,
    tmp_path: Path,
    kinds: list[str],
    overlong: str,
    supervise: str,
    special: str,
    share: float,
    weight: float,
    seed: int,
) -> None:
    rows = [chat(f"question {n}") if kind == "" else MESSY[kind] for n, kind in enumerate(kinds)]
    path = write(tmp_path / "a.jsonl", "".join(line(row) + "\n" for row in [MESSY["no_messages"], *rows, chat("end")]))
    data: dict[str, Any] = {"overlong": overlong, "supervise": supervise, "special_tokens": special}
    analysis, run = both(config(path, seed=seed, eval_share=share, weights=[weight], **data))
    found = counts(analysis)
    if run == "No row can be held out: all rows are the same.":
        assert share
        assert "held_out" not in found["dropped"]
    else:
        assert found == run

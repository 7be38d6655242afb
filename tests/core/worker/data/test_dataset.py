"""Tokenized datasets from data files, with every row accounted for."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.analysis.preflight import Preflight
from core.config.schema import Config
from core.errors import UserError
from core.worker.data.batches import fingerprint
from core.worker.data.dataset import CHUNK_ROWS, Dataset, Loader
from core.worker.data.encode import Encoder
from core.worker.process.control import StopRequested


@pytest.fixture(scope="module")
def encoder(tiny_model_dir: Path) -> Encoder:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    return Encoder(tokenizer, [tokenizer.eos_token_id])


def config(**sections: dict[str, Any]) -> Config:
    return Config.model_validate({"data": {"train": "unused"} | sections.pop("data", {}), **sections})


def load_dataset(
    paths: str | list[str], options: Config, encoder: Encoder, limit: int | None = None, **others: Any
) -> Dataset:
    return Loader(options, encoder, **others).load(paths, limit=limit)


def chat(question: str, answer: str = "yes") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def decode(encoder: Encoder, dataset: Dataset, row: int, *, learned: bool) -> str:
    tokens = dataset.rows[row]
    ids = tokens.input_ids[tokens.supervised] if learned else tokens.input_ids
    return str(encoder.tokenizer.decode(ids))


def test_rows_with_pictures_are_dropped_and_unread_columns_kept(encoder: Encoder, tmp_path: Path) -> None:
    shown = {**chat("<image>what is this"), "images": ["a.png"]}
    path = write(tmp_path / "a.jsonl", shown, {**chat("how"), "images": [], "id": 1}, {**chat("why"), "tag": "x"})
    dataset = load_dataset(path, config(), encoder)
    assert [example.prompt[0].content for example in dataset.examples] == ["how", "why"]
    assert dataset.dropped == {"has_media": 1}
    assert dataset.unread == {path: {"id": 1, "tag": 1}}
    with pytest.raises(UserError, match=r"\(2 x has_media\).*line 1: The column images holds pictures") as caught:
        load_dataset(write(tmp_path / "b.jsonl", shown, {**chat("this"), "audio": "a.wav"}), config(), encoder)
    assert "Only text is read" in caught.value.hint


def test_rows_are_rendered_with_the_answers_marked(encoder: Encoder, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", chat("how", "so"), chat("why", "because"))
    dataset = load_dataset(path, config(), encoder)
    assert decode(encoder, dataset, 1, learned=False) == (
        "<|im_start|>user\nwhy<|im_end|>\n<|im_start|>assistant\nbecause<|im_end|>\n"
    )
    assert decode(encoder, dataset, 1, learned=True) == "because<|im_end|>"
    assert [example.answer for example in dataset.examples] == ["so", "because"]
    event = dataset.event()
    assert (event.rows, event.used, event.dropped) == (2, 2, {})
    assert event.tokens == sum(dataset.lengths)
    assert event.longest == max(dataset.lengths)
    assert event.supervised_tokens == sum(int(row.supervised.sum()) for row in dataset.rows)


def test_files_of_different_formats_are_read_one_after_another(encoder: Encoder, tmp_path: Path) -> None:
    paths = [
        write(tmp_path / "a.jsonl", chat("one")),
        write(tmp_path / "b.jsonl", {"prompt": "two", "completion": "deux"}),
        write(tmp_path / "c.jsonl", {"text": "plain words"}),
        write(tmp_path / "d.jsonl", tokens(5, 6)),
    ]
    dataset = load_dataset(paths, config(), encoder)
    assert [example.answer for example in dataset.examples] == ["yes", "deux", "", ""]
    assert decode(encoder, dataset, 0, learned=True) == "yes<|im_end|>"
    assert decode(encoder, dataset, 2, learned=False) == "plain words<|im_end|>"
    assert dataset.rows[3].input_ids.tolist() == [5, 6]
    formats = [text.split(":")[0] for text in dataset.formats.values()]
    assert formats == ["messages", "prompt_completion", "text", "tokens"]


def test_of_every_row_it_is_known_where_it_comes_from(encoder: Encoder, tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", *[chat(f"question {number}") for number in range(6)], "no json", chat("last"))
    second = write(tmp_path / "b.jsonl", chat("of b"), chat("more of b"))
    settings = config(data={"train": [first, second], "weights": [1, 2], "eval_share": 0.3})
    dataset, held_out = Loader(settings, encoder).training()
    assert held_out is not None
    lines = {Path(path).name: Path(path).read_text().splitlines() for path in (first, second)}
    for rows in (dataset, held_out):
        assert len(rows.places) == len(rows.rows) == len(rows.examples)
        for position, example in enumerate(rows.examples):
            path, _, line = rows.place(position).rpartition(" line ")
            assert json.loads(lines[path][int(line) - 1])["messages"][0]["content"] == example.messages[0].content
    assert dataset.repeated


def test_unusable_rows_are_counted_and_the_first_of_each_kind_is_named(encoder: Encoder, tmp_path: Path) -> None:
    rows = [chat("fine"), "{not json", chat("long " * 100), {"messages": []}, "[1]", chat("x", " "), chat("last")]
    dataset = load_dataset(write(tmp_path / "mixed.jsonl", *rows), config(train={"max_length": 100}), encoder)
    event = dataset.event()
    assert event.used == 2
    assert event.rows == 7 == event.used + sum(event.dropped.values())
    assert event.dropped == {
        "not_json": 1, "overlong": 1, "no_messages": 1, "not_an_object": 1, "empty_answer": 1,
    }  # fmt: skip
    assert dataset.first_dropped["not_json"].startswith("mixed.jsonl, line 2: ")
    assert dataset.first_dropped["overlong"].startswith("mixed.jsonl, line 3: ")


def test_an_example_of_several_rows_counts_once(encoder: Encoder, tmp_path: Path) -> None:
    template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n"
        "{{ message.content if loop.last or message.role == 'user' else message.content.split('</think>')[-1] }}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    thinking = Encoder(encoder.tokenizer, [encoder.tokenizer.eos_token_id], template)
    two = {"messages": chat("a", "<think>x</think>b")["messages"] + chat("c", "<think>y</think>d")["messages"]}
    path = write(tmp_path / "a.jsonl", two, chat("plain"), "{broken", two)
    dataset = load_dataset(path, config(), thinking)
    event = dataset.event()
    assert (event.rows, event.used, event.dropped, len(dataset.rows)) == (4, 3, {"not_json": 1}, 5)
    assert len(dataset.examples) == len(dataset.rows)
    assert decode(thinking, dataset, 0, learned=True) == "<think>y</think>d<|im_end|>"
    assert decode(thinking, dataset, 1, learned=True) == "<think>x</think>b<|im_end|>"
    # All rows of an example are held out together, and too long a one takes the others with it.
    divided, held_out = Loader(config(data={"train": path, "eval_share": 0.5}), thinking).training()
    assert held_out is not None
    assert {id(example) for example in divided.examples}.isdisjoint(id(example) for example in held_out.examples)
    assert divided.event().rows == divided.event().used + sum(divided.event().dropped.values())
    short = load_dataset(path, config(train={"max_length": dataset.lengths[1] + 1}), thinking)
    assert short.event().dropped == {"not_json": 1, "overlong": 2}
    assert len(short.rows) == 1


def test_long_rows_are_cut_if_configured(encoder: Encoder, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", chat("short"), chat("x", "y" * 200), chat("z" * 200, "never reached"))
    dataset = load_dataset(path, config(train={"max_length": 60}, data={"overlong": "truncate"}), encoder)
    assert dataset.lengths[1] == 60
    assert decode(encoder, dataset, 1, learned=True).startswith("yyy")
    assert dataset.dropped == {"nothing_supervised": 1}


def test_long_rows_are_refused_if_configured(encoder: Encoder, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", chat("short"), "", chat("z" * 200))
    with pytest.raises(UserError, match=r"a\.jsonl, line 3: The row has \d+ tokens") as caught:
        load_dataset(path, config(train={"max_length": 60}, data={"overlong": "refuse"}), encoder)
    assert "train.max_length" in caught.value.hint


@pytest.mark.parametrize("broken", [False, True])
def test_data_without_usable_rows_is_an_error_with_reasons(encoder: Encoder, tmp_path: Path, broken: bool) -> None:
    path = write(tmp_path / "a.jsonl", chat("z" * 200), chat("z" * 300))
    template = "{% for message in %}" if broken else None
    ours = Encoder(encoder.tokenizer, [encoder.tokenizer.eos_token_id], template)
    code = "template_error" if broken else "overlong"
    with pytest.raises(
        UserError, match=rf"No row of .*a\.jsonl can be used \(2 x {code}\)\. a\.jsonl, line 1: "
    ) as error:
        load_dataset(path, config(train={"max_length": 60}), ours)
    assert error.value.hint.endswith("template.file.") is broken


def test_loading_reports_progress_which_can_stop_it_and_a_limit_ends_it(encoder: Encoder, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *(chat(f"question {number}") for number in range(2 * CHUNK_ROWS + 1)))
    told: list[int] = []
    dataset = load_dataset(path, config(), encoder, progress=told.append)
    assert told == [CHUNK_ROWS, 2 * CHUNK_ROWS, 2 * CHUNK_ROWS + 1]
    assert all(row.input_ids.dtype == np.int32 for row in dataset.rows)
    never_opened = str(tmp_path / "never-opened.jsonl")
    few = load_dataset([path, never_opened], config(), encoder, limit=5, progress=told.append)
    assert few.examples == dataset.examples[:5]
    assert (few.event().rows, told[3:]) == (5, [5])

    def stop(_: int) -> None:
        raise StopRequested("SIGTERM")

    with pytest.raises(StopRequested):
        load_dataset(path, config(), encoder, progress=stop)


def test_a_stop_is_heard_during_the_search_for_leaked_held_out_rows(encoder: Encoder, tmp_path: Path) -> None:
    train = write(tmp_path / "a.jsonl", *(chat(f"question {number}") for number in range(CHUNK_ROWS)))
    held_out = write(tmp_path / "b.jsonl", chat("another"))
    told: list[int] = []

    def progress(rows: int) -> None:
        told.append(rows)
        if told.count(CHUNK_ROWS) == 2:
            raise StopRequested("SIGTERM")

    settings = config(data={"train": train, "eval": held_out})
    with pytest.raises(StopRequested):
        Loader(settings, encoder, progress=progress, preflight=Preflight(frozenset(), lambda *_: None)).training()
    assert told == [CHUNK_ROWS, 1, CHUNK_ROWS]


# Sources, splits and weights.


def tokens(*ids: int, labels: list[int] | None = None) -> dict[str, Any]:
    return {"input_ids": list(ids)} | ({"labels": labels} if labels else {})


def test_rows_that_are_tokens_already(encoder: Encoder, tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl",
        tokens(5, 6, 7, labels=[-100, 6, 7]),
        tokens(5, 6),
        tokens(5, 9999),
        tokens(5, 6, labels=[-100, -100]),
    )
    dataset, _ = Loader(config(data={"train": path}), encoder, vocabulary=320).training()
    assert [row.input_ids.tolist() for row in dataset.rows] == [[5, 6, 7], [5, 6]]
    assert [row.supervised.tolist() for row in dataset.rows] == [[False, True, True], [False, True]]
    assert dataset.dropped == {"bad_tokens": 1, "nothing_supervised": 1}
    assert "the model knows those below 320" in dataset.first_dropped["bad_tokens"]


def test_preference_pairs_are_for_another_objective(encoder: Encoder, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"prompt": "q", "chosen": "good", "rejected": "bad"})
    with pytest.raises(UserError, match=r"holds preference pairs, and train\.objective is sft"):
        load_dataset(path, config(), encoder)
    columns = {"user": "prompt", "assistant": "chosen"}
    dataset = load_dataset(path, config(data={"columns": columns}), encoder)
    assert decode(encoder, dataset, 0, learned=True) == "good<|im_end|>"


def test_a_pair_is_two_sequences_of_one_row(encoder: Encoder, tmp_path: Path) -> None:
    pairs = [
        {"prompt": "q", "chosen": "good", "rejected": "not so good"},
        {"prompt": "q", "chosen": "a", "rejected": "b" * 100},
    ]
    path = write(tmp_path / "a.jsonl", *pairs)
    dataset = load_dataset(path, config(train={"objective": "dpo", "max_length": 64}), encoder)
    assert dataset.dropped == {"overlong": 1}, "the longer answer counts"
    (row,) = dataset.rows
    assert row.rejected is not None
    learned = [encoder.tokenizer.decode(part.input_ids[part.supervised]) for part in row.sequences]
    assert learned == ["good<|im_end|>", "not so good<|im_end|>"]
    prompt = int(row.supervised.argmax())
    assert row.input_ids[:prompt].tolist() == row.rejected.input_ids[:prompt].tolist()
    assert dataset.lengths == [len(row.rejected)]
    event = dataset.event()
    assert (event.used, event.tokens, event.longest) == (1, len(row) + len(row.rejected), len(row.rejected))
    assert event.supervised_tokens == int(row.supervised.sum() + row.rejected.supervised.sum())
    settings = config(train={"objective": "orpo", "max_length": 64}, data={"overlong": "truncate"})
    cut = load_dataset(path, settings, encoder).rows[1]
    assert [len(part) for part in cut.sequences] == [len(cut), 64]
    assert fingerprint([row]) != fingerprint([dataclasses.replace(row, rejected=None)])


def test_a_label_stays_with_its_row(encoder: Encoder, tmp_path: Path) -> None:
    rows = [{"prompt": "q", "completion": "a", "label": label} for label in (True, False)]
    path = write(tmp_path / "a.jsonl", *rows)
    dataset = load_dataset(path, config(train={"objective": "kto"}), encoder)
    assert [row.label for row in dataset.rows] == [True, False]
    assert fingerprint(dataset.rows) != fingerprint(dataset.rows[::-1])
    with pytest.raises(UserError, match=r"train\.objective is dpo, which learns from preference pairs"):
        load_dataset(path, config(train={"objective": "dpo"}), encoder)


def test_the_columns_of_the_configuration_and_of_an_entry(encoder: Encoder, tmp_path: Path) -> None:
    plain = write(tmp_path / "a.jsonl", {"q": "x", "a": "plain"})
    write(tmp_path / "b.jsonl", {"frage": "x", "antwort": "entry"})
    entry = {"file_name": "b.jsonl", "columns": {"prompt": "frage", "response": "antwort"}}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": entry}))
    train = [plain, str(tmp_path / "dataset_info.json#mine")]
    dataset, _ = Loader(config(data={"train": train, "columns": {"user": "q", "assistant": "a"}}), encoder).training()
    assert [example.answer for example in dataset.examples] == ["plain", "entry"]
    assert all("columns are named" in reason for reason in dataset.formats.values())


def test_a_share_is_held_out_and_copies_do_not_cross(encoder: Encoder, tmp_path: Path) -> None:
    rows = [chat(f"q{number % 20}") for number in range(40)]
    path = write(tmp_path / "a.jsonl", *rows, "broken")
    settings = config(data={"train": path, "eval_share": 0.2}, eval={"max_rows": 6})
    dataset, held_out = Loader(settings, encoder).training()
    assert held_out is not None
    event = dataset.event()
    assert (event.rows, event.used, event.dropped) == (41, 32, {"held_out": 8, "not_json": 1})
    assert len(held_out.rows) == len(held_out.examples) == 6
    assert not set(held_out.examples) & set(dataset.examples)
    again, _ = Loader(settings, encoder).training()
    assert again.examples == dataset.examples


def test_nothing_can_be_held_out_of_equal_rows(encoder: Encoder, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", chat("same"), chat("same"))
    with pytest.raises(UserError, match="all rows are the same"):
        Loader(config(data={"train": path, "eval_share": 0.1}), encoder).training()


def test_weights_repeat_and_leave_out(encoder: Encoder, tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", *(chat(f"a{number}") for number in range(4)))
    second = write(tmp_path / "b.jsonl", *(chat(f"b{number}") for number in range(10)))
    settings = config(data={"train": [first, second], "weights": [2.5, 0.3]})
    dataset, held_out = Loader(settings, encoder).training()
    asked = [example.messages[0].content for example in dataset.examples]
    assert held_out is None
    assert sorted(asked.count(f"a{number}") for number in range(4)) == [2, 2, 3, 3]
    assert sum(name.startswith("b") for name in asked) == len({name for name in asked if name.startswith("b")}) == 3
    event = dataset.event()
    assert (event.rows, event.used, event.dropped) == (14, 7, {"not_sampled": 7})
    assert event.tokens == sum(dataset.lengths)
    assert len(dataset.rows) == len(dataset.examples) == 13
    assert Loader(settings, encoder).training()[0].examples == dataset.examples


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kinds=st.lists(st.sampled_from(["good", "same", "broken", "empty", "no messages", "long"]), max_size=30),
    share=st.sampled_from([0.0, 0.1, 0.5]),
    weight=st.sampled_from([0.5, 1.0, 1.5]),
    limit=st.none() | st.integers(1, 10),
)
def test_every_row_is_used_or_dropped_for_a_reason(
    encoder: Encoder, tmp_path: Path, kinds: list[str], share: float, weight: float, limit: int | None
) -> None:
    texts = {"same": chat("same"), "broken": "{", "empty": chat("x", " "), "long": chat("y" * 400)}
    texts["no messages"] = {"messages": []}
    rows = [texts.get(kind, chat(f"q{number}")) for number, kind in enumerate(kinds)]
    path = write(tmp_path / "a.jsonl", chat("first"), *rows)
    limited = load_dataset(path, config(train={"max_length": 100}), encoder, limit=limit)
    usable = 1 + sum(kind in ("good", "same") for kind in kinds)
    event = limited.event()
    assert event.used == len(limited.examples) == min(usable, limit or usable)
    assert event.rows == event.used + sum(event.dropped.values())
    assert limit is not None or event.rows == len(rows) + 1
    loader = Loader(
        config(data={"train": path, "eval_share": share, "weights": [weight]}, train={"max_length": 100}), encoder
    )
    if share and usable == 1:
        with pytest.raises(UserError, match="held out"):
            loader.training()
        return
    dataset, _ = loader.training()
    event = dataset.event()
    assert event.rows == len(rows) + 1 == event.used + sum(event.dropped.values())
    assert event.used == len({id(row) for row in dataset.rows})

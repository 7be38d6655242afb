"""Text segments: tokenized one by one, trained on by label, without a template."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from core.data.conversation import Example, RowError, Segment, make_segments
from core.template.mask import Masker
from core.template.row_tokenizer import MaskedRow
from core.template.tokenizer import load_tokenizer

_PARTS = st.lists(st.tuples(st.text(alphabet="the ticket<|im_end|>\n", max_size=12), st.booleans()), max_size=5)


def masked(directory: Path, example: Example) -> MaskedRow:
    (row,) = Masker(load_tokenizer(directory)).mask([example])
    assert isinstance(row, MaskedRow)
    return row


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=_PARTS, framed=st.booleans())
def test_each_segment_is_tokenized_by_itself(tiny_model_dir: Path, parts: list[tuple[str, bool]], framed: bool) -> None:
    backend = Tokenizer.from_file(str(tiny_model_dir / "tokenizer.json"))
    try:
        example = make_segments([Segment(text, train) for text, train in parts], is_framed=framed)
    except RowError:
        return
    wanted: list[tuple[int, bool]] = []
    for text, train in parts:
        wanted += [(token, train) for token in backend.encode(text, add_special_tokens=False).ids]
    end = int(backend.token_to_id("<|im_end|>") or 0)
    if framed and wanted[-1][0] != end:
        wanted.append((end, parts[-1][1]))
    (row,) = Masker(load_tokenizer(tiny_model_dir)).mask([example])
    if not any(train for _, train in wanted[1:]):
        # The first token of a row is never predicted.
        assert isinstance(row, RowError)
        assert row.code == "nothing_supervised"
        return
    assert isinstance(row, MaskedRow)
    wanted[0] = (wanted[0][0], False)
    assert list(zip(row.input_ids, map(bool, row.supervised), strict=True)) == wanted


def test_the_worker_makes_the_same_of_it(tiny_model_dir: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from core.worker.data.encode import Encoder, TokenizedRow

    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_model_dir)
    example = make_segments([Segment("a <|im_start|>", False), Segment("b<|im_end|>", True)])
    (encoded,) = Encoder(tokenizer, [tokenizer.eos_token_id]).encode([example])
    assert isinstance(encoded, TokenizedRow)
    row = masked(tiny_model_dir, example)
    assert encoded.input_ids.tolist() == list(row.input_ids)
    assert encoded.supervised.tolist() == [bool(learned) for learned in row.supervised]

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.analysis.division import repeats
from core.config.document import ConfigDocument
from core.errors import UserError
from core.queue.entry import words_of
from core.queue.sweep import MOST_VARIANTS, Axis, axis_of, combinations, make_variants, parse_axis
from tests.cases import cases


@cases(
    ("text", "values"),
    [
        ("1e-4, 2e-4", ("1e-4", "2e-4")),
        ('["q_proj","v_proj"],all-linear', ('["q_proj","v_proj"]', "all-linear")),
        ('"a,b",c', ('"a,b"', "c")),
        ("a", ("a",)),
    ],
)
def test_commas_in_brackets_and_quotes_belong_to_a_value(text: str, values: tuple[str, ...]) -> None:
    assert parse_axis(f"train.seed={text}") == Axis("train.seed", values)


@cases("text", ["", "=1,2", "a=", "a=1,", "a", "a=1,,2"])
def test_an_axis_without_a_name_or_a_value_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="names no option with values"):
        parse_axis(text)


def test_an_option_that_does_not_exist_is_refused_with_the_one_that_was_meant() -> None:
    with pytest.raises(UserError, match="There is no option lr") as error:
        parse_axis("lr = 1e-3")
    assert error.value.hint == "Did you mean train.learning_rate?"


AXES = st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=4, unique=True), min_size=1, max_size=4).map(
    lambda lists: [Axis(f"a.b{place}", tuple(map(str, values))) for place, values in enumerate(lists)]
)


@given(AXES)
def test_all_combinations_are_there_once_the_last_axis_varying_fastest(axes: list[Axis]) -> None:
    found = combinations(axes)
    assert len(found) == len(set(found)) == math.prod(len(axis.values) for axis in axes)
    assert found[0] == tuple(f"{axis.name}={axis.values[0]}" for axis in axes)
    if len(axes[-1].values) > 1:
        assert found[1][:-1] == found[0][:-1]


@given(AXES, st.integers(1, 20), st.integers(0, 5))
def test_a_choice_is_of_the_combinations_and_can_be_made_again(axes: list[Axis], count: int, seed: int) -> None:
    every, some = combinations(axes), combinations(axes, count, seed)
    assert set(some) <= set(every)
    assert len(some) == min(count, len(every))
    assert some == combinations(axes, count, seed)


def test_too_many_runs_are_refused_and_some_of_very_many_are_chosen() -> None:
    axes = [Axis(f"a.b{place}", tuple(map(str, range(50)))) for place in range(6)]
    with pytest.raises(UserError, match=f"a sweep has {MOST_VARIANTS} at most"):
        combinations(axes)
    assert len(combinations(axes, 10)) == 10
    with pytest.raises(UserError, match="twice"):
        combinations([axes[0], axes[0]])


def test_variants_are_whole_configurations(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text('[data]\ntrain = "rows.jsonl"\n[method]\nrank = 4\n[train]\nseed = 3\n')
    choices = combinations([parse_axis("method.rank=8,16"), parse_axis('method.target_modules=["q_proj"],all-linear')])
    variants = make_variants(ConfigDocument.load(path), choices)
    assert [variant.config.method.rank for variant in variants] == [8, 8, 16, 16]
    assert {variant.config.train.seed for variant in variants} == {3}
    assert variants[0].config.data.train == str(tmp_path / "rows.jsonl")
    assert dict(variants[0].values) == {"method.rank": 8, "method.target_modules": ["q_proj"]}
    assert words_of({"train.learning_rate": 1e-4, "method.rank": 8}) == "learning_rate 0.0001, rank 8"
    with pytest.raises(UserError) as error:
        make_variants(ConfigDocument.load(path), combinations([parse_axis("method.rank=8,0")]))
    assert "It is the variant method.rank=0." in error.value.hint


def test_shares_of_the_rows_are_weights_of_which_the_smaller_is_a_part_of_the_larger() -> None:
    document = ConfigDocument('[data]\ntrain = ["a.jsonl", "b.jsonl"]\nweights = [1, 0.5]\n')
    axis = axis_of("share = 0.25, 0.5, 1", document)
    variants = make_variants(document, combinations([axis]))
    assert [variant.config.data.weights for variant in variants] == [[0.25, 0.125], [0.5, 0.25], [1.0, 0.5]]
    keys = [bytes([number]) for number in range(100)]
    chosen = [{place for place, count in enumerate(repeats(keys, weight, 42)) if count} for weight in (0.25, 0.5, 1.0)]
    assert chosen[0] < chosen[1] < chosen[2]
    assert list(map(len, chosen)) == [25, 50, 100]


@cases(
    ("text", "weights", "said"),
    [
        ("share = 0.5, 2", "1", "2 is no share of the rows"),
        ("share = half", "1", "half is no share of the rows"),
        ("share = 0.5, 0.50", "1", "named twice"),
        ("share = 0.5, 1", "3", "uses rows more than once"),
    ],
)
def test_what_is_no_share_of_the_rows_is_refused(text: str, weights: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        axis_of(text, ConfigDocument(f'[data]\ntrain = "a.jsonl"\nweights = [{weights}]\n'))

"""Options that the method or the objective in force does not use."""

from __future__ import annotations

from core.config.derived import _USERS, used_by
from core.config.schema import options


def test_every_name_is_an_option_and_every_user_a_value() -> None:
    known = {option.name: option for option in options()}
    for name, (decides, users) in _USERS.items():
        assert name in known
        assert set(users) < set(known[decides].choices)


def test_options_of_other_methods_name_theirs() -> None:
    values = {"method.name": "qlora", "train.objective": "sft"}
    assert used_by("method.trainable_layers", values.__getitem__) == ("freeze",)
    assert used_by("method.rank", values.__getitem__) == ()
    assert used_by("train.beta", values.__getitem__) == ("dpo", "orpo", "kto")
    assert used_by("train.epochs", values.__getitem__) == ()
    values["method.name"] = "full"
    assert used_by("method.rank", values.__getitem__) == ("qlora", "lora")

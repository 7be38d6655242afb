from __future__ import annotations

from core.hardware.xid import explain_xid
from tests.cases import cases


@cases("code", [13, 31, 43, 45, 48, 62, 63, 64, 74, 79, 94, 95, 119])
def test_what_is_met_has_words_of_its_own(code: int) -> None:
    meaning = explain_xid(code)
    assert meaning != explain_xid(99999)
    assert meaning.words[0].islower()
    assert not meaning.words.endswith(".")
    assert meaning.hint.endswith(".")


def test_what_stops_a_card_is_an_error_and_what_a_program_did_is_not() -> None:
    assert {explain_xid(code).level for code in (48, 62, 64, 74, 79, 95)} == {"error"}
    assert {explain_xid(code).level for code in (13, 31, 43, 63, 99999)} == {"warning"}
    assert explain_xid(45).level == "info"
    assert "fallen off the bus" in explain_xid(79).words

"""The contracts that others rely on: users' files and scripts, and runs of earlier versions.

``contracts.json`` lists them. A failure names the changed contract with its missing and new lines. Intended additions
go into the file by ``python -m tests.contracts.collect``; a missing part breaks somebody's work.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.cases import cases
from tests.contracts.collect import HOME, SEEN_IN_A_RUN, assert_contract, contracts, written_down

LISTED = written_down()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(HOME, tmp_path_factory.mktemp("contracts") / "home"))


@cases("name", [name for name in LISTED if name not in SEEN_IN_A_RUN])
def test_the_contract_is_what_the_code_says(name: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALTUNE_HOME", str(home))
    assert_contract(name, contracts(home)[name]())


def test_all_are_listed(home: Path) -> None:
    assert set(LISTED) == {*contracts(home), *SEEN_IN_A_RUN}

"""The oldest versions that are allowed, against the advisories that are known: a bound must be above each hole."""

from __future__ import annotations

import re
from pathlib import Path

import tomli
from packaging.requirements import Requirement
from packaging.version import Version

from core.commands.checks.security import HOLES
from tests.cases import cases, tables

ROOT = Path(__file__).parents[1]
#: Package, first version without the hole, and the number of its advisory; beside those that ``doctor`` looks for.
#: Not here: holes in what is never called (CVE-2026-4538, torch's ``pt2`` archives), and in what runs the tests alone.
ADVISORIES: tuple[tuple[str, str, str], ...] = tables(__file__)["advisories"]


def normal(name: str) -> str:
    """The name of a package as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned(text: str) -> dict[str, list[Version]]:
    """The versions of each package in a file of constraints."""
    found: dict[str, list[Version]] = {}
    for line in text.splitlines():
        if line and not line.lstrip().startswith("#"):
            requirement = Requirement(line)
            (pin,) = requirement.specifier
            found.setdefault(normal(requirement.name), []).append(Version(pin.version))
    return found


def bounds(text: str) -> dict[str, list[Version]]:
    """The lower bounds of each package in a project file, those of its extras too."""
    project = tomli.loads(text)["project"]
    extras = project.get("optional-dependencies", {})
    found: dict[str, list[Version]] = {}
    for line in [*project["dependencies"], *(line for extra in extras.values() for line in extra)]:
        requirement = Requirement(line)
        lower = [Version(part.version) for part in requirement.specifier if part.operator in (">=", "==", "~=")]
        # Without a bound, any version is allowed.
        found.setdefault(normal(requirement.name), []).append(max(lower, default=Version("0")))
    return found


def holes(versions: dict[str, list[Version]]) -> list[str]:
    """The advisories that one of the versions is open to."""
    return [
        f"{name} {version} is open to {number}, closed in {fixed}"
        for name, fixed, number in ADVISORIES
        for version in versions.get(name, [])
        if version < Version(fixed)
    ]


@cases("name", ["constraints-floor.txt", "constraints.txt"])
def test_no_installed_version_has_a_known_hole(name: str) -> None:
    found = pinned((ROOT / name).read_text())
    assert holes(found) == []
    assert {name for name, *_ in HOLES} <= set(found)


def test_no_bound_lets_a_known_hole_in() -> None:
    found = bounds((ROOT / "pyproject.toml").read_text())
    assert holes(found) == []
    direct = {"h11", "jinja2", "protobuf", "pyarrow", "pydantic", "pyyaml", "sentencepiece", "starlette"}
    assert direct | {"torch", "transformers"} <= set(found), "a bound that is gone bounds nothing"


def test_an_open_hole_is_found() -> None:
    old = pinned("# made\nsentencepiece==0.2.0 ; sys_platform == 'linux'\nh11==0.14.0\nstarlette==1.3.0\n")
    assert [line.partition(",")[0] for line in holes(old)] == [
        "sentencepiece 0.2.0 is open to CVE-2026-1260",
        "h11 0.14.0 is open to CVE-2025-43859",
        "starlette 1.3.0 is open to CVE-2026-54283",
    ]
    project = '[project]\ndependencies = ["PyYAML", "torch>=2.10,<3"]\noptional-dependencies.x = ["H11>=0.9"]\n'
    assert [line.partition(" is")[0] for line in holes(bounds(project))] == ["h11 0.9", "pyyaml 0"]

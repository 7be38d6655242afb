"""Mutation testing by Cosmic Ray of the code that matters most: ``python -m tests.mutants``.

Of all the small changes that Cosmic Ray can make to a module, a sample is tried, the same one each time: each change is
made, and the module's tests run until one fails. A change that no test notices has survived. The tree must not be
edited meanwhile.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import sys
import time
from pathlib import Path

import tomli
from cosmic_ray.commands.init import _all_work_items
from cosmic_ray.mutating import mutate_and_test
from cosmic_ray.work_item import MutationSpec, TestOutcome

#: Modules, and the tests that run for each of their mutants, in this order.
SUBJECTS: dict[str, str] = tomli.loads(Path(__file__).with_name("mutants.toml").read_text(encoding="utf-8"))
#: Changes to annotations, which nothing runs.
_LEFT_OUT = ("core/ReplaceBinaryOperator_BitOr",)
#: Seconds after which tests that have not ended have noticed.
_LIMIT = 300.0


def sample(pattern: str, count: int) -> list[MutationSpec]:
    """The mutants of some modules that are tried.

    Args:
        pattern: A glob of modules.
        count: Number of mutants, if there are so many.
    """
    found = [item.mutations[0] for item in _all_work_items(sorted(Path().glob(pattern)), {})]
    found = [mutant for mutant in found if not mutant.operator_name.startswith(_LEFT_OUT)]
    return random.Random(0).sample(found, min(count, len(found)))


def run(mutant: MutationSpec, tests: str, options: str) -> dict[str, object]:
    """Make a change, run the tests, take it back."""
    begun = time.monotonic()
    # Without --keep-duplicates, pytest leaves out a folder after one of its modules.
    command = f"{shlex.quote(sys.executable)} -m pytest -x -q -p no:cacheprovider --keep-duplicates {options} {tests}"
    result = mutate_and_test([mutant], command, _LIMIT)
    return {
        "module": str(mutant.module_path),
        "line": mutant.start_pos[0],
        "operator": mutant.operator_name.removeprefix("core/"),
        "occurrence": mutant.occurrence,
        "killed": result.test_outcome != TestOutcome.SURVIVED,
        "seconds": round(time.monotonic() - begun, 1),
        "diff": result.diff,
    }


def main() -> None:
    """Try the samples, and print the share of each subject that was killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("subjects", nargs="*", default=list(SUBJECTS), help="globs of modules, as in SUBJECTS")
    parser.add_argument("--count", type=int, default=30, help="mutants of each subject")
    parser.add_argument("--options", default="-m 'not long' --hypothesis-profile=quick", help="options of pytest")
    parser.add_argument("--out", type=Path, default=Path("build/mutants.jsonl"), help="a line for each mutant")
    parser.add_argument("--survivors-of", type=Path, help="try only those that survived in this file")
    given = parser.parse_args()
    given.out.parent.mkdir(exist_ok=True)
    with given.out.open("a") as out:
        for subject in given.subjects:
            mutants = sample(subject, given.count)
            if given.survivors_of:
                mutants = [mutant for mutant in mutants if _key(mutant) in _survivors(given.survivors_of)]
            results = [run(mutant, SUBJECTS[subject], given.options) for mutant in mutants]
            for result in results:
                out.write(json.dumps(result) + "\n")
            out.flush()
            killed = sum(bool(result["killed"]) for result in results)
            sys.stdout.write(f"{killed} of {len(results)} killed: {subject}\n")
            sys.stdout.flush()


def _key(mutant: MutationSpec) -> tuple[str, str, int]:
    return str(mutant.module_path), mutant.operator_name.removeprefix("core/"), mutant.occurrence


def _survivors(file: Path) -> set[tuple[str, str, int]]:
    results = map(json.loads, file.read_text().splitlines())
    return {(found["module"], found["operator"], found["occurrence"]) for found in results if not found["killed"]}


if __name__ == "__main__":
    main()

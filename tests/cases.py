"""Table-driven tests: one test runs every row of a table and reports each row that failed."""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest
import yaml

F = TypeVar("F", bound=Callable[..., Any])

#: The class of what :func:`pytest.param` returns.
_PARAM = type(pytest.param())


def cases(
    names: str | Sequence[str], rows: Iterable[Any], ids: Sequence[str] | Callable[[Any], object] = repr
) -> Callable[[F], F]:
    """Run a test once per row, as :func:`pytest.mark.parametrize` does, but as a single test.

    Every row runs, each with a ``tmp_path`` and a ``monkeypatch`` of its own; other fixtures are shared. The failure
    lists all rows that failed, and its traceback is that of the first.

    Args:
        names: Arguments of the test, as a comma-separated string or a sequence.
        rows: A value per argument; with one argument, the value itself. :func:`pytest.param` is allowed.
        ids: Labels of the rows, or the function that makes the label of a value.

    Raises:
        ValueError: If a row does not have one value per name, or has a mark: all rows are one test.
    """
    arguments = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    labels: Iterable[str | Callable[[Any], object]] = itertools.repeat(ids) if callable(ids) else ids
    table = [_labeled(arguments, row, label) for row, label in zip(rows, labels, strict=not callable(ids))]

    def decorate(test: F) -> F:
        signature = inspect.signature(test)
        fixtures = [parameter for name, parameter in signature.parameters.items() if name not in arguments]

        if inspect.iscoroutinefunction(test):

            @functools.wraps(test)
            async def run_all(**given: Any) -> None:
                failures = _Failures(len(table))
                for number, (label, values) in enumerate(table):
                    with failures.collecting(label), _own(given, number) as own:
                        await test(**own, **values)
                failures.report()

        else:

            @functools.wraps(test)
            def run_all(**given: Any) -> None:
                failures = _Failures(len(table))
                for number, (label, values) in enumerate(table):
                    with failures.collecting(label), _own(given, number) as own:
                        test(**own, **values)
                failures.report()

        # pytest looks at it for fixtures.
        run_all.__signature__ = signature.replace(parameters=fixtures)  # type: ignore[attr-defined]
        return cast(F, run_all)

    return decorate


def tables(module: str) -> dict[str, Any]:
    """Tables of a module of tests: the YAML file of its name beside it.

    Args:
        module: ``__file__`` of the module.
    """
    found: dict[str, Any] = yaml.safe_load(Path(module).with_suffix(".yaml").read_text(encoding="utf-8"))
    return found


def _labeled(arguments: Sequence[str], row: Any, label: str | Callable[[Any], object]) -> tuple[str, dict[str, Any]]:
    """The label and the arguments of a row."""
    if isinstance(row, _PARAM):
        if row.marks:
            raise ValueError(f"a row has a mark, which belongs to the test: {row.values}")
        label = str(row.id) if row.id else label
        row = row.values if len(arguments) > 1 else row.values[0]
    given = dict(zip(arguments, row if len(arguments) > 1 else (row,), strict=True))
    if callable(label):
        label = ", ".join(f"{name}={label(value)}"[:200] for name, value in given.items())
    return label, given


@contextlib.contextmanager
def _own(given: Mapping[str, Any], number: int) -> Iterator[dict[str, Any]]:
    """Fixtures of one row."""
    own = dict(given)
    with pytest.MonkeyPatch.context() as patch:
        if "monkeypatch" in given:
            own["monkeypatch"] = patch
        if "tmp_path" in given:
            directory: Path = given["tmp_path"] / str(number)
            directory.mkdir(exist_ok=True)
            own["tmp_path"] = directory
        yield own


class _Failures:
    """Rows that failed.

    Args:
        count: Number of rows.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.failed: list[tuple[str, BaseException]] = []
        self.skipped: list[str] = []

    @contextlib.contextmanager
    def collecting(self, label: str) -> Iterator[None]:
        """Keep the failure of a row, and let the next one run."""
        try:
            yield
        except pytest.skip.Exception as skip:
            self.skipped.append(str(skip))
        except (Exception, pytest.fail.Exception) as error:
            self.failed.append((label, error))

    def report(self) -> None:
        """Fail if a row has failed; skip if all were skipped."""
        if len(self.skipped) == self.count > 0:
            pytest.skip(self.skipped[0])
        if not self.failed:
            return
        lines = [f"{label}\n    {type(error).__name__}: {error}" for label, error in self.failed]
        raise AssertionError(f"{len(lines)} of {self.count} cases failed:\n" + "\n".join(lines)) from self.failed[0][1]

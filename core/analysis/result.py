"""What a whole dataset is like: how many rows are used, what is wrong with the others, how long they are.

:class:`AnalysisRequest` says what to look at, :class:`Analysis` is the answer; :mod:`core.analysis.job` gets it without
holding up who asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, cast

from core.analysis.lengths import Lengths
from core.analysis.preflight import allowed_codes
from core.analysis.problems import Problem
from core.data.formats.shapes import Objective
from core.template.settings import MaskSettings, Supervise, supervised_turns

if TYPE_CHECKING:
    from core.config.schema import Config

Overlong = Literal["drop", "truncate", "refuse"]


@dataclass(frozen=True)
class AnalysisRequest:
    """What to look at, and how.

    Args:
        train: Entries as in ``data.train``.
        eval: Entries as in ``data.eval``, looked at for rows that are also trained on.
        format: As ``data.format``.
        columns: As ``data.columns``.
        model: Directory with the tokenizer; None for no tokens.
        template: Text of a chat template instead of the model's own.
        supervise: As ``data.supervise``.
        allow_special: Use rows whose messages write special tokens.
        end_answers: Put the end of text behind answers that the template does not end, as where ``data.allow`` holds
            ``stop_untrained``.
        max_length: As ``train.max_length``; 0 for no limit.
        overlong: As ``data.overlong``.
        weights: As ``data.weights``, one for each entry of ``train``; None: all 1.
        eval_share: As ``data.eval_share``.
        seed: As ``train.seed``, which decides what is held out and left out.
        objective: As ``train.objective``, which decides what rows are trained on.
    """

    train: tuple[str, ...]
    eval: tuple[str, ...] = ()
    format: str = "auto"
    columns: dict[str, str] | None = None
    model: str | None = None
    template: str | None = None
    supervise: Supervise = "assistant"
    allow_special: bool = False
    end_answers: bool = False
    max_length: int = 0
    overlong: Overlong = "drop"
    weights: tuple[float, ...] | None = None
    eval_share: float = 0.0
    seed: int = 0
    objective: Objective = "sft"

    @property
    def mask_settings(self) -> MaskSettings | None:
        """How rows become tokens; None for no tokens."""
        if self.model is None:
            return None
        return MaskSettings(
            self.model,
            self.template,
            supervised_turns(self.objective, self.supervise),
            self.allow_special,
            self.end_answers,
            self.max_length or None,
        )

    def with_masks(self, settings: MaskSettings | None) -> AnalysisRequest:
        """The same, its rows made into tokens in another way; None for no tokens, and for nothing said about them."""
        made = settings or MaskSettings("")
        return replace(
            self,
            model=settings.model if settings is not None else None,
            template=made.template,
            supervise=made.supervise,
            allow_special=made.allow_special,
            end_answers=made.end_answers,
            max_length=made.max_length or 0,
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> AnalysisRequest:
        """From :meth:`to_dict`."""
        weights = None if data["weights"] is None else tuple(data["weights"])
        return cls(**{**data, "train": tuple(data["train"]), "eval": tuple(data["eval"]), "weights": weights})


@dataclass(frozen=True)
class Progress:
    """How far an analysis is.

    Args:
        stage: ``indexing`` (bytes), ``reading`` (rows) or ``comparing`` (rows).
        done: Of what the stage counts.
        total: In all; None while that is not known.
    """

    stage: Literal["indexing", "reading", "comparing"]
    done: int
    total: int | None = None


@dataclass(frozen=True)
class SourceFormat:
    """How one source is read.

    Args:
        name: What it is called in the configuration.
        format: One of :data:`~core.data.formats.shapes.FORMATS`.
        reason: Why, one sentence.
        rows: How many it has; the first has the number 0, those of the next source go on from there.
    """

    name: str
    format: str
    reason: str
    rows: int


@dataclass(frozen=True)
class Analysis:
    """What was found; ``rows == used + sum(dropped.values())``, as the run with that configuration counts.

    Args:
        sources: The sources that are trained on.
        rows: Rows read.
        used: Rows trained on.
        dropped: Reason to number of rows that are not. Those that need tokens are only found where there is a model.
        problems: What costs rows first, then what should be looked at; a row may have several.
        turns: Number of messages of a conversation to the number of rows that have so many.
        scripts: Writing system to the number of rows mostly written in it; no row counts twice.
        lengths: Tokens, where there is a model.
        stop_learned: Usable rows whose last learned token ends an answer, where there is a model; those that are held
            out or left out by weight are among them.
        eval_rows: Held-out rows read.
        seconds: How long it took.
    """

    sources: tuple[SourceFormat, ...]
    rows: int
    used: int
    dropped: dict[str, int]
    problems: tuple[Problem, ...]
    turns: dict[int, int] = field(default_factory=dict)
    scripts: dict[str, int] = field(default_factory=dict)
    lengths: Lengths | None = None
    stop_learned: int | None = None
    eval_rows: int = 0
    seconds: float = 0.0

    def problem(self, code: str) -> Problem | None:
        """The problem with a code, if there is any."""
        return next((problem for problem in self.problems if problem.code == code), None)

    def to_dict(self) -> dict[str, Any]:
        """For JSON between processes."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {
            **values,
            "sources": [asdict(source) for source in self.sources],
            "problems": [problem.to_dict() for problem in self.problems],
            "turns": {str(count): rows for count, rows in self.turns.items()},
            "lengths": self.lengths.to_dict() if self.lengths is not None else None,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Analysis:
        """From :meth:`to_dict`."""
        values = {
            **data,
            "sources": tuple(SourceFormat(**source) for source in data["sources"]),
            "problems": tuple(Problem.from_dict(problem) for problem in data["problems"]),
            "turns": {int(count): rows for count, rows in data["turns"].items()},
            "lengths": Lengths.from_dict(data["lengths"]) if data["lengths"] is not None else None,
        }
        return cls(**values)


def request_for(config: Config, *, model: str | None, template: str | None = None) -> AnalysisRequest:
    """What a run with a configuration would look at.

    Args:
        config: The configuration.
        model: Directory with the tokenizer, or None.
        template: Text of a chat template instead of the model's own.
    """

    def entries(value: str | list[str] | None) -> tuple[str, ...]:
        return () if value is None else (value,) if isinstance(value, str) else tuple(value)

    data = config.data
    return AnalysisRequest(
        train=entries(data.train),
        eval=entries(data.eval),
        format=data.format,
        columns=cast("dict[str, str] | None", data.columns),
        model=model,
        template=template,
        supervise=data.supervise,
        allow_special=data.special_tokens == "keep",
        end_answers="stop_untrained" in allowed_codes(data.allow),
        max_length=config.train.max_length,
        overlong=data.overlong,
        weights=tuple(data.weights) if data.weights is not None else None,
        eval_share=data.eval_share,
        seed=config.train.seed,
        objective=config.train.objective,
    )

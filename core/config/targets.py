"""Target modules: matching of layer names with ``method.target_modules`` (names, wildcards, regular expressions)."""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

#: The prefix of an entry that is a regular expression.
EXPRESSION = "re:"
_WILDCARDS = re.compile(r"[*?\[]")
#: The parts of a regular expression that match a single character and repeat nothing.
_CHARACTERS = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)
_REPEATED_GROUP = re.compile(r"\)\s*[*+{]")
#: The most repetitions in one expression; each multiplies the time for a name by its length.
MOST_REPETITIONS = 5


def is_pattern(entry: str) -> bool:
    """True if an entry is a wildcard or a regular expression rather than a name."""
    return entry.startswith(EXPRESSION) or _WILDCARDS.search(entry) is not None


def has_patterns(targets: str | Sequence[str]) -> bool:
    """True if any entry is a pattern; ``all-linear`` is not."""
    return not isinstance(targets, str) and any(map(is_pattern, targets))


def expression_problem(entry: str) -> str | None:
    """The error of an entry that is a regular expression; None where it is valid.

    Repeated groups are refused: matching may take exponential time, and no layer's name needs one.
    """
    if not entry.startswith(EXPRESSION):
        return None
    expression = entry[len(EXPRESSION) :]
    try:
        re.compile(expression)
    except (re.error, OverflowError, RecursionError) as error:
        return str(error)
    bare = _CHARACTERS.sub("x", expression)
    if _REPEATED_GROUP.search(bare):
        return "it repeats a group"
    if sum(map(bare.count, "*+{")) > MOST_REPETITIONS:
        return f"it has more than {MOST_REPETITIONS} repetitions"
    return None


def is_target(name: str, entry: str) -> bool:
    """True if an entry matches a module.

    A name matches every module with that name, or whose name ends with it after a dot, as in PEFT. A wildcard
    (``*``, ``?``, ``[...]``) must match a whole name or the part after a dot. ``re:`` and a regular expression, which
    must match the whole name, corresponds to a string instead of a list in PEFT.

    Args:
        name: The module's name in the model: ``model.layers.0.self_attn.q_proj``.
        entry: Item of ``method.target_modules``; an expression that :func:`expression_problem` refuses matches nothing.
    """
    if entry.startswith(EXPRESSION):
        if expression_problem(entry) is not None:
            return False
        return re.fullmatch(entry[len(EXPRESSION) :], name) is not None
    if _WILDCARDS.search(entry):
        return fnmatchcase(name, entry) or fnmatchcase(name, f"*.{entry}")
    return name == entry or name.endswith(f".{entry}")


#: Small linear layers whose rounding changes a choice (which expert, how much of a state is kept) rather than a value;
#: quantizing them saves nothing. Names by family: ``router.proj`` Gemma 4, ``router.layer`` Granite, ``router.gate``
#: AFMoE, ``router.classifier`` LongCat, ``gate.wg`` Hunyuan, ``feed_forward.gate`` LFM2, ``mlp.gate`` and
#: ``shared_expert_gate`` Qwen, ``in_proj_a`` and ``in_proj_b`` the gated delta net.
ALWAYS = (
    "router",
    "router.proj",
    "router.layer",
    "router.gate",
    "router.classifier",
    "gate.wg",
    "mlp.gate",
    "feed_forward.gate",
    "shared_expert_gate",
    "linear_attn.in_proj_a",
    "linear_attn.in_proj_b",
)

#: Layers of Mamba, in both its versions, whose weights its fused kernels take as arguments.
MAMBA_FUSED = tuple(f"{mixer}.{name}" for mixer in ("mamba", "mixer") for name in ("out_proj", "x_proj", "dt_proj"))


def kept_patterns(keep: str | Sequence[str] | None) -> tuple[str, ...]:
    """The names and patterns of ``model.keep_16bit``; none where it is absent, or ``auto`` and not decided yet."""
    return () if keep is None or isinstance(keep, str) else tuple(keep)


def stays_16bit(name: str, keep: str | Sequence[str] | None = (), always: Sequence[str] = ALWAYS) -> bool:
    """True if a linear layer of the decoder stays in 16 bit; the output head always does, and is not asked for.

    Args:
        name: The module's name in the model: ``model.layers.0.mlp.gate``.
        keep: ``model.keep_16bit``; names and patterns match as in ``method.target_modules``.
        always: Further names that stay in 16 bit; another list than :data:`ALWAYS` for the base of an earlier run.
    """
    return is_read_by_kernels(name) or any(is_target(name, entry) for entry in (*always, *kept_patterns(keep)))


def experts_stay_16bit(
    module: str, matrix: str, keep: str | Sequence[str] | None = (), always: Sequence[str] = ALWAYS
) -> bool:
    """True if a matrix of a layer's experts stays in 16 bit, because it or all its experts are named.

    Args:
        module: Name of the module of the experts: ``model.layers.0.mlp.experts``.
        matrix: Name of the matrix: ``gate_up_proj``.
        keep: ``model.keep_16bit``.
        always: As for :func:`stays_16bit`.
    """
    return stays_16bit(module, keep, always) or stays_16bit(f"{module}.{matrix}", keep, always)


@functools.cache
def has_mamba_kernels() -> bool:
    """True if mamba-ssm is installed, whose kernels transformers then uses for the layers of Mamba."""
    return importlib.util.find_spec("mamba_ssm") is not None


def is_read_by_kernels(name: str) -> bool:
    """True if a kernel of mamba-ssm reads a linear layer's weight directly: it would take packed 4-bit values for
    numbers, and an adapter on the layer would never run.

    Args:
        name: The module's name in the model.
    """
    return has_mamba_kernels() and any(is_target(name, entry) for entry in MAMBA_FUSED)

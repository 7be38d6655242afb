"""Target modules: matching of layer names with ``method.target_modules`` and ``model.keep_16bit`` (names, wildcards,
regular expressions), and the choice of experts that get adapters.

The memory plan and the worker share these functions, so that the plan matches the training.
"""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from core.config.schema import MethodSection
from core.units import short_count

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
    *("router", "router.proj", "router.layer", "router.gate", "router.classifier", "gate.wg", "mlp.gate"),
    *("feed_forward.gate", "shared_expert_gate", "linear_attn.in_proj_a", "linear_attn.in_proj_b"),
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


#: ``auto`` puts adapters on experts if these have at most this share of the experts' own parameters.
LARGEST_SHARE = 0.01
#: Names that the matrices of experts have: fused, as transformers keeps them, and one by one, as checkpoints do.
_MATRICES = ("gate_up_proj", "up_proj", "down_proj", "0.gate_proj", "0.up_proj", "0.down_proj", "0.w1", "0.w2", "0.w3")

#: Outputs and inputs of the matrices of one expert, as ``(2 * width, hidden), (hidden, width)``.
Matrices = Sequence[tuple[int, int]]


def adapts_experts(method: MethodSection, module: str, matrices: Matrices) -> bool:
    """True if the experts of a layer get adapters.

    ``auto`` decides for adapters if ``method.target_modules`` names the experts (``all-linear`` does), the adapters
    have at most :data:`LARGEST_SHARE` of the experts' own parameters, and neither DoRA nor an initialization computed
    from the weights is set, as experts support neither.

    Args:
        method: The method.
        module: Name of the module of the experts: ``model.layers.0.mlp.experts``.
        matrices: Shapes of the matrices of one expert.
    """
    if method.target_experts != "auto":
        return method.target_experts == "on"
    return (
        names_experts(method.target_modules, module)
        and not method.dora
        and method.init == "default"
        and adapter_share(matrices, method.rank) <= LARGEST_SHARE
    )


def adapts_linear(name: str, targets: str | Sequence[str]) -> bool:
    """True if a linear layer of the decoder gets an adapter; not for the output head.

    ``all-linear`` excludes routers and small gates, the layers that always stay in 16 bit.

    Args:
        name: The module's name in the model: ``model.layers.0.self_attn.q_proj``.
        targets: As ``method.target_modules``.
    """
    if isinstance(targets, str):
        return not stays_16bit(name)
    return any(is_target(name, entry) for entry in targets)


def names_experts(targets: str | Sequence[str], module: str) -> bool:
    """True if ``method.target_modules`` names the experts of a layer, or one of their matrices.

    Args:
        targets: As ``method.target_modules``.
        module: Name of the module of the experts.
    """
    if isinstance(targets, str):
        return True
    names = [module, *(f"{module}.{matrix}" for matrix in _MATRICES)]
    return any(is_target(name, entry) for name in names for entry in targets)


def adapter_share(matrices: Matrices, rank: int) -> float:
    """Ratio of adapter parameters to the experts' own parameters; the number of experts does not matter."""
    own = sum(outputs * inputs for outputs, inputs in matrices)
    return rank * sum(outputs + inputs for outputs, inputs in matrices) / own


def without_adapters(method: MethodSection, matrices: Matrices, experts: int) -> str | None:
    """The reason why ``auto`` leaves experts without adapters; None if the user decided, or they get adapters.

    Args:
        method: The method.
        matrices: Shapes of the matrices of one expert.
        experts: Experts of all layers together.
    """
    if method.target_experts != "auto" or not isinstance(method.target_modules, str):
        return None
    if method.dora or method.init != "default":
        what = "DoRA" if method.dora else f"method.init = {method.init}"
        return f"The experts get no adapters: {what} does not work on them."
    share = adapter_share(matrices, method.rank)
    if share <= LARGEST_SHARE:
        return None
    elements = experts * sum(method.rank * (outputs + inputs) for outputs, inputs in matrices)
    return (
        f"The experts get no adapters: at rank {method.rank} they would have {short_count(elements)} parameters, "
        f"{share:.1%} of the experts' own, and auto takes up to {LARGEST_SHARE:.0%}. "
        "method.target_experts = on adds them."
    )

"""Rules that several tools share, mostly for keys of the transformers trainer that they all build on."""

from __future__ import annotations

import re
from urllib.parse import quote

from core.config.schema import WEIGHT_METHODS, ModelSection, TrainSection
from core.config.targets import EXPRESSION, expression_problem
from core.hub_uri import DEFAULT_REVISION, is_hub_id
from core.importers.common.steps import count_entries
from core.importers.rules import Choice, Copy, is_one_of
from core.importers.translation import Translation
from core.models.find import find_model

#: ``optim`` of transformers.
OPTIMIZERS = Choice(
    option="train.optimizer",
    same={
        **dict.fromkeys(["adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw"], "adamw"),
        **dict.fromkeys(["adamw_8bit", "adamw_bnb_8bit"], "adamw_8bit"),
        "paged_adamw_8bit": "paged_adamw_8bit",
        "adafactor": "adafactor",
        "lion_8bit": "lion_8bit",
    },
    near={
        **dict.fromkeys(
            ["paged_adamw", "paged_adamw_32bit"], ("adamw", "The same arithmetic; its states are not paged.")
        ),
        **dict.fromkeys(
            ["adamw_apex_fused", "adamw_anyprecision", "adamw_torch_xla", "adamw_torch_npu_fused"],
            ("adamw", "The AdamW of torch."),
        ),
        "adamw_torch_8bit": ("adamw_8bit", "The 8-bit AdamW of bitsandbytes instead of torchao's."),
        "paged_lion_8bit": ("lion_8bit", "The same arithmetic; its state is not paged."),
        **dict.fromkeys(
            ["lion", "lion_32bit", "paged_lion", "paged_lion_32bit", "lion_pytorch"],
            ("lion_8bit", "The same arithmetic; its state is kept in 8 bits."),
        ),
    },
    otherwise=("adamw", "This optimizer is not offered: AdamW, for which the learning rate may not be right."),
)

#: LoRA+ and NEFTune, as in PEFT and transformers.
LORAPLUS = Copy("method.loraplus_ratio", "number", unset=(0,))
NEFTUNE = Copy("method.neftune_alpha", "number", unset=(0,))

#: ``lr_scheduler_type`` of transformers.
SCHEDULERS = Choice(
    option="train.scheduler",
    same={
        "cosine": "cosine",
        "linear": "linear",
        "constant": "constant",
        "constant_with_warmup": "constant",
    },
    near={
        "polynomial": ("linear", "Without a power of its own it is a straight line."),
        "cosine_with_restarts": ("cosine", "Without a number of restarts it is one cosine."),
        "cosine_with_min_lr": ("cosine", "The learning rate falls to 0, and not to a minimum."),
    },
    otherwise=("cosine", "This schedule is not offered: cosine."),
)

#: Options that :func:`cut_length` may set.
LENGTH_OPTIONS = ("train.max_length", "data.overlong")
#: Options that :func:`joined_batch` may set.
BATCH_OPTIONS = ("train.batch_size", "train.micro_batch_size")
#: Options that :func:`epochs` may set.
EPOCH_OPTIONS = ("train.epochs", "train.max_steps")
#: Options that :func:`schedule` may set.
SCHEDULE_OPTIONS = ("train.scheduler", "train.warmup")
#: The option that :func:`let_special_tokens_act` sets.
SPECIAL_OPTION = "data.special_tokens"
#: Options that :func:`held_out` may set.
HELD_OUT_OPTIONS = ("data.eval_share",)


def schedule(
    work: Translation, name: str, ratio: str, steps: str, choice: Choice, absent: tuple[float, str] | None
) -> None:
    """Learning rate schedule and warmup: ``constant`` has no warmup in the other tool, and has one here.

    Args:
        work: The translation.
        name: The key of the schedule.
        ratio: The key of the warmup as a share; empty where the tool has none.
        steps: The key of the warmup in steps.
        choice: The tool's names of schedules.
        absent: The tool's warmup where neither key is given, with its sentence; None where it equals ours.
    """
    flat = is_one_of(work.values.get(name), ("constant",))
    work.choose(name, choice)
    if flat:
        reason = f"{name}: constant warms up nothing; constant_with_warmup does."
        counts = ratio if ratio and work.has(ratio) and not work.has(steps) else steps
        work.change(counts, "train.warmup", 0.0, reason)
        if ratio and work.has(ratio):
            work.drop(ratio, reason)
        return
    given = work.number(steps)
    share = work.number(ratio) if ratio else None
    if given is not None and (given > 0 or share is None):
        if ratio and work.has(ratio):
            work.drop(ratio, f"{steps} is given too, and counts.")
        if 0 < given < 1:
            work.change(steps, "train.warmup", given, "Below 1 it is a share of all steps, as newer trainers take it.")
        else:
            work.carry(steps, "train.warmup", float(int(given)))
        return
    if work.has(steps):
        work.carry(steps, None, reason=f"0: {ratio} counts.")
    if share is not None:
        if share >= 1:
            work.drop(ratio, "All of the run would be warm-up; the default holds.")
        else:
            work.carry(ratio, "train.warmup", share)
    elif absent is not None:
        work.change(steps, "train.warmup", absent[0], absent[1])


def held_out(work: Translation, key: str, has_rows: bool) -> bool:
    """Held-out rows: a share or a number of the rows, kept out of training.

    Args:
        work: The translation.
        key: The key of the share.
        has_rows: Whether rows for evaluation are given otherwise.

    Returns:
        Whether there are rows for evaluation.
    """
    share = work.number(key)
    if share is None or share == 0:
        if work.has(key):
            work.carry(key, None, reason="Nothing is held out.")
        return has_rows
    if share < 0:
        work.refuse(key, "must not be below 0")
    if has_rows:
        work.drop(key, "Rows to measure on are given, and only one of the two is possible.")
        return True
    if share >= 1:
        return _held_out_rows(work, key, int(share))
    if share > 0.5:
        work.change(key, "data.eval_share", 0.5, "At most half of the rows can be held out.")
    else:
        work.carry(key, "data.eval_share", share, "Which rows, decides train.seed; eval.max_rows of them are measured.")
    return True


def let_special_tokens_act(work: Translation) -> None:
    """Special tokens in the text of a row act as tokens in all three tools; by our default such rows are dropped."""
    work.put(SPECIAL_OPTION, "keep", f"In {work.title}, special tokens that a row writes act as such.")


def _held_out_rows(work: Translation, key: str, wanted: int) -> bool:
    """A number of rows, converted to a share."""
    counts = count_entries(work)
    if counts is None:
        reason = f"What share {wanted} rows are is not known before the data is here: nothing is held out."
        work.drop(key, f"{reason} Set data.eval_share.")
        return False
    total = sum(counts)
    if 2 * wanted > total:
        work.change(key, "data.eval_share", 0.5, f"{wanted} of {total} rows; at most half of them can be held out.")
    else:
        # As many digits as give the same number of rows again.
        share = round(wanted / total, len(str(total)) + 1)
        work.change(key, "data.eval_share", share, f"{wanted} of {total} rows; eval.max_rows of them are measured.")
    return True


def epochs(work: Translation, key: str, steps: str, default: float) -> float:
    """The length of the run: a number of steps overrides the epochs.

    Args:
        work: The translation.
        key: The key of the epochs.
        steps: The key of the steps.
        default: The tool's default number of epochs.

    Returns:
        The epochs, whether they apply or not.
    """
    most, number = work.integer(steps), work.number(key)
    is_by_steps = most is not None and most > 0
    if most is not None:
        if is_by_steps:
            work.carry(steps, "train.max_steps", most)
        else:
            work.carry(steps, None, reason="It says nothing here either.")
    if is_by_steps and "train.max_steps" in work.settings:
        if number is not None:
            work.carry(key, None, reason=f"{steps} counts.")
    elif number:
        work.carry(key, "train.epochs", number)
    elif default != TrainSection().epochs or number is not None:
        work.change(key, "train.epochs", default, f"No number of epochs: {work.title} takes {default:g}.")
    return number or default


def joined_batch(work: Translation, micro: str, accumulate: str, defaults: tuple[int, int], devices: str) -> None:
    """Batch size: the rows of an optimizer step, as the device's batch size times gradient accumulation steps.

    Args:
        work: The translation.
        micro: The key of the batch size on the device.
        accumulate: The key of the gradient accumulation steps.
        defaults: The tool's defaults of the two.
        devices: A remark where the file is made for several devices; may be empty.
    """
    at_once = work.integer(micro)
    times = work.integer(accumulate)
    for key, number in ((micro, at_once), (accumulate, times)):
        if number is not None and number < 1:
            work.refuse(key, "must be 1 or more")
    rows = (at_once or defaults[0]) * (times or defaults[1])
    sentence = f"{at_once or defaults[0]} at once x {times or defaults[1]} times added up, on one device.{devices}"
    problem = work.put("train.batch_size", rows, sentence)
    if at_once is not None:
        if problem:
            work.drop(micro, problem)
        else:
            work.carry(micro, "train.micro_batch_size", at_once)
    if not problem:
        work.change(accumulate, "train.batch_size", rows, sentence)
    elif times is not None:
        work.drop(accumulate, problem)


def cut_length(work: Translation, key: str, default: int) -> None:
    """Maximum length, in tools that truncate longer rows; by our default they are dropped."""
    title = work.title
    cut = f"{title} cuts longer rows; here at their end, so that an answer may lose its end."
    length = work.integer(key)
    problem = work.put("train.max_length", default if length is None else length, "" if length else f"{title}'s own.")
    work.put("data.overlong", "truncate", cut)
    if problem:
        work.drop(key, problem)
    else:
        work.note_change(key, "train.max_length, data.overlong", cut)


#: The consequence for keys of measuring where no rows are held out.
NOTHING_HELD_OUT = "Nothing is held out, so there is nothing to measure."


def is_measured(work: Translation) -> bool:
    """Whether there are rows for evaluation."""
    return bool({"data.eval", *HELD_OUT_OPTIONS} & work.settings.keys())


def model_base(work: Translation, key: str, revisions: tuple[str, ...] = ()) -> None:
    """The base model: a local path resolved, a hub name kept, with the command that downloads it.

    Args:
        work: The translation.
        key: The key of the model.
        revisions: The keys of its revision on the hub.
    """
    name = work.text(key)
    given = [revision for revision in revisions if work.has(revision)]
    if name is None:
        work.change(key, "model.base", ModelSection().base, "The file names no model: the starter model.")
    elif work.places.exists(name):
        path = work.places.locate(name)
        if str(path) == name:
            work.carry(key, "model.base", name)
        else:
            work.change(key, "model.base", work.places.write(path), f"Paths start at {work.places.base}.")
    elif is_hub_id(name) and find_model(name) is None:
        wanted = work.text(given[0]) if given else None
        version = f"@{quote(wanted, safe='')}" if wanted and wanted != DEFAULT_REVISION else ""
        work.change(key, "model.base", name, f"'localtune-tui fetch hf://{name}{version}' downloads it.")
        if version and work.settings["model.base"].comment:
            work.note_change(given[0], "model.base", "The command that downloads the model names it.")
    else:
        work.carry(key, "model.base", name)
    for revision in given:
        if work.text(revision) == DEFAULT_REVISION:
            work.carry(revision, None, reason="As it is here.")
        else:
            work.drop(revision, "The model is read as it lies in its directory or in the hub's cache.")


_PATTERN = re.compile(r"[\\*+?()\[\]{}|^$]")
_ALL = ("all", "all-linear", "all_linear")


def target_modules(work: Translation, key: str, names: list[str], *, is_text: bool = False) -> None:
    """Target modules of the adapters: names, a pattern, or all linear layers.

    Args:
        work: The translation.
        key: The key of the target modules.
        names: Its value.
        is_text: Whether the tool passes a single string to PEFT unchanged, which takes it for a regular expression; in
        lists PEFT knows names only.
    """
    if any(name.lower() in _ALL for name in names):
        work.carry(key, "method.target_modules", "all-linear")
    elif any(_PATTERN.search(name) for name in names):
        expression = EXPRESSION + names[0]
        if is_text and expression_problem(expression) is None:
            reason = "A regular expression, which has to match the whole name of a layer."
            work.carry(key, "method.target_modules", [expression], reason=reason)
            return
        reason = (
            "In a list PEFT knows names only, no patterns" if not is_text else "This regular expression cannot be used"
        )
        work.drop(key, f"{reason}: all linear layers.", "method.target_modules", "all-linear")
    else:
        work.carry(key, "method.target_modules", names)


#: Options that depend on the method.
METHOD_OPTIONS = ("method.name", "memory.optimizer_in_backward")

NO_FP16_WEIGHTS = "Weights that are trained themselves are never fp16: the device decides between bf16 and fp32."


def trains_weights(work: Translation) -> bool:
    """Whether the method trains the model's own weights, as converted so far."""
    method = work.settings.get("method.name")
    return method is not None and method.value in WEIGHT_METHODS


def train_weights(work: Translation) -> None:
    """Weight training: gradients are accumulated and clipped, as in the other tools."""
    work.put(
        "memory.optimizer_in_backward",
        "off",
        "As there: gradients are added up and clipped. auto updates inside backward and needs far less memory.",
    )

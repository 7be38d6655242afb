"""Experiment trackers, from the keys of the other tools: W&B, TensorBoard and trackio are kept, others reported."""

from __future__ import annotations

from collections.abc import Iterable

from core.config.choices import Tracker
from core.importers.translation import Translation

#: Options that the functions here may set.
TRACKING_OPTIONS = ("tracking.tools", "tracking.project", "tracking.name", "tracking.wandb_mode")
_OFFLINE = "Runs are kept in their directory unless tracking.wandb_mode = online asks for the server."
_AS_HERE = "As it is here."
#: Names of trackers in transformers.
_REPORTS: dict[str, Tracker] = {"wandb": "wandb", "tensorboard": "tensorboard", "trackio": "trackio"}


def axolotl_trackers(work: Translation) -> None:
    """Axolotl: a project turns W&B on; without a mode it is online there, and offline here."""
    tools: list[Tracker] = []
    project, wanted = _given(work, "wandb_project"), _is_on(work, "use_wandb")
    mode = (_given(work, "wandb_mode") or "").lower()
    if (project or wanted) and mode != "disabled":
        tools.append("wandb")
    _note(work, "use_wandb", "tracking.tools" if wanted and tools else None)
    _text(work, "wandb_project", "tracking.project")
    _text(work, "wandb_name", "tracking.name")
    if mode in ("online", "offline"):
        work.carry("wandb_mode", "tracking.wandb_mode", mode)
    elif work.has("wandb_mode") and mode in ("disabled", "dryrun", ""):
        work.carry("wandb_mode", None, reason=_AS_HERE)
    elif work.has("wandb_mode"):
        work.drop("wandb_mode", f"It may be online, offline or disabled. {_OFFLINE}")
    elif tools:
        work.change("wandb_mode", "tracking.wandb_mode", "offline", _OFFLINE)
    _switches(work, {"use_tensorboard": "tensorboard", "use_trackio": "trackio"}, tools)
    for key, option in (("trackio_project_name", "tracking.project"), ("trackio_run_name", "tracking.name")):
        if option in work.settings and work.has(key) and work.settings[option].value != _given(work, key):
            work.drop(key, "All trackers have the same project and name here; W&B's is taken.")
        else:
            _text(work, key, option)
    _put(work, tools)


def trainer_trackers(work: Translation) -> None:
    """Transformers: ``report_to`` has one name or several; ``all`` means all that are installed."""
    names = [name.strip().lower() for name in work.texts("report_to") or []]
    tools = [_REPORTS[name] for name in names if name in _REPORTS]
    others = [name for name in names if name not in _REPORTS and name not in ("none", "")]
    if "all" in others:
        work.drop("report_to", "Those that are installed there: name the ones that you want in tracking.tools.")
    elif others and tools:
        reason = "Others than wandb, tensorboard and trackio are not fed."
        work.change("report_to", "tracking.tools", sorted(set(tools)), reason)
    elif others:
        work.drop("report_to", "Only wandb, tensorboard and trackio are fed: a run writes its own log.")
    elif work.has("report_to"):
        work.carry("report_to", "tracking.tools" if tools else None, reason="" if tools else _AS_HERE)
    _text(work, "run_name", "tracking.name")
    _text(work, "project", "tracking.project")
    _put(work, tools if "all" not in others else [])


def unsloth_trackers(work: Translation) -> None:
    """Unsloth: its switches for trackers; its project applies only to W&B."""
    tools: list[Tracker] = []
    _switches(work, {"logging.enable_wandb": "wandb", "logging.enable_tensorboard": "tensorboard"}, tools)
    if "wandb" in tools:
        _text(work, "logging.wandb_project", "tracking.project")
    else:
        _note(work, "logging.wandb_project", None)
    _put(work, tools)


def _switches(work: Translation, keys: dict[str, Tracker], tools: list[Tracker]) -> None:
    for key, tool in keys.items():
        is_on = _is_on(work, key)
        if is_on:
            tools.append(tool)
        _note(work, key, "tracking.tools" if is_on else None)


def _given(work: Translation, key: str) -> str | None:
    """A text; None where it is absent or empty."""
    return None if _is_blank(work, key) else work.text(key)


def _is_on(work: Translation, key: str) -> bool:
    return not _is_blank(work, key) and bool(work.boolean(key))


def _is_blank(work: Translation, key: str) -> bool:
    value = work.values.get(key)
    return isinstance(value, str) and not value.strip()


def _note(work: Translation, key: str, option: str | None) -> None:
    """Record a key that has been taken into account in the list of trackers, or that asks for nothing."""
    if work.has(key):
        work.carry(key, option, reason="" if option else _AS_HERE)


def _text(work: Translation, key: str, option: str) -> None:
    value = _given(work, key)
    if value:
        work.carry(key, option, value)
    elif work.has(key):
        work.carry(key, None, reason="Empty: the default holds.")


def _put(work: Translation, tools: Iterable[Tracker]) -> None:
    found = sorted(set(tools))
    if found:
        work.put("tracking.tools", found)

"""Rules of ``tracking``: names and installed trackers."""

from __future__ import annotations

from core.config.facts import Facts
from core.config.rules.rule import Findings, rule
from core.config.schema import Config
from core.text import one_line


@rule("error", "tracking.project")
def project_is_a_name(config: Config, _: Facts) -> Findings:
    """tracking.project is a name that the trackers take: without / \\ # ? % : and at most 128 characters."""
    project = config.tracking.project
    if set(project) & set("/\\#?%:") or len(project) > 128:
        yield (
            f"tracking.project is {one_line(project, 60)}, and the trackers do not take it as a name.",
            "Leave out / \\ # ? % : and keep it below 128 characters.",
        )


@rule("warning", "tracking.wandb_mode", "tracking.tools")
def online_is_tracked(config: Config, _: Facts) -> Findings:
    """tracking.wandb_mode = online goes with wandb among tracking.tools."""
    if config.tracking.wandb_mode == "online" and "wandb" not in config.tracking.asked:
        yield "tracking.wandb_mode is online, and wandb is not among tracking.tools: nothing is sent.", "Add it."


@rule("warning", "tracking.tools")
def trackers_are_installed(config: Config, facts: Facts) -> Findings:
    """The trackers of tracking.tools are installed."""
    for tool in sorted(config.tracking.asked & (facts.missing_trackers or frozenset())):
        yield (
            f"tracking.tools names {tool}, which is not installed: the run goes on without it.",
            f"pip install 'localtune-tui[{tool}]', now or later: 'localtune-tui track RUN' sends what was missed.",
        )

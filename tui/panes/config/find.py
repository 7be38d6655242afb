"""Finding options in the config pane: a search, the changed ones, those with a problem."""

from __future__ import annotations

from textual import on

from tui.panes.config.facts import ConfigFacts
from tui.widgets.forms.ask_bar import AskBar
from tui.widgets.forms.option_field import OptionField
from tui.widgets.forms.option_form import OptionForm


class ConfigFind(ConfigFacts):
    """A pane with a form whose fields can be filtered and gone to."""

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.shows_expert = False
        self.shows_changed = False
        self.term = ""

    @property
    def form(self) -> OptionForm:
        """The fields."""
        return self.query_one("#config-form", OptionForm)

    def refresh_hints(self) -> None:
        """Write the keys that matter most."""
        raise NotImplementedError

    def apply_filter(self) -> None:
        """Show the fields that the search, the changes or the expert switch leave."""
        term = self.term.lower()

        def keep(field: OptionField) -> bool:
            option = field.option
            if term:
                return term in option.name.lower() or term in option.help.lower()
            if self.shows_changed:
                return field.is_changed or bool(field.notes or field.problem)
            is_needed = field.is_changed or bool(field.problem or field.warning)
            return self.shows_expert or option.basic or is_needed

        self.form.filter(keep)

    def _show_all_again(self) -> None:
        self.term, self.shows_changed = "", False

    def nothing_shown(self) -> str:
        """Why there is no field, in a sentence; nothing where that needs no words."""
        if self.term:
            return f"No option has “{self.term}” in its name or help."
        back = self.keys["config.back"].display
        return f"Nothing is changed. {back} shows the options again." if self.shows_changed else ""

    def action_toggle_expert(self) -> None:
        """All options, or only the ones most runs need."""
        self.shows_expert = not self.shows_expert
        self._show_all_again()
        self.refresh_hints()
        self.apply_filter()
        shown, total = len(self.form.shown), len(self.form.fields)
        self.say(f"All {total} options are shown." if self.shows_expert else f"{shown} of {total} options are shown.")

    def action_toggle_changed(self) -> None:
        """Only the options that differ from the preset, the defaults or the last run, or all again."""
        self.shows_changed, self.term = not self.shows_changed, ""
        self.apply_filter()
        if not self.shows_changed:
            self.say("")
            return
        count = len(self.form.shown)
        preset = self.preset_name or "the defaults"
        last = " or the last run" if self.last_run is not None else ""
        if count:
            verb = "options differ" if count > 1 else "option differs"
            self.say(f"{count} {verb} from {preset}{last}, or need a look.")

    @property
    def preset_name(self) -> str:
        """The preset in force; empty where there is none."""
        raise NotImplementedError

    def action_search(self) -> None:
        """Ask for a text to look for in names and help."""
        self.ask_bar.ask("search", "find", self.term, "a text in a name or its help; all options are searched")

    def action_back(self) -> None:
        """Show all rows again after a search."""
        if self.term or self.shows_changed:
            self._show_all_again()
            self.apply_filter()
        self.say("")

    @on(AskBar.Changed)
    def _searching(self, message: AskBar.Changed) -> None:
        message.stop()
        if message.purpose == "search":
            self.term = message.value.strip()
            self.apply_filter()

    @on(AskBar.Cancelled)
    def _search_cancelled(self, message: AskBar.Cancelled) -> None:
        message.stop()
        if message.purpose == "search":
            self.action_back()

    def action_next_problem(self) -> None:
        """Go to the next option with a problem, or with a warning where there is no problem."""
        fields = self.form.fields
        wrong = [field for field in fields if field.problem] or [field for field in fields if field.warning]
        if not wrong:
            problems = self.problems
            self.say(f"✗ {next(iter(problems.values()))}" if problems else "No problems.")
            return
        current = self.form.current
        here = fields.index(current) if current is not None else -1
        following = [field for field in wrong if fields.index(field) > here]
        self.go_to_option((following or wrong)[0].option.name)

    def go_to_option(self, name: str) -> None:
        """Put the cursor on an option, and show it where it is hidden."""
        field = self.form.field(name)
        if field is None:
            return
        if not field.display:
            self._show_all_again()
            self.apply_filter()
        if not field.display:
            # It is none of the basic ones, and nothing is to be said about it.
            self.shows_expert = True
            self.refresh_hints()
            self.apply_filter()
        self.form.go_to(field)

    def check(self) -> dict[str, str]:
        """What keeps a run from starting, option to sentence; data files that are not there among it."""
        self.refresh_fields()
        return self.problems

    def focus_first_problem(self) -> bool:
        """Put the cursor on the first option with a problem, if there is one, and say how many there are."""
        problems = self.check()
        if not problems:
            return False
        self.refuse_start()
        return True

    def refuse_start(self) -> None:
        """Go to what keeps a run from starting: the first of the problems, and how many there are."""
        problems = self.problems
        name = next(iter(problems))
        self.go_to_option(name)
        self.form.focus()
        count = len(problems)
        more = f"1 of {count} problems ({self.keys['config.problem'].display} next): " if count > 1 else ""
        self.say(f"✗ Not started. {more}{problems[name]}")

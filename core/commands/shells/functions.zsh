# $1: a file in the directory of each run or model of the home; the newest come first
_localtune_tui_named() {
  local home="${LOCALTUNE_HOME:-${XDG_DATA_HOME:-$HOME/.local/share}/localtune}"
  local -a found=("$home"/${~1}(NOn:h:t))
  compadd -V named -a found
}

_localtune_tui_runs() { compadd latest; _localtune_tui_named 'runs/*/run.toml'; }
_localtune_tui_trash() { _localtune_tui_named 'trash/*/*/run.toml'; }
_localtune_tui_models_or_dirs() { _localtune_tui_named 'models/*/config.json'; _files -g '*.gguf'; }
_localtune_tui_chat_dirs() { _localtune_tui_runs; _localtune_tui_models_or_dirs; }
_localtune_tui_any_file() { _files; }
_localtune_tui_config_file() { _files -g '*.toml'; }
_localtune_tui_import_file() { _files -g '*.(yml|yaml|py|ipynb)'; }
_localtune_tui_template_file() { _files -g '*.(jinja|j2)'; }
_localtune_tui_data_file() { _files -g "(${(j:|:)_localtune_tui_data_patterns})"; }
_localtune_tui_opened_file() { _files -g "(*.toml|${(j:|:)_localtune_tui_data_patterns})"; }
_localtune_tui_presets() { compadd -a _localtune_tui_preset_names; }
_localtune_tui_keys() { compadd -S '' -a _localtune_tui_all_keys; }
_localtune_tui_live_keys() { compadd -S '' -a _localtune_tui_some_keys; }

# The first word may be a file as well as a command.
functions[_localtune_tui_commands]=$functions[_shtab_localtune_tui_commands]
_shtab_localtune_tui_commands() { _localtune_tui_commands; _localtune_tui_opened_file; }

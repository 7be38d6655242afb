# Runs and models of the home with plain names, which nothing on a command line takes for something else.
# $1: the word so far, $2: a file in each of their directories
_localtune_tui_named() {
  local home="${LOCALTUNE_HOME:-${XDG_DATA_HOME:-$HOME/.local/share}/localtune}" path name
  for path in "$home"/$2; do
    name="${path%/*}"
    name="${name##*/}"
    [[ "$name" == "$1"* && "$name" != *[!A-Za-z0-9._-]* ]] && printf '%s\n' "$name"
  done
}

# Files of the patterns and directories; every file where there is none of them.
# $1: the word so far, $2 and on: patterns
_localtune_tui_matching() {
  local word="$1" pattern found
  shift
  found="$(for pattern in "$@"; do compgen -f -X "!$pattern" -- "$word"; done)"
  if [[ -n "$found" ]]; then
    printf '%s\n' "$found"
    compgen -d -- "$word"
  else
    compgen -f -- "$word"
  fi
}

_localtune_tui_runs() { compgen -W latest -- "$1"; _localtune_tui_named "$1" 'runs/*/run.toml'; }
_localtune_tui_trash() { _localtune_tui_named "$1" 'trash/*/*/run.toml'; }
_localtune_tui_models_or_dirs() {
  _localtune_tui_named "$1" 'models/*/config.json'
  compgen -f -X '!*.gguf' -- "$1"
  compgen -d -- "$1"
}
_localtune_tui_chat_dirs() { _localtune_tui_runs "$1"; _localtune_tui_models_or_dirs "$1"; }
_localtune_tui_any_file() { compgen -f -- "$1"; }
_localtune_tui_config_file() { _localtune_tui_matching "$1" '*.toml'; }
_localtune_tui_import_file() { _localtune_tui_matching "$1" '*.yml' '*.yaml' '*.py' '*.ipynb'; }
_localtune_tui_template_file() { _localtune_tui_matching "$1" '*.jinja' '*.j2'; }
_localtune_tui_data_file() { _localtune_tui_matching "$1" "${_localtune_tui_data_patterns[@]}"; }
_localtune_tui_opened_file() { _localtune_tui_matching "$1" '*.toml' "${_localtune_tui_data_patterns[@]}"; }
_localtune_tui_presets() { compgen -W "${_localtune_tui_preset_names[*]}" -- "$1"; }
_localtune_tui_keys() { compgen -W "${_localtune_tui_all_keys[*]}" -- "$1"; }
_localtune_tui_live_keys() { compgen -W "${_localtune_tui_some_keys[*]}" -- "$1"; }

# The first word may be a file as well as a command.
_shtab_localtune_tui_pos_0_COMPGEN=_localtune_tui_opened_file

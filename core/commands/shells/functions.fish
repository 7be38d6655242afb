# $argv[1]: the directory of runs or models, $argv[2]: a file in each of them; plain names only
function _localtune_tui_named
  set -l home ~/.local/share/localtune
  test -n "$XDG_DATA_HOME"; and set home $XDG_DATA_HOME/localtune
  test -n "$LOCALTUNE_HOME"; and set home $LOCALTUNE_HOME
  set -l files $home/$argv[1]/*/$argv[2]
  # A run in the trash lies below the time of its deletion.
  test $argv[1] = trash; and set files $home/trash/*/*/$argv[2]
  for file in $files
    string match -r '^[A-Za-z0-9._-]+$' -- (string split -r -m2 / -- $file)[2]
  end
end

# Files of the patterns, and directories.
function _localtune_tui_only
  for candidate in (__fish_complete_path (commandline -ct))
    set -l name (string split -m1 \t -- $candidate)[1]
    for pattern in $argv '*/'
      string match -q -- $pattern $name; and echo $candidate; and break
    end
  end
end

# The same; every file where there is none of them.
function _localtune_tui_matching
  set -l found (_localtune_tui_only $argv)
  if string match -qrv '^[^\t]*/(\t|$)' -- $found
    printf '%s\n' $found
  else
    __fish_complete_path (commandline -ct)
  end
end

function _localtune_tui_runs
  echo latest
  _localtune_tui_named runs run.toml
end
function _localtune_tui_trash
  _localtune_tui_named trash run.toml
end
function _localtune_tui_models_or_dirs
  _localtune_tui_named models config.json
  _localtune_tui_only '*.gguf'
end
function _localtune_tui_chat_dirs
  _localtune_tui_runs
  _localtune_tui_models_or_dirs
end
function _localtune_tui_any_file
  __fish_complete_path (commandline -ct)
end
function _localtune_tui_config_file
  _localtune_tui_matching '*.toml'
end
function _localtune_tui_import_file
  _localtune_tui_matching '*.yml' '*.yaml' '*.py' '*.ipynb'
end
function _localtune_tui_template_file
  _localtune_tui_matching '*.jinja' '*.j2'
end
function _localtune_tui_data_file
  _localtune_tui_matching $_localtune_tui_data_patterns
end
function _localtune_tui_opened_file
  _localtune_tui_matching '*.toml' $_localtune_tui_data_patterns
end
function _localtune_tui_presets
  printf '%s\n' $_localtune_tui_preset_names
end
function _localtune_tui_keys
  printf '%s\n' $_localtune_tui_all_keys
end
function _localtune_tui_live_keys
  printf '%s\n' $_localtune_tui_some_keys
end

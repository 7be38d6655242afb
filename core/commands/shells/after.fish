
complete -c localtune-tui -n '_shtab_localtune_tui_using; and test $_shtab_localtune_tui_npos -eq 0' \
  -ka '(_localtune_tui_opened_file)'

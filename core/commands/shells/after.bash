
_localtune_tui() {
  _shtab_localtune_tui "$@"
  [[ ${#COMPREPLY[@]} == 1 && "${COMPREPLY[0]}" == *= ]] && compopt -o nospace
  return 0
}
complete -o bashdefault -F _localtune_tui localtune-tui

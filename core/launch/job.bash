# USR1 is Slurm's notice that the time is nearly over, TERM the end of the job: most often it was cancelled. Both let
# the run save a checkpoint and stop. srun passes USR1 on to its tasks; at TERM it would kill them.
noticed= ended= unseen= child= tell=TERM
heard() {
  unseen=1
  if [ -n "$child" ]; then kill -s "$tell" "$child" 2> /dev/null; fi
}
trap 'noticed=1; heard' USR1
trap 'ended=1; heard' TERM

# Runs a command and takes its status. A signal ends 'wait' early, one that is long dealt with too, and the shell keeps
# the status of what is over, so that asking again is never too late.
attend() {
  "$@" &
  child=$!
  if [ -n "$noticed$ended" ]; then heard; fi
  unseen=
  wait "$child"; status=$?
  while [ -n "$unseen" ] || kill -0 "$child" 2> /dev/null; do
    unseen=
    wait "$child" 2> /dev/null; again=$?
    if [ "$again" != 127 ]; then status=$again; fi
  done
  child=
}
newest() { ls -d "$run"/checkpoints/step-* 2> /dev/null | tail -n 1; }
# The end that the run has recorded in this attempt, as its code. srun tells only the highest code of its tasks, which
# may be that of one that was killed when all was done.
recorded() {
  if [ "$(cat "$run/state.json" 2> /dev/null)" = "$was" ]; then return; fi
  case $(sed -n 's/^ "state": "\(.*\)",$/\1/p' "$run/state.json") in
    finished) if grep -q '^ "refused": "",$' "$run/state.json"; then echo 0; else echo 5; fi ;;
    stopped) echo 3 ;;
    failed) echo 4 ;;
  esac
}
too_soon() {
  echo "The time was over before a step was saved; the job is not queued again, as it would come no further."
  echo "Give it more time (--time), or earlier notice (--signal=B:USR1@SECONDS)."
} >&2

# No package of the directory that sbatch was called in is imported.
export PYTHONSAFEPATH=1
python={python}

# The processes meet at the first node, at a port of this job's own.
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT

# A job that was queued again goes on with its run; the home of localtune-tui is on a disk that all nodes share.
note="${SLURM_SUBMIT_DIR:-.}/.localtune-$SLURM_JOB_ID"
if [ ! -s "$note" ]; then
  attend "$python" -m tui train {config}{options} --name {name} --no-start > "$note.new"
  if [ "$status" != 0 ]; then
    rm -f "$note.new"
    if [ -n "$noticed" ]; then too_soon; fi
    exit "$status"
  fi
  mv "$note.new" "$note"
fi
run=$(cat "$note")

before=$(newest)
status=3
tell=USR1
for attempt in $(seq 0 {restarts}); do
  if [ -n "$noticed$ended" ]; then break; fi
  resume=
  if [ -n "$(newest)" ]; then resume=--resume; fi
  was=$(cat "$run/state.json" 2> /dev/null)
  # A lost process is noticed by the others, which end by themselves; the first one must be left to record its end.
  attend srun --kill-on-bad-exit=0 "$python" -m core.worker "$run" $resume
  end=$(recorded)
  if [ -n "$end" ]; then status=$end; fi
  # 0 finished, 3 stopped, 4 failed or refused, 5 refused by eval.gate; anything else is a process that was lost.
  case $status in 0|3|4|5) break ;; esac
done

case $status in 0|4|5) rm -f "$note"; exit "$status" ;; esac
if [ -n "$noticed" ] && [ "$(newest)" = "$before" ]; then
  too_soon
elif [ -n "$noticed" ]; then
  if [ -n "$ended" ] && scontrol show job "$SLURM_JOB_ID" | grep -q 'Reason=TimeLimit'; then
    # The time ran out while the checkpoint was written.
    scontrol requeue "$SLURM_JOB_ID"
  else
    # Nothing comes of this where the job was cancelled, even a moment ago.
    scontrol requeue incomplete "$SLURM_JOB_ID"
  fi
fi
exit "$status"

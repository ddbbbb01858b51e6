#!/usr/bin/env bash
# Runs on each host of a TPU slice, for tools/launch_queued_resource.sh.
#
#   tpu_worker.sh install            installs the package that this file is in
#   tpu_worker.sh start ARGUMENT...  starts infoprune_jax.main with arguments,
#                                    unless it runs with the same ones
#   tpu_worker.sh read BYTE          prints the log from a byte on, from 1, and
#                                    in a last line how the job has ended: its
#                                    exit code, 'lost', or nothing if it runs
#   tpu_worker.sh stop               ends the job, after it has saved its state
#
# A job goes on if the connection is lost. RUN_FOLDER holds its log, exit code,
# process id and arguments. STOP_SECONDS is how long a job may take to save.
set -euo pipefail

source=$(cd "$(dirname "$0")/.." && pwd)
run=${RUN_FOLDER:-$HOME/infoprune_jax_run}
mkdir -p "$run"

runs() {
  [ -s "$run/pid" ] && kill -0 "$(cat "$run/pid")" 2> /dev/null
}

install() {
  local wanted
  wanted=$(cat "$source/pyproject.toml" "$source/constraints.txt" | cksum)
  if [ "$(cat "$source/.installed" 2> /dev/null)" = "$wanted" ]; then return; fi
  # The Python of these machines is too old; uv brings one.
  python3 -m pip install --quiet --user uv
  local uv=$HOME/.local/bin/uv
  "$uv" venv --quiet --clear --python 3.11 "$source/.venv"
  "$uv" pip install --quiet --python "$source/.venv/bin/python" \
    --constraint "$source/constraints.txt" \
    --editable "${source}[gcs]" 'jax[tpu]'
  printf '%s\n' "$wanted" > "$source/.installed"
}

start() {
  if runs && [ "$*" = "$(cat "$run/arguments")" ]; then return; fi
  stop
  rm -f "$run/pid" "$run/code"
  printf '%s' "$*" > "$run/arguments"
  export JAX_PLATFORMS=${JAX_PLATFORMS-tpu,cpu} # Never the CPU in its place.
  # shellcheck disable=SC2016 # The inner shell expands them.
  setsid bash -c '
    cd "$1"
    run=$2
    shift 2
    .venv/bin/python -m infoprune_jax.main "$@" > "$run/log" 2>&1 &
    echo $! > "$run/pid"
    wait $! && code=0 || code=$?
    echo "$code" > "$run/code"
  ' start "$source" "$run" "$@" < /dev/null > /dev/null 2>&1 &
  until [ -s "$run/pid" ]; do sleep 0.1; done
}

read_log() {
  # The end first: what is written meanwhile is read the next time.
  local end=''
  if [ -s "$run/code" ]; then
    end=$(cat "$run/code")
  elif ! runs; then
    sleep 1 # Between the end of the job and the writing of its code.
    end=$(cat "$run/code" 2> /dev/null || echo lost)
  fi
  if [ -e "$run/log" ]; then tail --bytes="+$1" "$run/log"; fi
  printf '\n%s' "$end"
}

stop() {
  if ! runs; then return; fi
  local pid
  pid=$(cat "$run/pid")
  kill -TERM "$pid" || true
  for ((second = 0; second < ${STOP_SECONDS:-300}; second++)); do
    if ! runs; then return; fi
    sleep 1
  done
  kill -KILL "$pid" || true
  sleep 1
}

case ${1-} in
  install) install ;;
  start)
    shift
    start "$@"
    ;;
  read) read_log "$2" ;;
  stop) stop ;;
  *)
    echo "tpu_worker.sh: expected install, start, read or stop, got '${1-}'" >&2
    exit 2
    ;;
esac

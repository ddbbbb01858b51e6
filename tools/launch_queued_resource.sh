#!/usr/bin/env bash
# Runs one job of infoprune_jax on Cloud TPUs, v4 to v6e, as a queued resource.
#
#   tools/launch_queued_resource.sh --name=mine-score --tpu=v5e-64 \
#     --project=PROJECT --zone=ZONE \
#     -- --config=configs/mine.py --workdir=gs://bucket/mine --job=score
#
# It requests the TPU and waits for it, installs this folder on every host,
# starts `python -m infoprune_jax.main` with the arguments after `--`, prints
# the log of the first host, and deletes the TPU in the end. If the TPU is taken
# away, it requests another. If a host is lost, it starts all hosts again. The
# job then continues. The same command started again follows a job that runs.
#
#   --slices=N          slices, as mesh.dcn_*; default: 1
#   --spot              a TPU that may be taken away, for less
#   --fetch=DIR         copies the workdir there in the end, without token store,
#                       score tables and checkpoints
#   --keep              does not delete the TPU, so that another job can use it
#   --max_restarts=N    default: 20
#   --poll_seconds=N    default: 15
#   --dry_run           prints the commands alone
#
# Needs the Google Cloud CLI, and for several hosts a key in the SSH agent:
# ssh-add ~/.ssh/google_compute_engine
#
# Exit codes: 0, the job is done; 1, it failed, or it cannot be followed; 2, an
# argument is wrong, and nothing was started.
set -euo pipefail

name='' tpu='' project='' zone='' slices=1 spot='' fetch='' keep='' dry_run=''
max_restarts=20 poll_seconds=15
max_failures=6 # polls in a row that may fail, as when a network is down

say() { printf 'launch_queued_resource: %s\n' "$*" >&2; }

refuse() {
  say "$*"
  exit 2
}

parse() {
  local argument
  while [ $# -gt 0 ]; do
    argument=$1
    shift
    case $argument in
      --name=* | --tpu=* | --project=* | --zone=* | --slices=* | --fetch=* | \
        --max_restarts=* | --poll_seconds=*)
        local option=${argument%%=*}
        printf -v "${option#--}" '%s' "${argument#*=}"
        ;;
      --spot) spot=1 ;;
      --keep) keep=1 ;;
      --dry_run) dry_run=1 ;;
      --) break ;;
      *) refuse "$argument is no option: see the first lines of $0" ;;
    esac
  done
  job=("$@" --multiprocess)
}

check() {
  local option number
  for option in name tpu project zone; do
    if [ -z "${!option}" ]; then refuse "--$option=... is missing"; fi
  done
  for option in slices max_restarts poll_seconds; do
    number=${!option}
    if ! [[ $number =~ ^[0-9]+$ ]]; then
      refuse "--$option=$number must be a number"
    fi
  done
  case $tpu in
    v4-*) accelerator=$tpu runtime=tpu-ubuntu2204-base ;;
    v5e-*) accelerator=v5litepod-${tpu#v5e-} runtime=v2-alpha-tpuv5-lite ;;
    v5p-*) accelerator=$tpu runtime=v2-alpha-tpuv5 ;;
    v6e-*) accelerator=$tpu runtime=v2-alpha-tpuv6e ;;
    *) refuse "--tpu=$tpu must be a slice of v4, v5e, v5p or v6e, such as v5e-64" ;;
  esac
  workdir=''
  for option in "${job[@]}"; do
    if [[ $option == --workdir=gs://* ]]; then workdir=${option#--workdir=}; fi
  done
  if [ -z "$workdir" ]; then
    refuse '--workdir=gs://... is missing after --: all hosts write there'
  fi
  if ! command -v gcloud > /dev/null; then
    refuse 'gcloud is not on the PATH: install the Google Cloud CLI'
  fi
}

# Runs a command of gcloud, or prints it. What gcloud says about an error that
# comes again is explained, and ends the script.
call() {
  if [ -n "$dry_run" ]; then
    printf 'gcloud'
    printf ' %q' "$@"
    echo
    return
  fi
  local status=0
  gcloud "$@" 2> "$scratch/errors" || status=$?
  if [ "$status" != 0 ]; then
    cat "$scratch/errors" >&2
    explain
  fi
  return "$status"
}

explain() {
  if grep -qE 'auth login|[Rr]eauth|invalid_grant|UNAUTHENTICATED' \
    "$scratch/errors"; then
    say "log in with 'gcloud auth login'. If $name exists, it goes on and costs:" \
      "the same command follows it, and this ends it: ${delete[*]}"
  elif grep -qE 'RESOURCE_EXHAUSTED|[Qq]uota' "$scratch/errors"; then
    say "the quota of $project in $zone does not allow $slices x $tpu: ask for" \
      'more, or take another zone, a smaller --tpu or --spot'
  elif grep -q 'PERMISSION_DENIED' "$scratch/errors"; then
    say "your account may not do this in $project: ask for the role roles/tpu.admin"
  else
    return 0
  fi
  exit 1
}

queued() {
  call compute tpus queued-resources "$@" --project="$project" --zone="$zone"
}

on_first_host() { queued ssh "$name" --node=0 --worker=0 --command="$1"; }
on_all_hosts() { queued ssh "$name" --node=all --worker=all --command="$1"; }

# The state of the request, such as ACTIVE; NONE without one, UNKNOWN if the
# question fails.
state() {
  if [ -n "$dry_run" ]; then
    echo NONE
  elif gcloud compute tpus queued-resources describe "$name" \
    --format='value(state.state)' --project="$project" --zone="$zone" \
    2> "$scratch/errors"; then
    return
  elif grep -q NOT_FOUND "$scratch/errors"; then
    echo NONE
  else
    cat "$scratch/errors" >&2
    echo UNKNOWN
  fi
}

create() {
  local nodes=(--node-id="$name")
  if [ "$slices" -gt 1 ]; then
    nodes=(--node-count="$slices" --node-prefix="$name")
  fi
  queued create "$name" "${nodes[@]}" --accelerator-type="$accelerator" \
    --runtime-version="$runtime" ${spot:+--spot}
}

delete_tpu() { queued delete "$name" --force --quiet; }

# Requests the TPU unless there is one, and waits until it is there.
get_tpu() {
  local now before='' failures=0
  while :; do
    now=$(state)
    if [ "$now" != "$before" ] && [ -z "$dry_run" ]; then say "$name is $now"; fi
    before=$now
    case $now in
      ACTIVE) return ;;
      NONE)
        create || {
          say "$name cannot be requested"
          exit 1
        }
        if [ -n "$dry_run" ]; then return; fi
        ;;
      SUSPENDED | FAILED)
        if [ "$now" = FAILED ]; then count_restart 'the request failed'; fi
        delete_tpu
        ;;
      UNKNOWN)
        explain
        failures=$((failures + 1))
        if [ "$failures" = "$max_failures" ]; then
          say "gcloud does not answer; the same command continues"
          exit 1
        fi
        ;;
    esac
    sleep "$poll_seconds"
  done
}

# Copies this folder to every host, installs it there and starts the job.
start_job() {
  local archive=$scratch/infoprune_jax.tar.gz
  if [ -n "$dry_run" ]; then
    echo "git ls-files --cached --others --exclude-standard -z |" \
      "tar --create --gzip --null --files-from=- --file=$archive"
  else
    git ls-files --cached --others --exclude-standard -z |
      tar --create --gzip --null --files-from=- --file="$archive"
  fi
  queued scp "$archive" "$name:" --node=all --worker=all || return
  on_all_hosts 'mkdir -p infoprune_jax &&
    tar -xzf infoprune_jax.tar.gz -C infoprune_jax &&
    bash infoprune_jax/tools/tpu_worker.sh install' || return
  on_all_hosts "bash infoprune_jax/tools/tpu_worker.sh start$(printf ' %q' "${job[@]}")"
}

# Prints the log of the first host until the job ends, and sets `code`: its exit
# code, or 'lost'.
follow_log() {
  local seen=1 failures=0 chunk=$scratch/chunk bytes
  code=''
  while [ -z "$code" ]; do
    if on_first_host "bash infoprune_jax/tools/tpu_worker.sh read $seen" \
      > "$chunk"; then
      if [ -n "$dry_run" ]; then
        cat "$chunk"
        code=0
        return
      fi
      failures=0
      code=$(tail -n 1 "$chunk")
      bytes=$(($(wc -c < "$chunk") - ${#code} - 1))
      if [ "$bytes" -gt 0 ]; then head -c "$bytes" "$chunk"; fi
      seen=$((seen + bytes))
    else
      failures=$((failures + 1))
      case $(state) in
        SUSPENDING | SUSPENDED | FAILED | NONE) code=lost ;;
      esac
      if [ "$failures" = "$max_failures" ]; then code=lost; fi
    fi
    if [ -z "$code" ]; then sleep "$poll_seconds"; fi
  done
}

count_restart() {
  restarts=$((restarts + 1))
  if [ "$restarts" -gt "$max_restarts" ]; then
    say "gives up after $max_restarts restarts: $1"
    finish 1
  fi
  say "restart $restarts of at most $max_restarts: $1"
}

finish() {
  if [ -n "$keep" ] && [ -n "$dry_run" ]; then exit; fi
  if [ -n "$keep" ]; then
    say "$name is kept and costs; to delete it: ${delete[*]}"
  else
    delete_tpu || say "$name may still cost; to delete it: ${delete[*]}"
  fi
  exit "$1"
}

main() {
  parse "$@"
  check
  cd "$(dirname "$0")/.."
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  delete=(gcloud compute tpus queued-resources delete "$name" --force
    --project="$project" --zone="$zone")
  trap 'say "$name goes on and costs. To end it: ${delete[*]}"; exit 1' \
    INT TERM
  restarts=0
  while :; do
    get_tpu
    if ! start_job; then
      count_restart 'a host cannot be reached'
      # A host that is gone does not come back: after some tries, other hosts.
      if [ $((restarts % 3)) = 0 ]; then delete_tpu; fi
      continue
    fi
    follow_log
    case $code in
      0) break ;;
      # As in tools/launch_gke.py: after these the same command may succeed.
      75 | 134 | 137 | 139 | 143 | lost) count_restart "the job ended with $code" ;;
      *)
        say "the job failed with code $code; the last lines of every host:"
        on_all_hosts 'tail -n 20 infoprune_jax_run/log' || true
        finish 1
        ;;
    esac
  done
  if [ -z "$dry_run" ]; then say 'the job is done'; fi
  if [ -n "$fetch" ]; then
    call storage rsync "$workdir" "$fetch" --recursive \
      --exclude='(.*/)?(token_store|scores|checkpoints)/.*'
  fi
  finish 0
}

main "$@"

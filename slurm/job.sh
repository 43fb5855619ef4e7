#!/bin/bash
# One Slurm job of gantool: what `gantool sweep` submits and what the templates beside this file call.
#
#   job.sh RUN            train RUN (a run directory or a config), a process for each task of the job
#   job.sh RUN RUN ...    train several runs at the same time on one GPU, a task for each
#   job.sh @FILE          the same for the runs in one line of FILE (separated by tabs): task 0 of an array takes the first
#   job.sh --packed ...   one run, if it is the only one left, has one task all the same
#   job.sh --report DIR   write the results of a sweep
#   words after -- are passed over
#
# It runs on the host, with bash and Slurm's own commands alone, also where gantool is in a container. A run leaves marks
# in its directory; they say whether the job goes back to the queue, since exit codes do not survive srun:
#   stopped     saved and left early; the file says why: SIGUSR2 and `the time limit` are requeued, SIGTERM is not
#   cancelled   never started again
#
# Settings, from the environment (all optional):
#   GANTOOL              the command [gantool]
#   GANTOOL_CONTAINER    what comes before it, e.g. "apptainer exec --nv gantool.sif"
#   GANTOOL_SRUN         more options for srun
#   GANTOOL_INTERFACE    network interface for NCCL and Gloo
#   GANTOOL_HOST_SUFFIX  what makes a node's name its name in the fast network
#   GANTOOL_SCRATCH      a folder on the node itself [$SLURM_TMPDIR, $TMPDIR or /tmp]
#   GANTOOL_STAGE        1: copy the packed data to scratch, once for each node
# Commands and options are split as a shell does: quote what has spaces in it.
set -u
wait_for_kill=3600 # seconds at most; after SIGTERM whoever sent it ends the job

say() { echo "gantool job $id: $*"; }

# The value of a key in the run's status.json, which has a line for each.
status_of() { sed -n 's/^ *"'"$2"'": "\{0,1\}\([^",]*\)"\{0,1\},\{0,1\}$/\1/p' "$1/status.json" 2>/dev/null; }

# Why this run must not be started now; nothing if it may.
why_not() {
  local state job
  state=$(status_of "$1" state) job=$(status_of "$1" job)
  if [ -e "$1/cancelled" ]; then
    echo "it was cancelled"
  elif [[ $state == failed || $state == diverged ]] && [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ]; then
    echo "it failed; to try it again: gantool sweep --retry-failed"
  elif [ "$state" = running ] && [ -n "$job" ] && [ "$job" != "$id" ] &&
    [ -n "$(squeue -h -j "$job" -t RUNNING,SUSPENDED,COMPLETING -o %i 2>/dev/null)" ]; then
    echo "job $job is training it"
  fi
}

# A config is made a run directory.
run_directory() {
  if [ -d "$1" ]; then echo "$1"; elif [[ $1 == -* ]]; then
    echo "gantool job $id: $1 is no run; for other settings: gantool train --init CONFIG --set ..., then give its run" >&2
    return 2
  elif [ ! -e "$1" ]; then
    echo "gantool job $id: $(hostname) has no $1: is it in a folder that all nodes share?" >&2 && return 2
  else
    eval "local -a command=(${GANTOOL_CONTAINER:-} ${GANTOOL:-gantool})"
    "${command[@]}" train --init "$1"
  fi
}

end_of_job() {
  local text=${SLURM_JOB_END_TIME:-} # seconds; newer versions of Slurm only
  if [ -z "$text" ]; then
    text=$(squeue -h -j "$id" -o %e 2>/dev/null)
    [ -z "$text" ] || text=$(date -d "$text" +%s 2>/dev/null) # of no text, date makes midnight
  fi
  echo "$text"
}

start_mps() { # several processes on one GPU take turns; with MPS they share it
  [ "$1" -gt 1 ] && [ -n "${CUDA_VISIBLE_DEVICES:-}" ] && command -v nvidia-cuda-mps-control >/dev/null || return 1
  export CUDA_MPS_PIPE_DIRECTORY=$scratch/mps CUDA_MPS_LOG_DIRECTORY=$scratch/mps
  mkdir -p "$scratch/mps" && nvidia-cuda-mps-control -d && return 0
  say "MPS does not start here: the runs take turns on the GPU"
  unset CUDA_MPS_PIPE_DIRECTORY CUDA_MPS_LOG_DIRECTORY
  return 1
}

# The batch script's part: once for the job, on its first node.
job() {
  local terminated='' rc mps='' why run srun packed='' missing=0
  [ "$1" != --packed ] || { packed=1 && shift; }
  local -a wanted=() runs=() options=()
  trap 'terminated=1' TERM
  trap : USR2 USR1
  if [[ $1 == @* ]]; then
    IFS=$'\t' read -r -a wanted < <(sed -n "$((${SLURM_ARRAY_TASK_ID:-0} + 1))p" "${1#@}")
  else
    wanted=("$@")
  fi
  [ ${#wanted[@]} -gt 0 ] || { say "$1 has no line for this task" && exit 2; }
  [ ${#wanted[@]} -le 1 ] || packed=1
  for run in "${wanted[@]}"; do
    run=$(run_directory "$run") || { missing=1 && continue; }
    why=$(why_not "$run")
    if [ -n "$why" ]; then say "$run is left alone: $why"; else runs+=("$run") && rm -f "$run/stopped"; fi
  done
  [ ${#runs[@]} -gt 0 ] || exit $((missing ? 2 : 0))

  for run in "${runs[@]}"; do say "training $run, which writes to $run/output.txt"; done
  GANTOOL_DEADLINE=$(end_of_job)
  export GANTOOL_DEADLINE
  MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)${GANTOOL_HOST_SUFFIX:-}
  export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000)) # below the ports that systems give away
  [ -z "${GANTOOL_INTERFACE:-}" ] || export NCCL_SOCKET_IFNAME=$GANTOOL_INTERFACE GLOO_SOCKET_IFNAME=$GANTOOL_INTERFACE
  start_mps ${#runs[@]} && mps=1

  options=(--export=ALL --unbuffered --input=none --wait=60 --kill-on-bad-exit=1)
  [ -z "$packed" ] || options=(--export=ALL --unbuffered --input=none --wait=0 --kill-on-bad-exit=0 --ntasks=${#runs[@]})
  # From Slurm 22.05 on srun does not take this over from sbatch by itself.
  [ -z "${SLURM_CPUS_PER_TASK:-}" ] || options+=("--cpus-per-task=$SLURM_CPUS_PER_TASK")
  eval "options+=(${GANTOOL_SRUN:-})"
  srun "${options[@]}" bash "$self" --task "$packed" "${runs[@]}" &
  srun=$!
  while wait $srun; rc=$?; [ $rc -gt 128 ] && kill -0 $srun 2>/dev/null; do :; done # a trap ends wait, not srun

  [ -z "$mps" ] || echo quit | timeout 10 nvidia-cuda-mps-control
  after "$rc" "$terminated" "${runs[@]}"
}

# What becomes of the job: done, back to the queue, or waiting to be killed by whoever said SIGTERM.
after() {
  local rc=$1 terminated=$2 run why again=
  shift 2
  for run in "$@"; do
    say "$run: $(status_of "$run" state) $(status_of "$run" message)"
    [ ! -e "$run/cancelled" ] && [ -e "$run/stopped" ] || continue
    case $(status_of "$run" state) in failed | diverged) continue ;; esac # and srun ended its other ranks by SIGTERM
    why=$(cat "$run/stopped")
    say "$run stopped: $why"
    case $why in SIGUSR2 | "the time limit") again=1 ;; SIGTERM) terminated=1 ;; esac
  done
  if [ -n "$terminated" ]; then
    # Requeued now, a cancelled job would rise again; a preempted one is requeued by Slurm, but only if it is killed.
    say "waiting for the end that SIGTERM announced"
    sleep $wait_for_kill
    exit 0
  fi
  if [ -n "$again" ]; then # before anything that takes time: the end may be near
    scontrol requeue "$id" && exit 0
    say "Slurm does not requeue this job: 'gantool sweep' starts it again"
  fi
  if [ "${SLURM_NNODES:-1}" -gt 1 ]; then
    timeout 60 srun --ntasks="$SLURM_NNODES" --ntasks-per-node=1 rm -rf "$scratch"
  else
    rm -rf "$scratch"
  fi
  exit "$rc"
}

# The part of each task.
task() {
  local packed=$1 run rank=$SLURM_PROCID name binds output=output.txt
  local -a runs=("${@:2}") command=()
  trap '' USR2 # one that comes before Python can handle it must not kill it
  run=${runs[0]}
  if [ -n "$packed" ]; then
    run=${runs[$rank]}
    export GANTOOL_SHARED_BY=${#runs[@]}
  elif [ "$SLURM_NTASKS" -gt 1 ]; then
    export RANK=$rank WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID LOCAL_WORLD_SIZE=$((SLURM_NTASKS / SLURM_NNODES))
    [ "$rank" = 0 ] || output=output-rank$rank.txt
  fi
  # One task alone may use all CPUs of the job, which gantool counts itself.
  [ "$SLURM_NTASKS" = 1 ] && [ -z "${SLURM_CPUS_PER_TASK:-}" ] || export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
  mkdir -p "$scratch"
  for name in TORCHINDUCTOR_CACHE_DIR TRITON_CACHE_DIR; do # several processes in one of these harm each other
    [ -n "${!name:-}" ] || export "$name=$scratch/$rank-$name"
  done
  for name in CUDA_CACHE_PATH MPLCONFIGDIR NUMBA_CACHE_DIR; do
    [ -n "${!name:-}" ] || export "$name=$scratch/$name"
  done
  [ -z "${GANTOOL_STAGE:-}" ] || export GANTOOL_STAGE_DIR=$scratch/data
  binds=${APPTAINER_BIND:-${SINGULARITY_BIND:-}} # of the site; Apptainer reads the second only where there is no first
  export APPTAINER_BIND=$scratch${binds:+,$binds}
  export SINGULARITY_BIND=$APPTAINER_BIND
  exec >>"$run/$output" 2>&1
  echo "# started $(date '+%F %T') on $(hostname): job $id, restart ${SLURM_RESTART_COUNT:-0}"
  # Ignored signals stay ignored over exec, but the start of a container would undo it: once more, inside.
  eval "command=(${GANTOOL_CONTAINER:-} sh -c 'trap \"\" USR2; exec \"\$@\"' sh ${GANTOOL:-gantool})"
  exec "${command[@]}" train "$run"
}

id=${SLURM_JOB_ID:?job.sh is started by sbatch}
[ -z "${SLURM_ARRAY_JOB_ID:-}" ] || id=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID # SLURM_JOB_ID may mean all of an array
scratch=${GANTOOL_SCRATCH:-${SLURM_TMPDIR:-${TMPDIR:-/tmp}}}/gantool-$(id -u)-$SLURM_JOB_ID
self=$(realpath "${BASH_SOURCE[0]}")
# Who submits may not know which of the two there is: both may come with a module.
if [[ ${GANTOOL_CONTAINER:-} == "apptainer "* ]] && ! command -v apptainer >/dev/null && command -v singularity >/dev/null; then
  GANTOOL_CONTAINER=singularity${GANTOOL_CONTAINER#apptainer}
fi
words=()
for word in "$@"; do
  [ "$word" != -- ] || break
  words+=("$word")
done
case ${words[0]:-} in
  --task) task "${words[@]:1}" ;;
  --report)
    eval "command=(${GANTOOL_CONTAINER:-} ${GANTOOL:-gantool})"
    exec "${command[@]}" report "${words[1]}"
    ;;
  "") echo "job.sh: give a run directory, a config or @FILE" >&2 && exit 2 ;;
  *) job "${words[@]}" ;;
esac

#!/usr/bin/env bash
# Train EP-SAM from slides and patch labels.
#
#   ./train.sh [demo | own | own-small | camelyon16 | camelyon17 | settings.yaml] [--fresh | --from STAGE]
#              [--gpus N] [section.key=value ...]
#
# Run again, it continues where it stopped. The log is printed and written to logging_<name>.txt. Relative paths count from
# where you call this. With --gpus N processes share each stage, each on a GPU of its own (code/docs/cluster.md).
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"  # for `sh train.sh`
set -euo pipefail
export EPSAM_CALLED_FROM=$PWD PYTHONSAFEPATH=1
script=$(readlink -f -- "$0" 2>/dev/null || echo "$0")  # it may be called by a link
CDPATH='' cd -- "$(dirname -- "$script")"

case "${1:-}" in
  -h|--help) sed -n '2,9s/^# \{0,1\}//p' "${script##*/}"; exit 0 ;;
  ''|-*|*=*) ;;
  *) DATASET_TYPE=$1; shift ;;
esac
DATASET_TYPE=${DATASET_TYPE:-demo}

again=()
processes=()
overrides=()
while [ $# -gt 0 ]; do
  case "$1" in
    --fresh) again=(reset); shift ;;
    --from) again=(reset --from "${2:?--from needs the name of a stage}"); shift 2 ;;
    --gpus)
      [[ ${2:-} =~ ^[1-9][0-9]?$ ]] || { echo "error: --gpus needs a number of GPUs, 1 to 99; see ./train.sh --help" >&2; exit 2; }
      processes=(-m epsam.torchrun --nproc-per-node "$2"); shift 2 ;;
    name=*)  # the demo must not draw into the folder of another data set
      [ "$DATASET_TYPE" != demo ] || { echo "error: \`$1\`: the demo keeps its name; did you mean ./train.sh ${1#name=}?" >&2; exit 2; }
      overrides+=("$1"); shift ;;
    -*) echo "error: unknown option \`$1\`; see ./train.sh --help" >&2; exit 2 ;;
    *=*) overrides+=("$1"); shift ;;
    *) echo "error: \`$1\` is not understood; see ./train.sh --help" >&2; exit 2 ;;
  esac
done

source code/setup.sh
export EPSAM_OWNER_PID=$$
finished=
launcher=()
stage() {  # unless it is one of those that are finished
  case $'\n'$finished in *$'\n'"$1: done already"*) return ;; esac
  "$EPSAM_PYTHON" ${launcher[@]+"${launcher[@]}"} -m epsam "$@" --config "$DATASET_TYPE" ${overrides[@]+"${overrides[@]}"}
}
shared_stage() {  # by as many processes as --gpus says
  local launcher=(${processes[@]+"${processes[@]}"})
  stage "$@"
}

trap 'stage release >/dev/null 2>&1 || true' EXIT

[ ${#again[@]} -eq 0 ] || stage "${again[@]}"
[ "$DATASET_TYPE" != demo ] || stage demo
stage doctor
finished=$(stage finished) || { printf '%s\n' "$finished"; exit 1; }
[ -z "$finished" ] || printf '%s\n' "$finished"
stage preprocess
shared_stage train-classifier
shared_stage embed
shared_stage initial-masks
shared_stage finetune
shared_stage retrain
shared_stage distill
shared_stage evaluate
stage report

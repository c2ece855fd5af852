#!/usr/bin/env bash
# Segment tumour with trained checkpoints. Without settings: the demo's test patches with what the demo trained.
#
#   TEST_DATASET_DIR=my_slide.tif OUTPUT_DIR=out ./infer.sh [--fresh] [--mpp UM_PER_PX] [--config FILE]
#                                                           [section.key=value ...]
#
# The log is printed and written to logging_inference.txt. Relative paths count from where you call this.
set -euo pipefail
export EPSAM_CALLED_FROM=$PWD PYTHONSAFEPATH=1
cd "$(dirname "$0")"

# A patch folder (image/, with or without mask/), a slide, or a folder of slides. Empty: the demo's test patches.
export TEST_DATASET_DIR=${TEST_DATASET_DIR:-}
# The classifier that ./train.sh made. Empty: the demo's.
export RESNET_CHECKPOINT=${RESNET_CHECKPOINT:-}
# vit_b, vit_l, vit_h or demo; its weights by path, or empty: checkpoints/, fetched when missing.
export SAM_MODEL_TYPE=${SAM_MODEL_TYPE:-demo}
export SAM_CHECKPOINT=${SAM_CHECKPOINT:-}
# The decoder of the last round, to predict with the classifier and SAM as published. Empty: with the student.
export SAM_DECODER_CHECKPOINT=${SAM_DECODER_CHECKPOINT:-}
# The student. Empty: that of the run that RESNET_CHECKPOINT is from, or, if it has none, the decoder of its last round.
export STUDENT_CHECKPOINT=${STUDENT_CHECKPOINT:-}
# Empty: runs/inference.
export OUTPUT_DIR=${OUTPUT_DIR:-}

case "${1:-}" in
  -h|--help) sed -n '2,7s/^# \{0,1\}//p' "${0##*/}"; exit 0 ;;
esac

arguments=()
while [ $# -gt 0 ]; do
  case "$1" in
    --fresh) arguments+=("$1"); shift ;;
    --mpp) arguments+=("$1" "${2:?--mpp needs a resolution in um per px}"); shift 2 ;;
    --config) arguments+=("$1" "${2:?--config needs a file of settings}"); shift 2 ;;
    -*) echo "error: unknown option \`$1\`; see ./infer.sh --help" >&2; exit 2 ;;
    *=*) arguments+=("$1"); shift ;;
    *) echo "error: \`$1\` is not understood; see ./infer.sh --help" >&2; exit 2 ;;
  esac
done

source code/setup.sh
.venv/bin/python -m epsam infer ${arguments[@]+"${arguments[@]}"}

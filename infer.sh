#!/usr/bin/env bash
# Segment tumour in slides, folders of slides or a patch folder, with a trained model:
#
#   ./infer.sh SLIDE_OR_FOLDER... [--model NAME|FILE|URL] [--output DIR] [--mpp UM_PER_PX] [--fresh]
#              [section.key=value ...]
#
#   ./infer.sh dataset/demo/images/tumor_002.tif                     a slide, with the demo's model
#   ./infer.sh slides/*.svs --model camelyon17 --output predicted    with the model of `./train.sh camelyon17`
#
# --model    the name of a run (checkpoints/NAME_*.pth), or a model file: `.venv/bin/python -m epsam export-model NAME
#            FILE.epsam` packs all that a model needs; or its address (https://...epsam, #sha256=... is checked);
#            without it demo
# --output   without it runs/inference/MODEL/SLIDE_OR_FOLDER, numbered so that calls for other slides or with other settings
#            do not meet
# --mpp      resolution of slides whose files do not say it
# --fresh    replace what an earlier call wrote to the same folder
# --config   settings of the run that made the checkpoints, where they have no .json beside them
#
# The environment variables below name the same and single checkpoints. Paths count from where you call this. The log is
# printed and written to logging_inference.txt.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"  # for `sh infer.sh`
set -euo pipefail
export EPSAM_CALLED_FROM=$PWD PYTHONSAFEPATH=1
script=$(readlink -f -- "$0" 2>/dev/null || echo "$0")  # it may be called by a link
CDPATH='' cd -- "$(dirname -- "$script")"

# A patch folder (image/, with or without mask/), a slide, or a folder of slides, where none is given above.
# Empty: the demo's test patches.
export TEST_DATASET_DIR=${TEST_DATASET_DIR:-}
# The classifier that ./train.sh made, in place of --model.
export RESNET_CHECKPOINT=${RESNET_CHECKPOINT:-}
# vit_b, vit_l, vit_h or demo; the model knows it. Its weights by path; empty: checkpoints/, fetched when missing.
export SAM_MODEL_TYPE=${SAM_MODEL_TYPE:-}
export SAM_CHECKPOINT=${SAM_CHECKPOINT:-}
# The decoder of the last round, to predict with the classifier and SAM as published. Empty: with the student.
export SAM_DECODER_CHECKPOINT=${SAM_DECODER_CHECKPOINT:-}
# The student. Empty: that of the run that RESNET_CHECKPOINT is from, or, if it has none, the decoder of its last round.
export STUDENT_CHECKPOINT=${STUDENT_CHECKPOINT:-}
# In place of --output.
export OUTPUT_DIR=${OUTPUT_DIR:-}

case " $* " in
  *" -h "*|*" --help "*) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//p}' "${script##*/}"; exit 0 ;;
esac

source code/setup.sh
"$EPSAM_PYTHON" -m epsam infer "$@"

# Sourced by the scripts: makes .venv on first use and installs what requirements.txt lists (again when it changes).
# PYTHON names another interpreter than python3; EXTRA=dev installs what the tests need too; CONSTRAINTS=code/constraints.txt
# installs the versions that were last tested. VENV=/path/to/environment uses that one, as it is: nothing is installed.
# Sets EPSAM_PYTHON, the interpreter that the scripts run.
PYTHON=${PYTHON:-python3}
EXTRA=${EXTRA:-}
CONSTRAINTS=${CONSTRAINTS:-}
EPSAM_PYTHON=.venv/bin/python

if [ -n "${VENV:-}" ]; then
  if [ -n "$EXTRA" ]; then
    echo "error: EXTRA=$EXTRA installs packages, and nothing is installed into VENV; unset one of them" >&2
    exit 1
  fi
  case $VENV in /*) ;; *) VENV=${EPSAM_CALLED_FROM:-$PWD}/$VENV ;; esac
  EPSAM_PYTHON=$VENV/bin/python PYTHON=$EPSAM_PYTHON
  if [ ! -x "$EPSAM_PYTHON" ]; then
    echo "error: VENV=$VENV: no environment of Python is there (bin/python); correct the path, or unset VENV" >&2
    exit 1
  fi
fi

if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
  how="install it, or name it: PYTHON=/path/to/python3 $0"
  [ -z "${VENV:-}" ] || how="VENV=$VENV is older, or damaged; name another, or unset VENV"
  echo "error: Python 3.10 or later is needed; $how" >&2
  exit 1
fi
if [ -n "$CONSTRAINTS" ] && [ ! -f "$CONSTRAINTS" ]; then
  echo "error: CONSTRAINTS=$CONSTRAINTS: there is no such file; code/constraints.txt is one" >&2
  exit 1
fi

if [ -n "${VENV:-}" ]; then
  "$EPSAM_PYTHON" code/check_environment.py requirements.txt || exit 1
  export PYTHONPATH=$PWD/code${PYTHONPATH:+:$PYTHONPATH}
else
  wanted=$(cat requirements.txt code/pyproject.toml | cksum)
  pinned=${CONSTRAINTS:+$(cksum < "$CONSTRAINTS")}
  marker=.venv/installed${EXTRA:+_$EXTRA}
  installed=$(cat "$marker" 2>/dev/null || true)
  if [ "${installed%%$'\n'*}" != "$wanted" ] || { [ -n "$pinned" ] && [ "${installed#*$'\n'}" != "$pinned" ]; }; then
    for folder in . .venv code; do  # pip writes epsam.egg-info into code
      if [ -e "$folder" ] && [ ! -w "$folder" ] && { [ "$folder" != . ] || [ ! -e .venv ]; }; then
        echo "error: packages must be installed, and you cannot write to $(cd "$folder" && pwd). Ask its owner" \
          "($(ls -ld "$folder" | awk '{print $3}')) to run the same command once, or use a copy of this folder of your own" >&2
        exit 1
      fi
    done
    echo "Installing into .venv (a few minutes, several GB, once) ..."
    [ -x .venv/bin/python ] || "$PYTHON" -m venv .venv || {
      echo "error: .venv could not be made; on Debian and Ubuntu: apt install python3-venv" >&2
      exit 1
    }
    .venv/bin/python -m pip install --quiet --disable-pip-version-check ${CONSTRAINTS:+-c "$CONSTRAINTS"} \
      -r requirements.txt -e "code${EXTRA:+[$EXTRA]}" || {
      echo "error: installation failed (see above); fix it and run the same command again" >&2
      exit 1
    }
    for made in .venv/installed "$marker"; do  # with EXTRA, what a call without it wants is there too
      printf '%s\n' "$wanted" ${pinned:+"$pinned"} > "$made"
    done
  fi
fi

# Sourced by the scripts: makes .venv on first use and installs what requirements.txt lists (again when it changes).
# PYTHON names another interpreter than python3; EXTRA=dev installs what the tests need too; CONSTRAINTS=code/constraints.txt
# installs the versions that were last tested.
PYTHON=${PYTHON:-python3}
EXTRA=${EXTRA:-}
CONSTRAINTS=${CONSTRAINTS:-}

if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
  echo "error: Python 3.10 or later is needed; install it, or name it: PYTHON=/path/to/python3 $0" >&2
  exit 1
fi
if [ -n "$CONSTRAINTS" ] && [ ! -f "$CONSTRAINTS" ]; then
  echo "error: CONSTRAINTS=$CONSTRAINTS: there is no such file; code/constraints.txt is one" >&2
  exit 1
fi

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
  printf '%s\n' "$wanted" ${pinned:+"$pinned"} > "$marker"
fi

# Sourced by the doors: makes .venv on first use and installs what requirements.txt lists (again when it changes).
# PYTHON names another interpreter than python3; EXTRA=dev installs what the tests need too.
PYTHON=${PYTHON:-python3}
EXTRA=${EXTRA:-}

if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
  echo "error: Python 3.10 or later is needed; install it, or name it: PYTHON=/path/to/python3 $0" >&2
  exit 1
fi

wanted=$(cat requirements.txt code/pyproject.toml | cksum)
marker=.venv/installed${EXTRA:+_$EXTRA}
if [ "$(cat "$marker" 2>/dev/null)" != "$wanted" ]; then
  echo "Installing into .venv (a few minutes, several GB, once) ..."
  [ -x .venv/bin/python ] || "$PYTHON" -m venv .venv || {
    echo "error: .venv could not be made; on Debian and Ubuntu: apt install python3-venv" >&2
    exit 1
  }
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -e "code${EXTRA:+[$EXTRA]}" || {
    echo "error: installation failed (see above); mend it and run the same command again" >&2
    exit 1
  }
  echo "$wanted" > "$marker"
fi

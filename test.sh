#!/usr/bin/env bash
# Lint, check formatting and types, and run every test: ./test.sh [pytest arguments]
#
# Ends with the share of the code that the tests ran (coverage), when all of them did. WORKERS: processes of the tests, each of
# one thread; as many as there are processors when it is not set.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"  # for `sh test.sh`
set -euo pipefail
cd "$(dirname "$0")"

EXTRA=dev
source code/setup.sh
.venv/bin/ruff check code
.venv/bin/ruff format --check --quiet code || {
  echo "error: these files are not formatted as ruff does: run .venv/bin/ruff format code" >&2
  .venv/bin/ruff format --check code >&2
}
.venv/bin/mypy --config-file code/pyproject.toml code/epsam

arguments=("$@")
[ $# -gt 0 ] || arguments=(--cov=epsam --cov-report=term:skip-covered)
WORKERS=${WORKERS:-$(.venv/bin/python -c 'import os; print(os.cpu_count())')}
OMP_NUM_THREADS=1 .venv/bin/python -m pytest -c code/pyproject.toml -n "$WORKERS" --dist worksteal code/tests "${arguments[@]}"

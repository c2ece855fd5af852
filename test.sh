#!/usr/bin/env bash
# Lint and run every test: ./test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")"

EXTRA=dev
source code/setup.sh
.venv/bin/ruff check code
.venv/bin/python -m pytest -c code/pyproject.toml code/tests "$@"

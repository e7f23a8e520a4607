#!/usr/bin/env bash
# Set up, then run what CI runs: formatting, lint, types, tests. Every step runs; any failure fails.
set -euo pipefail
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/_setup.sh
source "$repository/scripts/_setup.sh"
set_up "$repository"
cd "$repository"
export PATH="$repository/.venv/bin:$PATH"

failed=()
step() {
  local name=$1 started=$SECONDS
  shift
  printf '== %s\n' "$name"
  "$@" || failed+=("$name")
  printf '== %s: %d s\n' "$name" $((SECONDS - started))
}

step format ruff format --check
step lint ruff check
step types basedpyright
step tests pytest --durations=10 -rs
printf '== all: %d s\n' "$SECONDS"
if [ "${#failed[@]}" -gt 0 ]; then
  printf 'failed: %s\n' "${failed[*]}" >&2
  exit 1
fi

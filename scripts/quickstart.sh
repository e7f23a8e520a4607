#!/usr/bin/env bash
# Set up, then roll out the shipped nano policy. Arguments are Hydra overrides:
#   bash scripts/quickstart.sh suite=libero_object rollout.init_states=5
set -euo pipefail
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/_setup.sh
source "$repository/scripts/_setup.sh"
set_up "$repository"
cd "$repository"
exec .venv/bin/python scripts/rollout.py "$@"

#!/usr/bin/env bash
# Run the tests in .venv (made or updated first). Arguments go to pytest; a later -m replaces the default tier:
#
#   bash scripts/test.sh                      the default tier: no network, no GPU
#   bash scripts/test.sh -m slow              likewise distributed, bench, gpu
#   bash scripts/test.sh tests/methods -x
#   bash scripts/test.sh -n 0 --pdb           in this process, not in two workers that take a file each
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup_env.sh dev

# Tiny models: more threads cost more than they give.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export HF_HUB_OFFLINE=1 TRL_EXPERIMENTAL_SILENCE=1 TOKENIZERS_PARALLELISM=false

exec .venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"

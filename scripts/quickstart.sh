#!/usr/bin/env bash
# From a fresh clone to two trained policies: an offline method on pairs, then a self-play method on the same text game.
# CPU only, no download but the packages.
#
#   bash scripts/quickstart.sh [key.sub=value ...]      overrides go to both runs
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup_env.sh

# A tiny model: more threads cost more than they give.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

started=$SECONDS
for name in dpo egpo; do
    printf '\nquickstart: training recipes/quickstart/%s.yaml\n' "$name"
    .venv/bin/alignment train "recipes/quickstart/$name.yaml" "output_dir=runs/quickstart/$name" "$@"
done

cat <<TEXT

quickstart: done in $((SECONDS - started)) s. Each folder under runs/quickstart holds the resolved recipe, metrics.jsonl, a summary
and the model in final/. Next:

  source .venv/bin/activate
  alignment methods                                                 every method, with its paper
  alignment game --methods egpo,omd --tau 0.01                      who reaches the equilibrium, on exact games
  alignment train recipes/quickstart/dpo.yaml method.name=ipo method.tau=0.1        another loss, the rest unchanged
  alignment recipes list                                            every recipe; change policy.model for a real one
TEXT

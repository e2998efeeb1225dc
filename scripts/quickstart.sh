#!/usr/bin/env bash
# From a fresh clone to a report: DPO and EGPO on the text game, from the same start, with the same number of verdicts.
# CPU only, no download but the packages.
#
#   bash scripts/quickstart.sh [key.sub=value ...]      overrides go to both runs
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup_env.sh

# A small model: more threads cost more than they give, and each run has a core.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

started=$SECONDS
folder=runs/quickstart
mkdir -p "$folder"

printf '\nquickstart: a small language model learns to answer as people do (half a minute, then cached)\n'
.venv/bin/python -c 'from alignment.textgame import shared_game; shared_game()'

# Both read 268,800 verdicts: DPO 2,240 groups of 120 pairs, EGPO 70 iterations of two stages of 1,920 questions.
printf '\nquickstart: recipes/quickstart/dpo.yaml in the background, see %s/dpo.log\n' "$folder"
.venv/bin/alignment train recipes/quickstart/dpo.yaml output_dir="$folder/dpo" \
    data.preferences.limit=2240 training.max_steps=149 training.disable_tqdm=true "$@" >"$folder/dpo.log" 2>&1 &
dpo=$!
trap 'kill "$dpo" 2>/dev/null || true' EXIT

printf 'quickstart: recipes/quickstart/egpo.yaml\n'
.venv/bin/alignment train recipes/quickstart/egpo.yaml output_dir="$folder/egpo" \
    sampling.opponent.num_completions=8 training.learning_rate=2e-3 training.max_steps=70 evaluation.every=35 "$@"
if ! wait "$dpo"; then
    tail -n 5 "$folder/dpo.log" >&2
    exit 1
fi
trap - EXIT

printf '\n'
.venv/bin/alignment report "$folder/dpo" "$folder/egpo" --answers 3

cat <<TEXT

quickstart: done in $((SECONDS - started)) s. Open $PWD/$folder/report.html.

The gap is how much the best reply to a policy would win: 0 at the equilibrium. Each folder under $folder holds the
resolved recipe, metrics.jsonl, a summary, a report of its own and the model in final/. Next:

  source .venv/bin/activate
  alignment methods                                                 every method, with its paper
  alignment train recipes/quickstart/inpo.yaml                      any of them plays this game: recipes/quickstart/
  alignment game --methods egpo,omd --tau 0.01                      who reaches the equilibrium, on exact games

On a GPU, with a model of yours: a recipe of recipes/egpo, or this one with another policy, other prompts and another judge:

  alignment train recipes/quickstart/egpo.yaml evaluation.exact=null policy.model=Qwen/Qwen2.5-1.5B-Instruct \\
    data.prompts.path=prompts.jsonl data.evaluation=null oracle='{kind: bradley_terry, model: your/reward-model}' \\
    evaluation.oracle=null training.learning_rate=1e-6 sampling.max_new_tokens=256 data.max_prompt_length=512 \\
    output_dir=runs/egpo
TEXT

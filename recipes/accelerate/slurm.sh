#!/bin/bash
# sbatch recipes/accelerate/slurm.sh recipes/dpo/llama-3.1-8b_ultrafeedback.yaml training.learning_rate=5e-7
# A launcher on each node, which starts a process for each of its GPUs. LAUNCH: another configuration than multi_node.yaml.
# The folder must be one that all nodes see, with the package installed in VENV (.venv). Not run on a cluster yet.
#SBATCH --job-name=alignment
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.out
set -euo pipefail

if [ $# -lt 1 ]; then
    echo "usage: sbatch $0 RECIPE [KEY=VALUE ...]" >&2
    exit 2
fi
# Slurm runs a copy of this file, in the folder of the submission.
source "${VENV:-.venv}/bin/activate"

gpus=${SLURM_GPUS_ON_NODE:?expected a job of Slurm with GPUs: sbatch this file}
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
export MAIN_ADDRESS=${hosts%%$'\n'*} MAIN_PORT PROCESSES
MAIN_PORT=$((20000 + SLURM_JOB_ID % 20000))     # two jobs that share a node do not meet
PROCESSES=$((SLURM_NNODES * gpus))
export LAUNCH=${LAUNCH:-recipes/accelerate/multi_node.yaml}
# Nodes that compute often have no network: models and data stand on disk.
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1}

# SLURM_PROCID is known inside a task only, hence the quotes.
srun --kill-on-bad-exit=1 bash -c 'exec accelerate launch --config_file "$LAUNCH" \
    --num_machines "$SLURM_NNODES" --num_processes "$PROCESSES" --machine_rank "$SLURM_PROCID" \
    --main_process_ip "$MAIN_ADDRESS" --main_process_port "$MAIN_PORT" \
    scripts/train.py "$@"' task "$@"

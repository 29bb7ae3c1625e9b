#!/bin/bash
# Train on all GPUs of several nodes: sbatch docs/assets/slurm.sh -c own_data --data-dir DIR --experiment mine
# Change the lines below to what your cluster has. Output and --teacher-cache must be folders that all nodes share.
#SBATCH --job-name=deit-lt
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

first_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# since Slurm 22.05, srun does not take over the --cpus-per-task of the job
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"
# one torchrun a node, which starts a process for each of its GPUs
srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node "$SLURM_GPUS_ON_NODE" \
  --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$first_node:$((20000 + SLURM_JOB_ID % 10000))" \
  train.py --resume auto "$@"

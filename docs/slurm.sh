#!/bin/bash
#SBATCH --job-name=pretrain
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --open-mode=append
#SBATCH --output=pretrain-%j.log

# Pretraining on eight machines with eight GPUs each. A run that reaches the time limit is requeued and resumed.
RUN=runs/cc
FIRST=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# --signal sends SIGTERM to the ranks five minutes before the time limit; they write a checkpoint and stop. torchrun has
# --shutdown-timeout from torch 2.12 on; remove it for older versions.
srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node "$SLURM_GPUS_ON_NODE" --max-restarts 3 --shutdown-timeout 240 \
    --rdzv-backend c10d --rdzv-endpoint "$FIRST:29500" --rdzv-id "$SLURM_JOB_ID" \
    -m pretrain.run --resume --data 'data/cc/regions-{00000..00331}.tar' --config base --bert bert-base-uncased \
    --precision bf16 --workers 6 --out "$RUN"

# Requeue only a job that reached its time limit (24 hours, as above) and is not complete: an error would repeat.
if [ "$SECONDS" -gt $((24 * 3600 - 600)) ] && [ ! -e "$RUN/result.json" ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi

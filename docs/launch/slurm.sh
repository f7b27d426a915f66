#!/usr/bin/env bash
# One collection over many nodes of a Slurm cluster: every node takes its share of the problems.
#   MODEL=/shared/Qwen3-8B TASK=aime25 DATA=/shared/aime25.jsonl OUT=/shared/out sbatch --array=0-3 docs/launch/slurm.sh
# A node that is lost or runs out of time loses nothing that was finished: submit the same line again, or let Slurm
# requeue it. The shards together have the trials of one machine with the same seed.
#SBATCH --job-name=kinetics
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120
set -euo pipefail
: "${MODEL:?folder of the model}" "${OUT:?folder that every node sees}"

# 120 s before the time is up Slurm sends SIGTERM to the batch script, which by then is this command: it writes what is
# finished and ends.
exec kinetics sample "$MODEL" \
  --task "${TASK:-aime25}" ${DATA:+--data "$DATA"} \
  --attention "${ATTENTION:-block_topk:16x64}" --trials "${TRIALS:-16}" \
  --slots "${SLOTS:-64}" --mesh "${MESH:-1x8}" --dtype bfloat16 \
  --shard "$((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN))/$SLURM_ARRAY_TASK_COUNT" \
  --out "$OUT" --json

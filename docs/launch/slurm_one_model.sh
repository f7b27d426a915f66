#!/usr/bin/env bash
# One model over several nodes of a Slurm cluster, for those too large for one: every node holds a part of each layer.
#   MODEL=/shared/model TASK=aime25 DATA=/shared/aime25.jsonl OUT=/shared/out MESH=1x16 \
#     sbatch --nodes=2 docs/launch/slurm_one_model.sh
# MESH names the GPUs of all nodes together. Submit the same line again to go on after a lost node or the end of the time.
#SBATCH --job-name=kinetics
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
set -euo pipefail
: "${MODEL:?folder of the model}" "${OUT:?folder that the first node sees}" "${MESH:?DATAxMODEL over all GPUs}"

# 120 s before the time is up Slurm sends SIGTERM to every process: the first one writes what is finished, and all end.
exec srun kinetics sample "$MODEL" \
  --task "${TASK:-aime25}" ${DATA:+--data "$DATA"} \
  --attention "${ATTENTION:-block_topk:16x64}" --trials "${TRIALS:-16}" \
  --slots "${SLOTS:-64}" --mesh "$MESH" --dtype bfloat16 --distributed auto \
  --out "$OUT" --json

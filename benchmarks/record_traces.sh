#!/usr/bin/env bash
# Record the embedded traces: every Mini size under dense, oracle top-k, block top-k and local attention.
#   bash benchmarks/record_traces.sh OUT [PROBLEMS] [TRIALS]
# METHODS="dense topk" restricts the methods. One process a (model, method), spread over the visible GPUs; an interrupted run continues where it stopped.
set -euo pipefail
out=$1 problems=${2:-80} trials=${3:-16}
python=${PYTHON:-python3}
num_gpus=$(nvidia-smi -L 2>/dev/null | wc -l || true)
export XLA_PYTHON_CLIENT_PREALLOCATE=false
index=0 pids=()
for size in 7M 1.7M 0.6M 0.1M; do
  for method in ${METHODS:-dense topk block_topk:4 block_topk:8 local}; do
    case $method in
      dense) specs=(dense) ;;
      block_topk:4) specs=(block_topk:4x{4,8,16,32,64,96}) ;;
      block_topk:8) specs=(block_topk:8x{2,4,8,16,32,48}) ;;
      *) specs=("$method":{16,32,64,128,256}) ;;
    esac
    CUDA_VISIBLE_DEVICES=$((num_gpus > 0 ? index % num_gpus : 0)) "$python" -m kinetics_jax.cli sample "Kinetics-Mini-$size" \
      "${specs[@]/#/--attention=}" --problems "$problems" --trials "$trials" --slots "$((problems * trials))" \
      --page-len 8 --out "$out/shards/$size" &
    pids+=($!)
    index=$((index + 1))
  done
done
for pid in "${pids[@]}"; do wait "$pid"; done
for size in 7M 1.7M 0.6M 0.1M; do
  "$python" -m kinetics_jax.cli traces compact "$out/shards/$size" --out "$out/Kinetics-Mini-$size.parquet" &
done
wait

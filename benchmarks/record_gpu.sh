#!/usr/bin/env bash
# Measure on one GPU what docs/sampling.md and docs/kernels.md say of it: JSON and text under OUT.
#   OUT=out/gpu benchmarks/record_gpu.sh [steps|peer|kernels|contract|sanitizer|scaling ...]
# Without names the first four run, for minutes each. A command that fails says so, and the others go on. `peer` needs
# torch and transformers, `contract` pytest, `sanitizer` compute-sanitizer too, `scaling` two GPUs.
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
out="${OUT:-out/gpu}"
python="${PYTHON:-python}"
mkdir -p "$out"

part() { # name, command...: its output also goes to a file
  local name="$1" started=$SECONDS
  shift
  "$@" > >(tee "$out/$name.txt") 2> "$out/$name.err" || echo "$name failed: $(tail -n 1 "$out/$name.err" | cut -c1-300)"
  echo "$name: $((SECONDS - started)) s"
}

sparse="block_topk:16x64"
for what in "${@:-steps peer kernels contract}"; do
  for each in $what; do
    case "$each" in
      steps)
        part batch32 "$python" -m kinetics_jax.cli bench decode Qwen3-0.6B --attention dense --attention "$sparse" \
          --context 512 --context 4096 --batch-size 32 --processes 4 --out "$out/decode_step.json"
        part largest "$python" -m kinetics_jax.cli bench decode Qwen3-0.6B Qwen3-1.7B Qwen3-4B Qwen3-8B \
          --attention dense --attention "$sparse" --context 4096 --context 16384 --context 32768 \
          --processes 4 --out "$out/decode_step_largest.json"
        part kernels_0.6b "$python" benchmarks/decode_kernels.py Qwen3-0.6B --out "$out/kernels_0.6b.json"
        part kernels_8b "$python" benchmarks/decode_kernels.py Qwen3-8B --attention "$sparse" --context-len 16384 \
          --batch-size 17 --out "$out/kernels_8b.json"
        ;;
      peer)
        part transformers "$python" benchmarks/transformers_generate.py Qwen3-0.6B --batch-size 32 \
          --prompt-len 512 4096 --gen-len 48 --num-runs 3 --out "$out/transformers.json"
        ;;
      kernels)
        part decode "$python" -m pallas_kernels.benchmarks.decode --out "$out/decode.json"
        part serving "$python" -m pallas_kernels.benchmarks.decode --implementation mosaic_gpu \
          --implementation triton --grid serving --out "$out/decode_serving.json"
        part tune "$python" -m pallas_kernels.benchmarks.tune
        ;;
      contract)
        for implementation in mosaic_gpu triton; do
          # Compiling takes most of the time: small and real sizes at once, which share the memory.
          contract=(env XLA_PYTHON_CLIENT_PREALLOCATE=false "$python" -m pytest -v -o addopts=--import-mode=importlib
            -p no:benchmark tests/kernels --kernel-implementation "$implementation")
          part "contract_$implementation" env XLA_PYTHON_CLIENT_MEM_FRACTION=0.05 \
            "${contract[@]}" -n 10 -k "not real_sizes" &
          part "real_sizes_$implementation" env XLA_PYTHON_CLIENT_MEM_FRACTION=0.26 \
            "${contract[@]}" -n 3 -k real_sizes
          wait
        done
        ;;
      sanitizer)
        # It crashes under CUDA graphs.
        checked=(env XLA_FLAGS=--xla_gpu_enable_command_buffer= XLA_PYTHON_CLIENT_PREALLOCATE=false)
        pytest=("$python" -m pytest -v -o addopts=--import-mode=importlib -p no:benchmark -p no:cacheprovider)
        for tool in memcheck racecheck; do
          part "$tool" "${checked[@]}" compute-sanitizer --tool "$tool" "${pytest[@]}" tests/kernels/test_mosaic_gpu.py \
            -k decodes_equal --kernel-implementation mosaic_gpu &
          # Shown all kernels, racecheck crashes in one that is not ours.
          part "${tool}_append" "${checked[@]}" compute-sanitizer --tool "$tool" --kernel-name kns=append_kernel \
            "${pytest[@]}" tests/kernels/test_append.py -k triton &
        done
        wait
        ;;
      scaling)
        part scaling "$python" -m kinetics_jax.cli bench decode Qwen3-8B --attention dense --attention "$sparse" \
          --context 16384 --batch-size 16 --mesh 1x1 --mesh 2x1 --mesh 1x2 --out "$out/decode_step_scaling.json"
        ;;
      *) echo "unknown part: $each. Known: steps, peer, kernels, contract, sanitizer, scaling" >&2; exit 2 ;;
    esac
  done
done

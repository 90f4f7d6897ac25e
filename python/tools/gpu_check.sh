#!/usr/bin/env bash
# Everything that a GPU alone can show, in under 9 minutes: the build, the tests on the device, the benchmarks, and
# memory and race checks. Prints which device gave the numbers.
#
# python/tools/gpu_check.sh [OUTPUT_FOLDER]
set -euo pipefail
cd "$(dirname "$0")/../.."

output=${1:-runs/gpu_check}
python=${PYTHON:-python3}
mkdir -p "$output"
export SDPT_EXT_TEST_DEVICE=cuda

title() { printf '\n== %s\n' "$*"; }

title "device"
nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv,noheader | tee "$output/device.txt"

title "build"
timeout 180 "$python" setup.py build_ext --inplace > "$output/build.log" 2>&1 || { tail -40 "$output/build.log"; exit 1; }
"$python" -m sdpt_ext

title "operators and a model on the device"
timeout 110 "$python" -m pytest -q -m cuda tests/cuda | tee "$output/tests.txt"

title "benchmarks"
timeout 90 "$python" python/benchmarks/fusion.py --device cuda --dtypes bfloat16 --budget 2 --no_memory \
  --contenders ext torch eager sdpa compiled-torch | tee "$output/fusion.txt"
timeout 40 "$python" python/benchmarks/deform_conv.py --device cuda --dtype bfloat16 | tee "$output/deform_conv.txt"

title "compute-sanitizer"
small="test_edges_of_tiles or test_every_run or test_corners or test_half_precision"
for tool in memcheck racecheck; do
  timeout 60 compute-sanitizer --tool "$tool" --error-exitcode 1 \
    "$python" -m pytest -q -x tests/ops -k "$small" > "$output/$tool.txt" 2>&1 || { tail -40 "$output/$tool.txt"; exit 1; }
  tail -2 "$output/$tool.txt"
done

#!/usr/bin/env bash
# Runs the operators' tests on a build that checks every access: sanitize.sh address,undefined | thread
#
# The interpreter is not instrumented, so the sanitizer's runtime is loaded before it. torch's threads come from an
# OpenMP runtime that the thread sanitizer cannot look into; LLVM's (package libomp-14-dev), which can explain itself
# to it, takes its place.
set -euo pipefail

sanitizer=${1:?usage: sanitize.sh address,undefined | thread}
python=${PYTHON:-python}
root=$(git -C "$(dirname "$0")" rev-parse --show-toplevel)
build=$root/build/sanitize-${sanitizer%%,*}

case $sanitizer in
  thread)
    compiler=${CXX:-g++}
    llvm=$(dirname "$(realpath "$("$compiler" -print-file-name=libomp.so.5)")")
    preload=$("$compiler" -print-file-name=libtsan.so):$llvm/libomp.so
    export TSAN_OPTIONS="halt_on_error=0 exitcode=66 ignore_noninstrumented_modules=1"
    export OMP_TOOL_LIBRARIES=$llvm/libarcher.so
    ;;
  *)
    compiler=${CXX:-g++}
    # Exceptions come from the C++ library, which the interpreter loads too late for the sanitizer to find.
    preload=$("$compiler" -print-file-name=libasan.so):$("$compiler" -print-file-name=libstdc++.so.6)
    # The interpreter never frees some of what it allocates.
    export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
    ;;
esac

prefix=$("$python" -c "import torch; print(torch.utils.cmake_prefix_path)")
cmake -S "$root" -B "$build" -DCMAKE_PREFIX_PATH="$prefix" -DCMAKE_CXX_COMPILER="$compiler" -DBUILD_TESTING=OFF \
  -DSDPT_EXT_SANITIZE="$sanitizer"
cmake --build "$build"
cd "$root"
LD_PRELOAD=$preload SDPT_EXT_LIBRARY=$build/libsdpt_ext_ops.so \
  "$python" -m pytest -q -s -p no:cacheprovider tests/ops -k "ext and not lesser and not unbiased" "${@:2}"

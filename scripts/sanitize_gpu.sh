#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs the operators' and the memory's tests of a build folder on the GPU under compute-sanitizer: memcheck, racecheck (threads
# that race for shared memory) and synccheck (lanes that do not come together where they must, which no emulator can tell). The
# tools slow kernels down by a hundred times, so the operators get few cases each; PST_TEST_CASES says how many.
# Usage: sanitize_gpu.sh BUILD
set -eu
build=$1
tool=$(command -v compute-sanitizer || true)
for folder in "${CUDA_HOME:-}" "${CUDA_PATH:-}" /usr/local/cuda; do
    [ -n "$tool" ] || [ ! -x "$folder/bin/compute-sanitizer" ] || tool=$folder/bin/compute-sanitizer
done
[ -n "$tool" ] || {
    echo "sanitize_gpu.sh: compute-sanitizer is not installed (it comes with the CUDA toolkit)" >&2
    exit 1
}
PST_TEST_DEVICE=cuda
PST_TEST_CASES=${PST_TEST_CASES:-6}
export PST_TEST_DEVICE PST_TEST_CASES
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# Failing calls are the tests' business: some ask for more memory than there is, and look whether that fails well.
# A log that says nothing of a clean end counts as a failure: a tool that never started has found nothing, too.
run() {
    echo "compute-sanitizer --tool $1: $2"
    tests=$2
    if [ "$1" = memcheck ]; then
        set -- memcheck --report-api-errors no
    else
        set -- "$1"
    fi
    "$tool" --tool "$@" --error-exitcode 99 "$build/tests/device/$tests" >"$log" 2>&1 || {
        cat "$log"
        exit 1
    }
    if grep '^SKIP:' "$log"; then
        exit 0
    fi
    grep 'ERROR SUMMARY: 0 errors\|RACECHECK SUMMARY: 0 hazards' "$log" || {
        cat "$log"
        exit 1
    }
}
run memcheck test_device_ops
run memcheck test_device_memory
run racecheck test_device_ops
run synccheck test_device_ops

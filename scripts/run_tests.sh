#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs the test suite of a build folder, or (further arguments go to ctest) a part of it. A skipped test is counted; one that
# tests/expected_skips.txt does not list fails the run.
# Usage: run_tests.sh BUILD [-L LABEL ...]
set -eu
build=$1
shift
root=$(cd "$(dirname "$0")/.." && pwd)
list=$root/tests/expected_skips.txt
[ -r "$list" ] || {
    echo "run_tests.sh: $list is missing, and without it a skipped test would go unnoticed" >&2
    exit 1
}
log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
ctest --test-dir "$build" --no-tests=error --output-on-failure -j "${JOBS:-$(nproc)}" "$@" >"$log" 2>&1 || status=$?
# By the name of the test where CTest's own log has it; what --output-on-failure showed is there too.
skips=$({
    sed -n '/\*\*\*Skipped/p' "$log"
    awk '/^[0-9]+\/[0-9]+ Test: /{test = $3} sub(/^SKIP: */, ""){print test ": " $0}' "$build"/Testing/Temporary/LastTest.log
} | sort -u)
unexpected=""
if [ -n "$skips" ]; then
    unexpected=$(printf '%s\n' "$skips" | grep -v -F -f "$list" || true)
fi
[ -z "$skips" ] || printf 'skipped (%s):\n%s\n' "$(printf '%s\n' "$skips" | wc -l)" "$skips"
if [ -n "$unexpected" ]; then
    printf 'skipped, and not listed in tests/expected_skips.txt:\n%s\n' "$unexpected"
    status=1
fi
cat "$log"
locked=$(ulimit -l)
if [ "$status" -ne 0 ] && [ "$(id -u)" -ne 0 ] && [ "$locked" != unlimited ] && [ "$locked" -lt 8192 ]; then
    echo "run_tests.sh: only $locked KiB may be locked (ulimit -l), on newer kernels too little for the rings of io_uring; 8192 are enough"
fi
exit "$status"

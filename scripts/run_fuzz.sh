#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs every fuzz target of a build folder for so many seconds, from its seeds in fuzz/seeds/NAME where there are any; as many
# at a time as there are processors (or JOBS).
# Usage: run_fuzz.sh BUILD SECONDS [TARGET]
set -eu
build=$1
seconds=$2
if [ $# -eq 2 ]; then
    find "$build/fuzz" -maxdepth 1 -name 'fuzz_*' -type f -perm -u+x -print0 | sort -z |
        xargs -0 -n 1 -P "${JOBS:-$(nproc)}" "$0" "$build" "$seconds"
    exit
fi
target=$3
name=$(basename "$target")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/found" "$build/fuzz/findings"
seeds="$(cd "$(dirname "$0")/.." && pwd)/fuzz/seeds/$name"
[ -d "$seeds" ] || seeds=""
status=0
# shellcheck disable=SC2086 # $seeds is one folder or nothing
"$target" -max_total_time="$seconds" -timeout=25 -rss_limit_mb=2048 -print_final_stats=1 -verbosity=0 \
    -artifact_prefix="$build/fuzz/findings/$name-" "$work/found" $seeds >"$work/log" 2>&1 || status=$?
echo "== $name for $seconds s" # in one piece: others run beside it
cat "$work/log"
exit "$status"

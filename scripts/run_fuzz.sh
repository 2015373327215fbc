#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs every fuzz target of a build folder for so many seconds, from its seeds in fuzz/seeds/NAME where there are any.
set -eu
build=$1
seconds=$2
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
status=0
for target in "$build"/fuzz/fuzz_*; do
    [ -x "$target" ] && [ -f "$target" ] || continue
    name=$(basename "$target")
    mkdir -p "$work/$name" "$build/fuzz/findings"
    seeds="$root/fuzz/seeds/$name"
    [ -d "$seeds" ] || seeds=""
    echo "== $name for $seconds s"
    # shellcheck disable=SC2086 # $seeds is one folder or nothing
    "$target" -max_total_time="$seconds" -timeout=25 -rss_limit_mb=2048 -print_final_stats=1 -verbosity=0 \
        -artifact_prefix="$build/fuzz/findings/$name-" "$work/$name" $seeds || status=1
done
exit $status

#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Installs into a scratch folder, compiles the example programs with what pkg-config says, and runs them: one brings an
# I/O engine of its own; what the other one prints must be what the installed program prints.
# Usage: example.sh SOURCE BUILD CC SANITIZE
set -eu
source=$1 build=$2 cc=$3 sanitize=${4:-}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cmake --install "$build" --prefix "$work/root" >"$work/log" || {
    cat "$work/log"
    exit 1
}
for file in bin/penstock include/penstock/model.h share/man/man1/penstock.1; do
    [ -f "$work/root/$file" ] || {
        echo "$file was not installed"
        exit 1
    }
done
PKG_CONFIG_PATH=$(dirname "$(find "$work/root" -name penstock.pc)")
export PKG_CONFIG_PATH
# The file names the prefix that was configured; this tree lies elsewhere.
package="pkg-config --define-variable=prefix=$work/root"
libdir=$($package --variable=libdir penstock)

set -- -std=c11 -Wall -Wextra -Werror -pedantic
[ -z "$sanitize" ] || set -- "$@" "-fsanitize=$sanitize"
# shellcheck disable=SC2046 # the flags are words
"$cc" "$@" "$source/examples/generate.c" -o "$work/generate" $($package --cflags --libs penstock) \
    "-Wl,-rpath,$libdir"

# shellcheck disable=SC2046
"$cc" "$@" "$source/examples/engine_skeleton.c" -o "$work/engine_skeleton" $($package --cflags --libs penstock) \
    -pthread "-Wl,-rpath,$libdir"
"$work/engine_skeleton" "$work/bytes" | grep -q '^engine skeleton: '

model=$source/models/penstock-tales prompt="Once upon a time"
"$work/generate" "$model" "$prompt" >"$work/text" || {
    echo "the example failed"
    exit 1
}
"$work/root/bin/penstock" generate "$model" --prompt "$prompt" --max-new-tokens 64 --greedy >"$work/expected" 2>"$work/log" || {
    cat "$work/log"
    exit 1
}
# Its last line is its own.
sed '$d' "$work/text" | cmp - "$work/expected"
tail -n 1 "$work/text" | grep -q '% of the bound'

if "$work/generate" "$work/nowhere" x 2>"$work/error"; then
    echo "a missing folder was no error"
    exit 1
fi
grep -q nowhere "$work/error"

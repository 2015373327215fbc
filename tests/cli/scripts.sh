#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# setup.sh and run_tests.sh among stand-ins for the system's programs: what they say and how they end.
# Usage: scripts.sh SOURCE
set -eu
source=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/bin"

fail() {
    echo "$1"
    cat "$work/log"
    exit 1
}

# stand_in NAME LINE...: a program that runs the lines
stand_in() {
    name=$1
    shift
    printf '#!/bin/sh\n' >"$work/bin/$name"
    printf '%s\n' "$@" >>"$work/bin/$name"
    chmod +x "$work/bin/$name"
}

# Nothing is installed but a shell, and apt-get notes how it was called.
for tool in sh env cat; do
    ln -s "$(command -v $tool)" "$work/bin/$tool"
done
stand_in apt-get "echo \"\$*\" >>'$work/calls'" '[ "$1" != update ] || exit 100'

# An ordinary user without sudo is told what to run, and nothing is tried.
stand_in id 'echo 1000'
if PATH=$work/bin sh "$source/scripts/setup.sh" test >"$work/log" 2>&1; then
    fail "setup.sh succeeded without sudo"
fi
grep -q 'run as root: apt-get install .*libcmocka-dev.* mandoc' "$work/log" || fail "setup.sh did not say what to run"
[ ! -e "$work/calls" ] || fail "setup.sh called apt-get as an ordinary user"

# As root, a failing update does not keep it from installing.
stand_in id 'echo 0'
PATH=$work/bin sh "$source/scripts/setup.sh" test >"$work/log" 2>&1 || fail "a failing apt-get update ended setup.sh"
grep -q '^install .* mandoc' "$work/calls" || fail "setup.sh did not install mandoc"

# A failing installation does end it.
stand_in apt-get 'exit 100'
if PATH=$work/bin sh "$source/scripts/setup.sh" test >"$work/log" 2>&1; then
    fail "a failing apt-get install did not end setup.sh"
fi

# run_tests.sh: skips are compared with the list, and a missing list is no empty list.
mkdir -p "$work/tree/scripts" "$work/tree/tests" "$work/build/Testing/Temporary" "$work/ctest"
cp "$source/scripts/run_tests.sh" "$work/tree/scripts"
cp "$work/bin/id" "$work/ctest/ctest"
run_tests() {
    PATH=$work/ctest:$PATH sh "$work/tree/scripts/run_tests.sh" "$work/build" >"$work/log" 2>&1
}
echo 'SKIP: the moon is down' >"$work/build/Testing/Temporary/LastTest.log"
echo 'the moon' >"$work/tree/tests/expected_skips.txt"
run_tests || fail "an expected skip failed the run"
grep -q 'the moon is down' "$work/log" || fail "a skip was not shown"
echo 'the sun' >"$work/tree/tests/expected_skips.txt"
if run_tests; then
    fail "an unexpected skip was let through"
fi
rm "$work/tree/tests/expected_skips.txt"
if run_tests; then
    fail "without the list of expected skips the run succeeded"
fi
grep -q 'expected_skips.txt is missing' "$work/log" || fail "the missing list was not named"

# sanitize_gpu.sh: a tool that finds nothing, one that finds something, one that never started, and no GPU.
mkdir -p "$work/build/tests/device"
for tool in grep mktemp rm cat; do
    [ -e "$work/bin/$tool" ] || ln -s "$(command -v $tool)" "$work/bin/$tool"
done
sanitize() {
    PATH=$work/bin sh "$source/scripts/sanitize_gpu.sh" "$work/build" >"$work/log" 2>&1
}
stand_in compute-sanitizer 'echo "========= ERROR SUMMARY: 0 errors RACECHECK SUMMARY: 0 hazards"'
sanitize || fail "sanitize_gpu.sh fails where nothing was found"
for check in memcheck racecheck synccheck; do
    grep -q "$check: test_device_ops" "$work/log" || fail "sanitize_gpu.sh did not run $check"
done
stand_in compute-sanitizer 'exit 99'
! sanitize || fail "sanitize_gpu.sh succeeds with errors"
stand_in compute-sanitizer 'exit 0'
! sanitize || fail "sanitize_gpu.sh takes silence for success"
stand_in compute-sanitizer 'echo "SKIP: needs a GPU: none"'
sanitize || fail "sanitize_gpu.sh fails without a GPU"
grep -q 'SKIP: needs a GPU' "$work/log" || fail "sanitize_gpu.sh does not say that there is no GPU"

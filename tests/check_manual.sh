#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Every function of the public headers of devices, chat templates and the I/O library stands in a manual page of section 3, every
# function that a page names is declared in some public header, and mandoc (where it is installed) has nothing to say about the pages.
# Usage: check_manual.sh [PROJECT_ROOT]
set -eu
cd "${1:-$(dirname "$0")/..}"
failed=0
headers="include/penstock/chat.h include/penstock/device.h include/penstock/io.h include/penstock/io_*.h include/penstock/tune.h include/penstock/bench_io.h include/penstock/bench_kernels.h"
# shellcheck disable=SC2086 # a list of files
declared=$(grep -ho 'PST_API [^;]*' $headers | grep -o 'pst_[a-z_]* *(' | tr -d ' (' | sort -u)
known=$(grep -ho 'PST_API [^;]*' include/penstock/*.h | grep -o 'pst_[a-z_]* *(' | tr -d ' (' | sort -u)
documented=$(grep -h '^\.Fn pst_' docs/man/man3/*.3 | grep '"' | awk '{print $2}' | sort -u)
for name in $declared; do
    echo "$documented" | grep -qx "$name" || { echo "no manual page tells about $name"; failed=1; }
done
for name in $documented; do
    echo "$known" | grep -qx "$name" || { echo "the manual tells about $name, which no header declares"; failed=1; }
done
if command -v mandoc >/dev/null 2>&1; then
    mandoc -T lint -W warning docs/man/man3/*.3 docs/man/man7/*.7 || failed=1
fi
exit $failed

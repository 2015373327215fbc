#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Installs what the build needs where it is missing. Usage: setup.sh build|test|peers|fuzz|bench|lint
# Knows Debian and its relatives; elsewhere it names what is missing and fails.
set -eu
need=$1
packages=""

# want PACKAGE COMMAND...: adds the package unless the command succeeds
want() {
    package=$1
    shift
    "$@" >/dev/null 2>&1 || packages="$packages $package"
}

want gcc sh -c 'command -v cc'
want g++ sh -c 'command -v c++'
want cmake sh -c 'command -v cmake'
want libaio-dev sh -c 'ls /usr/include/libaio.h'
want ninja-build sh -c 'command -v ninja'
if command -v pkg-config >/dev/null 2>&1; then
    want liburing-dev pkg-config --exists liburing
    want libjansson-dev pkg-config --exists jansson
    want libpcre2-dev pkg-config --exists libpcre2-8
    want libutf8proc-dev pkg-config --exists libutf8proc
    want libxxhash-dev pkg-config --exists libxxhash
    want libisal-dev pkg-config --exists libisal
else
    packages="$packages pkg-config liburing-dev libjansson-dev libpcre2-dev libutf8proc-dev libxxhash-dev libisal-dev"
fi
case $need in
build) ;;
test)
    want libcmocka-dev pkg-config --exists cmocka
    want mandoc sh -c 'command -v mandoc' # the manual page's test is there only with it
    ;;
peers) want python3-venv python3 -c 'import venv, ensurepip' ;;
fuzz)
    want clang sh -c 'command -v clang'
    want libclang-rt-14-dev sh -c 'ls /usr/lib/llvm-*/lib/clang/*/lib/linux/libclang_rt.fuzzer-*.a'
    ;;
bench)
    want fio sh -c 'command -v fio'
    want libdnnl-dev sh -c 'ls /usr/include/dnnl.h /usr/include/*/dnnl.h'
    ;;
lint)
    want clang-format sh -c 'command -v clang-format'
    want cppcheck sh -c 'command -v cppcheck'
    ;;
*)
    echo "setup.sh: unknown purpose $need" >&2
    exit 2
    ;;
esac
[ -n "$packages" ] || exit 0

if ! command -v apt-get >/dev/null 2>&1; then
    echo "missing (by their Debian names):$packages; see README.md for other distributions" >&2
    exit 1
fi
sudo=""
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null 2>&1 || {
        echo "missing:$packages; run as root: apt-get install$packages" >&2
        exit 1
    }
    sudo="sudo"
fi
echo "installing:$packages"
# One unreachable source of several fails this, and the packages may be there all the same: installing tells.
$sudo apt-get update -q || echo "setup.sh: apt-get update failed; trying with the lists that are there" >&2
# shellcheck disable=SC2086 # a list of words
$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $packages

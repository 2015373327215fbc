#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Fails on an #include that docs/layers.txt does not allow, and on a folder under src/ that the table does not list.
# Usage: check_layers.sh [ROOT]
set -eu
root=${1:-$(dirname "$0")/..}
cd "$root"
status=0
found=$(mktemp)
trap 'rm -f "$found"' EXIT
for room in src/*/ cli/ plugins/*/; do
    room=${room%/}
    line=$(grep -E "^$room +:" docs/layers.txt) || {
        echo "$room is not in docs/layers.txt"
        status=1
        continue
    }
    allowed="${room#src/} ${line#*:}"
    case $room in
    plugins/*) ;; # only the public headers that its line names
    *) allowed="$allowed penstock" ;;
    esac
    # Includes with quotes name "room/file.h"; those without a slash are files of the same folder.
    grep -rnE '^[[:space:]]*#[[:space:]]*include[[:space:]]+"' "$room" --include='*.c' --include='*.h' --include='*.cu' --include='*.cpp' |
    while IFS= read -r hit; do
        target=$(printf '%s\n' "$hit" | sed -E 's/.*"([^"]*)".*/\1/')
        case $target in
        penstock/*) used=$(case $room in plugins/*) echo "$target" ;; *) echo penstock ;; esac) ;;
        */*) used=${target%%/*} ;;
        *) continue ;;
        esac
        case " $allowed " in
        *" $used "*) ;;
        *) echo "not allowed: $hit" ;;
        esac
    done >"$found"
    if [ -s "$found" ]; then
        cat "$found"
        status=1
    fi

done
[ $status -eq 0 ] && echo "layers: every include is allowed"
exit $status

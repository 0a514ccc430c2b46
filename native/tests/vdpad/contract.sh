#!/bin/sh
# Compares what mapping-check says of every file of the contract with what is expected: contract.sh PROGRAM DIRECTORY
set -u
program=$1
directory=$2
failures=0
seen=0
for file in "$directory"/valid/*.dat; do
    seen=$((seen + 1))
    if ! "$program" "$file" | cmp -s - "${file%.dat}.expected" || ! "$program" "$file" >/dev/null; then
        echo "not as expected: $file"
        failures=$((failures + 1))
    fi
done
for file in "$directory"/invalid/*.dat; do
    seen=$((seen + 1))
    said=$("$program" "$file")
    status=$?
    if [ "$status" -ne 1 ] || [ "${said#refused: }" = "$said" ]; then
        echo "not refused: $file: $said"
        failures=$((failures + 1))
    fi
done
echo "$seen files, $failures failures"
[ "$failures" -eq 0 ] && [ "$seen" -ge 20 ]

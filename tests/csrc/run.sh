#!/usr/bin/env bash
# Builds csrc with AddressSanitizer and UndefinedBehaviorSanitizer, and runs its unit tests and its fuzz targets over the
# corpus. SANITIZE=thread ./run.sh looks for data races instead. CXX: the compiler, g++ by default.
set -euo pipefail
cd "$(dirname "$0")/../.."
CXX=${CXX:-g++}
SANITIZE=${SANITIZE:-address,undefined}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

compile() {  # source, object
    $CXX -std=c++17 -O1 -g -fsanitize="$SANITIZE" -fno-sanitize-recover=all -Icsrc -Itests/csrc -c "$1" -o "$2"
}
export -f compile
export CXX SANITIZE

if ! echo 'int main() {}' | $CXX -x c++ -fsanitize="$SANITIZE" - -o "$out/probe" 2> "$out/said"; then
    echo "skipped: $CXX builds nothing with -fsanitize=$SANITIZE here: $(tail -n 1 "$out/said")"
    exit 0
fi
for source in csrc/rans/*.cpp csrc/svd_lora/cpu.cpp tests/csrc/*.cpp tests/fuzz/*.cpp; do
    echo "$source $out/$(basename "$source" .cpp).o"
done | xargs -P "$(nproc)" -L 1 bash -c 'compile "$@"' compile

units=()
for source in csrc/rans/*.cpp csrc/svd_lora/cpu.cpp; do units+=("$out/$(basename "$source" .cpp).o"); done
link() { $CXX -fsanitize="$SANITIZE" "$@" "${units[@]}" -pthread; }
for name in test_rans test_latents test_svd_lora; do
    link "$out/$name.o" -o "$out/$name"
    "$out/$name"
    echo "$name: passed"
done
for name in rans_decode rans_round_trip latents_decode; do
    link "$out/$name.o" "$out/replay.o" -o "$out/$name"
    echo "$name: $("$out/$name" tests/fuzz/corpus/"$name"/*)"
done

#!/usr/bin/env bash
# Builds csrc with AddressSanitizer and UndefinedBehaviorSanitizer, and runs its unit tests and its fuzz targets over the
# corpus. SANITIZE=thread ./run.sh looks for data races instead. CXX: the compiler, g++ by default.
set -euo pipefail
cd "$(dirname "$0")/../.."
CXX=${CXX:-g++}
SANITIZE=${SANITIZE:-address,undefined}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

object() { echo "${1//\//-}.o"; }
compile() {  # source, object
    local level=-O1
    [ "$1" = csrc/svd_lora/cpu.cpp ] && level=-O0  # -O1 takes two minutes for its unrolled loops under sanitizers
    $CXX -std=c++17 $level -g -Wno-psabi -fsanitize="$SANITIZE" -fno-sanitize-recover=all -Icsrc -Itests/csrc \
        -Itests/csrc/emulated -x c++ -c "$1" -o "$2"
}
export -f compile
export CXX SANITIZE

if ! echo 'int main() {}' | $CXX -x c++ -fsanitize="$SANITIZE" - -o "$out/probe" 2> "$out/said"; then
    echo "skipped: $CXX builds nothing with -fsanitize=$SANITIZE here: $(tail -n 1 "$out/said")"
    exit 0
fi
for source in csrc/{rans,attention,swin,gdn,svd_lora}/*.cpp csrc/*/*.cu tests/{csrc,fuzz}/*.cpp; do
    echo "$source $out/$(object "$source")"
done | xargs -P "$(nproc)" -L 1 bash -c 'compile "$@"' compile

link() { $CXX -fsanitize="$SANITIZE" "$@" -pthread; }
rans=("$out"/csrc-rans-*.o)
ops=("$out"/csrc-{attention,swin,gdn,svd_lora}-*.o)  # the kernels for a GPU too: on tests/csrc/emulated
for name in test_rans test_latents; do
    link "$out/tests-csrc-$name.cpp.o" "${rans[@]}" -o "$out/$name"
done
for name in test_window_attention test_svd_lora test_swin_block test_gdn test_cuda test_entries; do
    link "$out/tests-csrc-$name.cpp.o" "${ops[@]}" -o "$out/$name"
done
for name in test_rans test_latents test_window_attention test_svd_lora test_swin_block test_gdn test_cuda test_entries; do
    "$out/$name"
    echo "$name: passed"
done
for name in rans_decode rans_round_trip latents_decode; do
    link "$out/tests-fuzz-$name.cpp.o" "$out/tests-fuzz-replay.cpp.o" "${rans[@]}" -o "$out/$name"
    echo "$name: $("$out/$name" tests/fuzz/corpus/"$name"/*)"
done

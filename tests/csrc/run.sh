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
for source in csrc/{rans,attention,swin,gdn}/*.cpp csrc/svd_lora/cpu.cpp csrc/*/*.cu tests/{csrc,fuzz}/*.cpp; do
    echo "$source $out/$(object "$source")"
done | xargs -P "$(nproc)" -L 1 bash -c 'compile "$@"' compile

rans=()
for source in csrc/rans/*.cpp; do rans+=("$out/$(object "$source")"); done
link() { $CXX -fsanitize="$SANITIZE" "$@" -pthread; }
link "$out/tests-csrc-test_rans.cpp.o" "${rans[@]}" -o "$out/test_rans"
link "$out/tests-csrc-test_latents.cpp.o" "${rans[@]}" -o "$out/test_latents"
link "$out/tests-csrc-test_svd_lora.cpp.o" "$out/csrc-svd_lora-cpu.cpp.o" -o "$out/test_svd_lora"
attention=()
for source in csrc/attention/*.cpp; do attention+=("$out/$(object "$source")"); done
link "$out/tests-csrc-test_window_attention.cpp.o" "${attention[@]}" -o "$out/test_window_attention"
swin=()
for source in csrc/swin/*.cpp; do swin+=("$out/$(object "$source")"); done
link "$out/tests-csrc-test_swin_block.cpp.o" "${swin[@]}" -o "$out/test_swin_block"
gdn=("$out/csrc-swin-tiles.cpp.o")
for source in csrc/gdn/*.cpp; do gdn+=("$out/$(object "$source")"); done
link "$out/tests-csrc-test_gdn.cpp.o" "${gdn[@]}" -o "$out/test_gdn"
link "$out/tests-csrc-test_cuda.cpp.o" "$out"/csrc-*.cu.o "${attention[@]}" "$out/csrc-svd_lora-cpu.cpp.o" \
    -o "$out/test_cuda"
for name in test_rans test_latents test_window_attention test_svd_lora test_swin_block test_gdn test_cuda; do
    "$out/$name"
    echo "$name: passed"
done
for name in rans_decode rans_round_trip latents_decode; do
    link "$out/tests-fuzz-$name.cpp.o" "$out/tests-fuzz-replay.cpp.o" "${rans[@]}" -o "$out/$name"
    echo "$name: $("$out/$name" tests/fuzz/corpus/"$name"/*)"
done

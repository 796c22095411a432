#!/usr/bin/env bash
# Builds csrc with AddressSanitizer and UndefinedBehaviorSanitizer, and runs its unit tests and its fuzz targets over the
# corpus: all of them, or the unit tests that are named (run.sh gdn entries). SANITIZE=thread run.sh looks for data races
# instead. CXX: the compiler, g++ by default.
set -euo pipefail
cd "$(dirname "$0")/../.."
CXX=${CXX:-g++}
SANITIZE=${SANITIZE:-address,undefined}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

declare -A folders=(  # that each unit test needs; the kernels for a GPU run on tests/csrc/emulated
    [rans]=rans [latents]=rans [bf16]="" [window_attention]=attention [svd_lora]=svd_lora [swin_block]=swin [gdn]=gdn [conv3x3]=conv
    [cuda]="attention svd_lora" [entries]="attention svd_lora swin gdn conv"
)
names=("${@:-}")
fuzzers=()
if [ $# = 0 ]; then
    names=(rans latents bf16 window_attention svd_lora swin_block gdn conv3x3 cuda entries)
    fuzzers=(rans_decode rans_round_trip latents_decode)
fi

if ! echo 'int main() {}' | $CXX -x c++ -fsanitize="$SANITIZE" - -o "$out/probe" 2> "$out/said"; then
    echo "skipped: $CXX builds nothing with -fsanitize=$SANITIZE here: $(tail -n 1 "$out/said")"
    exit 0
fi

object() { echo "$out/${1//\//-}.o"; }
compile() {  # source, object
    local level=-O1
    [ "$1" = csrc/svd_lora/cpu.cpp ] && level=-O0  # -O1 takes two minutes for its unrolled loops under sanitizers
    $CXX -std=c++17 $level -g -Wno-psabi -fsanitize="$SANITIZE" -fno-sanitize-recover=all -Icsrc -Itests/csrc \
        -Itests/csrc/emulated -x c++ -c "$1" -o "$2"
}
sources_of() {  # unit test
    local folder source
    for folder in ${folders[$1]}; do
        for source in csrc/"$folder"/*.cpp csrc/"$folder"/*.cu; do
            [ -e "$source" ] && echo "$source"
        done
    done
    echo "tests/csrc/test_$1.cpp"
}
link() { $CXX -fsanitize="$SANITIZE" "$@" -pthread; }
unit() {  # unit test, what multiplies in bfloat16, its name
    local objects=() source
    for source in $(sources_of "$1") "$2"; do objects+=("$(object "$source")"); done
    link "${objects[@]}" -o "$out/$3"
    "$out/$3"
    echo "$3: passed"
}
export -f compile
export CXX SANITIZE

half=csrc/simd/half.cpp emulated=tests/csrc/emulated/half.cpp
{
    echo "$half $emulated" | xargs -n 1
    for name in "${names[@]}"; do sources_of "$name"; done
    for name in "${fuzzers[@]}"; do echo "tests/fuzz/$name.cpp"; echo tests/fuzz/replay.cpp; done
} | sort -u | while read -r source; do echo "$source $(object "$source")"; done |
    xargs -P "$(nproc)" -L 1 bash -c 'compile "$@"' compile

for name in "${names[@]}"; do
    unit "$name" $half "test_$name"
    case $name in swin_block | gdn) unit "$name" $emulated "test_${name}_with_emulated_products" ;; esac
done
for name in "${fuzzers[@]}"; do
    link "$(object "tests/fuzz/$name.cpp")" "$(object tests/fuzz/replay.cpp)" "$out"/csrc-rans-*.o \
        "$(object $half)" -o "$out/$name"
    echo "$name: $("$out/$name" tests/fuzz/corpus/"$name"/*)"
done

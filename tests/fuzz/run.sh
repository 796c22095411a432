#!/usr/bin/env bash
# Every fuzz target for some seconds each, 10 or as said: ./run.sh SECONDS. PYTHON: the one with lora_comp. What is not
# installed is skipped, and said.
# What a fuzzer finds it writes to the current folder as crash-*, timeout-* or oom-*.
set -euo pipefail
seconds=${1:-10}
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export OMP_NUM_THREADS=1

fuzz() {  # name, command: one line, or all that was said where something was found
    local name=$1 said="$scratch/$1.log"
    shift
    if ! "$@" > "$said" 2>&1; then
        cat "$said"
        exit 1
    fi
    echo "$name: $(grep -E '^skipped|^Done' "$said" | tail -n 1)"
}

for name in container payload image; do
    fuzz "$name" "${PYTHON:-python3}" "$here/fuzz.py" "$name" "-max_total_time=$seconds"
done

clang=$(command -v clang++ || true)
if [ -z "$clang" ] || ! echo 'extern "C" int LLVMFuzzerTestOneInput(const char*, unsigned long) { return 0; }' |
        $clang -x c++ -fsanitize=fuzzer,address,undefined - -o "$scratch/probe" 2> /dev/null; then
    echo "rans: skipped: no clang++ with libFuzzer here (Debian: clang and libclang-rt-14-dev)"
    exit 0
fi
cd "$root"
flags="-std=c++17 -O1 -g -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all -Icsrc -Itests/csrc"
targets=(rans_decode rans_round_trip latents_decode)
for source in csrc/rans/*.cpp "${targets[@]/#/tests/fuzz/}"; do
    source=${source%.cpp}.cpp
    echo "$flags -c $source -o $scratch/$(basename "$source" .cpp).o"
done | xargs -P "$(nproc)" -L 1 "$clang"
units=()
for source in csrc/rans/*.cpp; do units+=("$scratch/$(basename "$source" .cpp).o"); done
cd "$OLDPWD"
for name in "${targets[@]}"; do
    $clang -fsanitize=fuzzer,address,undefined "$scratch/$name.o" "${units[@]}" -o "$scratch/$name" -pthread
    mkdir "$scratch/found-$name"
    fuzz "$name" "$scratch/$name" -timeout=10 -rss_limit_mb=2048 "-max_total_time=$seconds" \
        "$scratch/found-$name" "$here/corpus/$name"
done

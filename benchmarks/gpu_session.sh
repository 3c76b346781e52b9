#!/usr/bin/env bash
# One session on a GPU: all that is to be measured there, in an order that loses least when time runs out.
#
#   benchmarks/gpu_session.sh [--tiny] FOLDER [PART|STEP...]
#
# A part fits a call of ten minutes; without any, all three run. A step that fails or runs over its limit does not stop the
# others. FOLDER gets the result, the log and the evidence files of every step, and summary.txt, which is also printed last.
#
#   part 1  facts         what machine this is
#           check         logits against transformers, losslessness, gaps in bf16
#           plain         bandwidth of plain decoding, Llama-2-7B
#           7b            the plan under traced acceptance, Vicuna-7B (the shapes of Llama-2-7B)
#           transformers  generate and assisted generation at the same size, agreement by construction (see the script)
#   part 2  law           the latency law of this device, measured on small models and fitted
#           13b           Llama-2-13B, under the acceptance of Vicuna-7B
#           llama-3.1-8b  with its own first 12 layers as the draft, under the acceptance of Vicuna-7B
#   part 3  70b           Llama-2-70B, refused where the device does not hold it
#   by name llama-3.1-70b with the first 12 layers of Llama-3.1-8B as the draft, under the acceptance of Llama-2-70B
#
# --tiny runs the same commands with tiny models on a CPU, which shows that they run and nothing else.
# PYTHON names the interpreter (default: python).
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

tiny=""
if [[ ${1:-} == --tiny ]]; then
    tiny=yes
    shift
fi
if (($# == 0)); then
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2
    exit 2
fi
mkdir -p "$1" || exit 2
folder=$(cd "$1" && pwd)
shift
python=${PYTHON:-python}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
built=perfmodel/_courses.abi3.so # installing compiles it, and nothing may have been installed here since it changed
if [[ ! -e $built || -n $(find perfmodel/native -newer "$built") ]]; then
    headers=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    cc -O3 -shared -fPIC -I"$headers" perfmodel/native/*.c -o "$built" || echo "replay is not compiled" >&2
fi
all_ok=yes
steps=()

# step NAME LIMIT_S COMMAND...: keeps its result in NAME.txt and its talk in NAME.log, and adds a line to the summary.
step() {
    local name=$1 limit_s=$2 started=$SECONDS status outcome
    shift 2
    echo "--- $name" >&2
    timeout -k 10 "$limit_s" "$@" >"$folder/$name.txt" 2>"$folder/$name.log"
    status=$?
    case $status in
        0) outcome=done ;;
        2) outcome="refused: $(tail -n 1 "$folder/$name.log")" ;;
        124 | 137) outcome="over its limit of $limit_s s" ;;
        *) outcome="failed ($status): $(tail -n 1 "$folder/$name.log")" ;;
    esac
    if ((status != 0 && status != 2)); then all_ok=""; fi
    printf '%-14s %4d s  %s\n' "$name" $((SECONDS - started)) "$outcome" | tee -a "$folder/summary.txt" >&2
    steps+=("$name")
}

# command MODULE FUNCTION: how python runs one of the project's commands without its being installed.
command_of() { echo "import sys; from $1 import $2; sys.exit($2(sys.argv[1:]))"; }

# at_scale NAME LIMIT_S BUDGET_S FLAGS...
at_scale() {
    local name=$1 limit_s=$2 place=(--device cuda --dtype bf16 --budget "$3")
    shift 3
    if [[ $tiny ]]; then place=(--quick --budget 2 --num-prompts 2 --max-new-tokens 16); fi
    step "$name" "$limit_s" "$python" benchmarks/at_scale.py "$@" "${place[@]}" -o "$folder/$name"
}

facts() {
    step facts 60 "$python" -c "
import sys, torch, transformers
from profiler.device import device_facts
from s2d.device import use_device
from s2d.random_pair import free_bytes_of
use_device(sys.argv[1])
device = torch.device(sys.argv[1])
print('torch', torch.__version__, 'CUDA', torch.version.cuda, 'transformers', transformers.__version__)
print('free bytes', free_bytes_of(device))
print(device_facts(device).label)" "$([[ $tiny ]] && echo cpu || echo cuda)"
}

check() {
    step check 120 "$python" benchmarks/device_check.py $([[ $tiny ]] && echo --quick || echo --device cuda --cases 12) -o "$folder"
}

transformers() {
    step transformers 120 "$python" benchmarks/generate_at_scale.py --target llama-2-7b \
        $([[ $tiny ]] && echo --quick || echo --device cuda --dtype bf16) -o "$folder"
}

law() {
    local flags=(--device cuda --dtype bf16 --budget 100)
    if [[ $tiny ]]; then flags=(--depths 1 2 --hidden-sizes 64 128 --rows 1 2 3 --context-tokens 4 8 --budget 1); fi
    step law 180 "$python" -c "$(command_of profiler.cli main_profile)" law "${flags[@]}" -o "$folder/law"
    step law-fit 30 "$python" -c "$(command_of calibrate.cli main_plan)" fit "$folder"/law/*.latency.json -o "$folder/law/law.fit.json"
}

run() {
    case $1 in
        1) for one in facts check plain 7b transformers; do run "$one"; done ;;
        2) for one in law 13b llama-3.1-8b; do run "$one"; done ;;
        3) run 70b ;;
        facts | check | transformers | law) "$1" ;;
        plain) at_scale plain 60 0 --target llama-2-7b --acceptance vicuna-7b --num-prompts 2 --plain-only ;;
        7b) at_scale 7b 240 100 --target vicuna-7b ;;
        13b) at_scale 13b 200 70 --target llama-2-13b --acceptance vicuna-7b --num-prompts 4 ;;
        llama-3.1-8b) at_scale llama-3.1-8b 170 50 --target llama-3.1-8b --draft llama-3.1-8b --acceptance vicuna-7b --num-prompts 4 ;;
        70b) at_scale 70b 570 200 --target llama-2-70b ;;
        llama-3.1-70b) at_scale llama-3.1-70b 570 200 --target llama-3.1-70b --draft llama-3.1-8b --acceptance llama-2-70b ;;
        *)
            echo "unknown part or step '$1': expected 1, 2, 3 or a step; benchmarks/gpu_session.sh alone lists them." >&2
            exit 2
            ;;
    esac
}

for one in "${@:-1 2 3}"; do
    for each in $one; do run "$each"; done
done
for name in "${steps[@]}"; do
    printf '\n=== %s\n' "$name"
    cat "$folder/$name.txt"
done
printf '\n=== summary\n'
cat "$folder/summary.txt"
[[ $all_ok ]]

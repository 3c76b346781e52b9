#!/usr/bin/env bash
# All measurements of one GPU session, the most important first in case time runs out.
#
#   benchmarks/gpu_session.sh [--tiny] FOLDER [PART|STEP...]
#
# Both parts together take less than 15 minutes, and each takes less than ten minutes. Without a part or step, both parts run. A
# step that fails or exceeds its limit does not stop the others. FOLDER gets the result, the log and the evidence files of every
# step, and summary.txt, which is also printed at the end.
#
#   part 1          s     what
#     first       160     correctness, memory, and the speed of every part of a 7B pass: one verdict per line
#     7b          155     Vicuna-7B (the shapes of Llama-2-7B) with traced acceptance: the plan and its prediction
#     13b         140     Llama-2-13B, with the acceptance of Vicuna-7B
#   part 2
#     law          90     the latency law of this device, measured on small models
#     law-fit      10     its fit
#     70b         165     Llama-2-70B, cut to as many layers as fit; the result names the number
#     transformers 65     generate and assisted generation of 7B, with constructed agreement (see the script)
#     check        60     logits against transformers; losslessness, and gaps in bf16, for all pairs and both modes
#   by name
#     plain        60     plain decoding of 7B only
#     llama-3.1-8b 170    with its own first 12 layers as draft and the acceptance of Vicuna-7B
#     llama-3.1-70b 300   with the first 12 layers of Llama-3.1-8B as draft and the acceptance of Llama-2-70B
#
# s is the time limit of a step in seconds: 455 s for part 1, 390 s for part 2, 845 s in all.
#
# --tiny runs the same commands with tiny models, which only shows that they run. DEVICE is torch's name of the
# device (default: cuda, with --tiny cpu), PYTHON the interpreter (default: python).
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
folder=$1
shift
known="1 2 first 7b 13b law 70b transformers check plain llama-3.1-8b llama-3.1-70b"
for name in $known; do
    if [[ $folder == "$name" ]]; then
        echo "'$folder' is the name of a part or step: expected a folder first. For a folder of that name, give ./$folder." >&2
        exit 2
    fi
done
for name in "$@"; do
    if [[ " $known " != *" $name "* ]]; then
        echo "unknown part or step '$name': expected 1, 2 or a step; benchmarks/gpu_session.sh alone lists them." >&2
        exit 2
    fi
done
mkdir -p "$folder" || exit 2
folder=$(cd "$folder" && pwd)
python=${PYTHON:-python}
device=${DEVICE:-$([[ $tiny ]] && echo cpu || echo cuda)}
dtype=$([[ $device == cpu ]] && echo fp32 || echo bf16)
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
built=perfmodel/replay/_native.abi3.so # installation compiles it, but the source may be newer than the last installation
if [[ ! -e $built || -n $(find perfmodel/replay/native -newer "$built") ]]; then
    headers=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    cc -O3 -shared -fPIC -I"$headers" perfmodel/replay/native/*.c -o "$built" || echo "replay could not be compiled" >&2
fi
all_ok=yes
steps=()

# step NAME LIMIT_S COMMAND...: writes stdout to NAME.txt and stderr to NAME.log, and adds a line to the summary.
step() {
    local name=$1 limit_s=$2 started=$SECONDS status outcome
    shift 2
    if [[ $tiny ]]; then limit_s=600; fi # test machines are slow
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

# command_of MODULE FUNCTION: Python code that runs one of the project's commands without installation.
command_of() { echo "import sys; from $1 import $2; sys.exit($2(sys.argv[1:]))"; }

# at_scale NAME LIMIT_S BUDGET_S FLAGS...
at_scale() {
    local name=$1 limit_s=$2 size=(--budget "$3")
    shift 3
    if [[ $tiny ]]; then size=(--quick --budget 2 --num-prompts 2 --max-new-tokens 16); fi
    step "$name" "$limit_s" "$python" benchmarks/at_scale.py "$@" --device "$device" --dtype "$dtype" "${size[@]}" \
        -o "$folder/$name"
}

first() {
    step first 160 "$python" benchmarks/first_minutes.py $([[ $tiny ]] && echo --quick) --device "$device" -o "$folder"
}

check() {
    step check 60 "$python" benchmarks/device_check.py $([[ $tiny ]] && echo --quick || echo --cases 2) --device "$device" \
        -o "$folder"
}

transformers() {
    local size=(--max-new-tokens 64 --repeats 1)
    if [[ $tiny ]]; then size=(--quick --max-new-tokens 8); fi
    step transformers 65 "$python" benchmarks/generate_at_scale.py --target llama-2-7b --device "$device" --dtype "$dtype" \
        "${size[@]}" -o "$folder"
}

law() {
    local size=(--depths 1 4 8 --rows 1 2 4 8 16 --budget 40)
    if [[ $tiny ]]; then size=(--depths 1 2 --hidden-sizes 64 128 --rows 1 2 3 --context-tokens 4 8 --budget 1); fi
    step law 90 "$python" -c "$(command_of profiler.commands.profile_cli main_profile)" law --device "$device" --dtype "$dtype" "${size[@]}" \
        -o "$folder/law"
    step law-fit 10 "$python" -c "$(command_of calibrate.commands.plan_cli main_plan)" fit "$folder"/law/*.latency.json -o "$folder/law/law.fit.json"
}

run() {
    case $1 in
        1) for member in first 7b 13b; do run "$member"; done ;;
        2) for member in law 70b transformers check; do run "$member"; done ;;
        first | check | transformers | law) "$1" ;;
        7b) at_scale 7b 155 45 --target vicuna-7b --num-prompts 4 ;;
        13b) at_scale 13b 140 35 --target llama-2-13b --acceptance vicuna-7b --num-prompts 3 ;;
        70b) at_scale 70b 165 40 --target llama-2-70b --layers fit --num-prompts 2 --max-new-tokens 64 ;;
        plain) at_scale plain 60 0 --target llama-2-7b --acceptance vicuna-7b --num-prompts 2 --plain-only ;;
        llama-3.1-8b) at_scale llama-3.1-8b 170 50 --target llama-3.1-8b --draft llama-3.1-8b --acceptance vicuna-7b --num-prompts 4 ;;
        llama-3.1-70b)
            at_scale llama-3.1-70b 300 100 --target llama-3.1-70b --draft llama-3.1-8b --acceptance llama-2-70b --layers fit
            ;;
    esac
}

for names in "${@:-1 2}"; do
    for name in $names; do run "$name"; done
done
for name in "${steps[@]}"; do
    printf '\n=== %s\n' "$name"
    cat "$folder/$name.txt"
done
printf '\n=== summary\n'
cat "$folder/summary.txt"
[[ $all_ok ]]

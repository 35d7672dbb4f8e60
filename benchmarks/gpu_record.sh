#!/bin/bash
# The GPU record in about eight minutes: builds, checks and measures on this machine's GPU, the most important first.
#
#     benchmarks/gpu_record.sh [FOLDER]        from the root of the repository, with torch and nvcc at hand
#
# FOLDER (gpu-record) gets record.jsonl, to be kept under benchmarks/records, and logs. PYTHON is the interpreter;
# SECONDS_LEFT ends the script early enough for a machine that is lent for a time. Without a GPU it is a dry run.
export PYTHONUNBUFFERED=1 PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} SCRATCH
folder=${1:-gpu-record} python=${PYTHON:-python3} left=${SECONDS_LEFT:-480} failed=0
SCRATCH=$(mktemp -d) && mkdir -p "$folder" && trap 'rm -rf "$SCRATCH"' EXIT || exit

within() { # SECONDS COMMAND ...: the command, ended (as by Ctrl-C, so that it still reports) when the time is over
  timeout -s INT -k 5 $((left - SECONDS < $1 ? left - SECONDS : $1)) "${@:2}"
}
record() { # SECONDS STAGE ...
  [ $((left - SECONDS)) -lt 8 ] && { echo "== $SECONDS s: no time for ${*:2}"; return 1; }
  within "$1" "$python" benchmarks/gpu_record.py "${@:2}" --record "$folder/record.jsonl" >>"$folder/record.log" 2>&1
  local status=$?
  echo "== $SECONDS s: ${*:2}"
  [ $status = 0 ] || { echo "FAILED: ${*:2}"; tail -3 "$folder/record.log" | cut -c1-500; failed=1; }
}

nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,power.limit --format=csv 2>/dev/null
"$python" -c "import torch; print('torch', torch.__version__, 'CUDA', torch.version.cuda)"
df -h /dev/shm | tail -1

# The operators are compiled while stages run that need none of them.
"$python" setup.py -q build_ext --inplace >"$folder/build.log" 2>&1 & build=$!
record 60 machine shards
wait $build && echo "== $SECONDS s: operators built"
"$python" -m ops | tee "$folder/ops.txt"
[ "${PIPESTATUS[0]}" = 0 ] || { failed=1; tail -5 "$folder/build.log"; }

# Checks share the GPU: they measure nothing.
within 120 "$python" -m pytest -q --tb=short -n 10 -p no:cacheprovider tests/ops tests/pretrain -k gpu \
  >"$folder/tests.log" 2>&1 & tests=$!
record 60 agree
wait $tests || failed=1
grep -E '^E  |^FAILED|^ERROR|passed|failed' "$folder/tests.log" | cut -c1-200 | tail -20
echo "== $SECONDS s: GPU tests"

record 80 operators step
record 60 tasks
record 60 detector
record 40 nccl resume
record 90 program
record 60 packed_attention
record 60 memory
record 60 fp16
record 60 attention
record 120 compiled_blocks
record 120 compiled_encoder
exit $failed

#!/usr/bin/env bash
# What dev/speed.md lists as open, on a machine with a GPU, where nothing can be fetched.
#
#   dev/gpu.sh wheels            here, once: what such a machine lacks, into .whl/ (which git ignores)
#   dev/gpu.sh STAGE [FOLDER]    there: install them, run, write results to FOLDER/STAGE ($OUT by default)
#
# Stages, in this order: tests, one, one-compiled, many-compiled, recurrent; large-compiled, large-many (77 GiB of
# weights: an H200); many, large; one-tuned, which may not fit ten minutes. Each of the others should take four to
# eight minutes (an estimate, from 12 ms a token of eager generate with 7B). Each number is told as it comes
# (STAGE/log.txt), the JSON is written at the end. Which stage measures which required number: dev/speed.md,
# "Where things stand".
set -euo pipefail
stage=${1:?name a stage: see above} out=$(realpath -m "${2:-${OUT:-/tmp/rsd-gpu}}")/$1
cd "$(dirname "$0")/.."

if [ "$stage" = wheels ]; then
  rm -rf .whl
  platforms=$(for tag in _2_31 _2_28 _2_17 2014; do echo "--platform manylinux${tag}_x86_64"; done)
  # shellcheck disable=SC2086
  exec python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
    $platforms -c constraints.txt -d .whl pydantic pydantic-core annotated-types typing-inspection \
    llguidance pytest-asyncio pytest-socket pytest-timeout
fi

site=/tmp/rsd-site
python3 -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$site" .whl/*.whl
export PYTHONPATH="$site:$PWD" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
mkdir -p "$out"
bench() {
  # cuDNN's attention, which torch from 2.11 on prefers on such GPUs, makes a plan for every new length (dev/speed.md).
  # Our forwards call another kernel there by themselves, which the tests check: this is for the yardsticks, so
  # that cuDNN's is in no measurement.
  TORCH_CUDNN_SDPA_DEPRIORITIZED=1 python3 -m rsd_integrations bench speed --device cuda --dtype bfloat16 --step-tokens 60 --growth none --out "$out" "$@"
}
one=(--shape 1.5b-7b-prm1.5b --prompts 1 --batches 1 --repeats 1 --acceptances 0.8)
large=(--shape 1.5b-32b-prm7b --prompts 1 --batches 1 --repeats 1 --acceptances 0.8 --steps 10)
many=(--prompts 16 --batches 16 --acceptances 0.9)
tests() {
  local failed=0 states="Qwen3_5 or Qwen3Next or Lfm or FalconH1 or Granite or Bamba" part
  # In processes of their own, the least sure last: a capture that fails leaves a GPU in disorder for all that follow.
  for part in "not recorded and not alone" "recorded and not any_history and not answers and not others" \
    "recorded and any_history and not ($states)" "answers or alone" others "recorded and any_history and ($states)"; do
    python3 -m pytest -p no:cacheprovider --maxfail 5 --durations 5 tests/backends/test_cuda.py -k "$part" || failed=1
  done
  return $failed
}
{
  python3 -c 'import torch, transformers
from rsd_integrations.backends.torch.efficient import preferred
ours = "taken" if preferred(torch.device("cuda:0"), torch.bfloat16) else "left to torch"
print(torch.__version__, transformers.__version__, torch.cuda.get_device_name(), "attention by name:", ours)'
  case $stage in
    tests) tests ;;
    one) bench "${one[@]}" --steps 20 ;;
    one-compiled) bench "${one[@]}" --steps 10 --compile ;;
    # Matrix products of one row become kernels of their own, which fuse with what is around them.
    one-tuned) TORCHINDUCTOR_COORDINATE_DESCENT_TUNING=1 bench "${one[@]}" --steps 10 --compile ;;
    many) bench "${many[@]}" --shape 1.5b-7b-prm1.5b --repeats 3 ;;
    many-compiled) bench "${many[@]}" --shape 1.5b-7b-prm1.5b --repeats 3 --compile ;;
    recurrent) bench --shape 0.8b-9b-recurrent-prm1.5b --prompts 1 --batches 1 --repeats 1 --acceptances 0.8 --steps 10 ;;
    large) bench "${large[@]}" ;;
    large-compiled) bench "${large[@]}" --compile ;;
    large-many) bench "${many[@]}" --shape 1.5b-32b-prm7b --repeats 1 --compile ;;
    *) echo "stage '$stage' is none of those above" >&2; exit 2 ;;
  esac
} 2>&1 | tee -a "$out/log.txt"

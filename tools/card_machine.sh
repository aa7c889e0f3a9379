#!/usr/bin/env bash
# On a machine with a card and no package index, in a copy of this checkout with built/card in it
# (made by tools/pack_card.py): unpack the packages, run one command, leave what it wrote.
#
#   tools/card_machine.sh FOLDER SECONDS 'COMMAND'
#
# COMMAND is given to bash in the checkout; it finds python3 with all packages, what was packed
# beside them below $WITH, and writes below $RESULTS. FOLDER, an absolute path, then holds log.txt
# and results.tar.gz.00, .01, … (cat them for one archive), anew every minute, and also where
# COMMAND failed or was cut off: it is interrupted in time to end by SECONDS. Files of more than
# 15 MB (weights, checkpoints) stay behind, and log.txt names them. Exit code: the command's; 124
# where it was cut off.
set -uo pipefail
if (($# != 3)); then
  sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0" >&2
  exit 2
fi
folder=$1 seconds=$2 command=$3
root=$(cd "$(dirname "$0")/.." && pwd)
place=${STUDY_CARD_PLACE:-/tmp/study-card}
largest_bytes=15000000 closing_seconds=20
# Relative: notebooks hold the paths that they were run with, and are meant to be shown to others.
export WITH=$place/with RESULTS=built/results
export PYTHONPATH=$root:$place/site PYTHONUNBUFFERED=1
export JUPYTER_PATH=$place/site/share/jupyter HF_HUB_OFFLINE=1

unpack() {
  tar -xzf "$root/built/card/site.tar.gz" -C "$place" || return
  # Also brings torch's libraries off the disk before anything is timed.
  python3 - <<'PYTHON' || return
import importlib, time
for name in ("torch", "transformers", "peft", "bitsandbytes", "pydantic", "papermill", "ipykernel",
             "mistune", "lm_eval.models.huggingface", "lm_eval.evaluator", "datasets", "pynvml"):
    start = time.perf_counter()
    module = importlib.import_module(name)
    version = getattr(module, "__version__", "")
    print(f"{name} {version}: {time.perf_counter() - start:.1f} s")
import torch
print("card:", torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none")
PYTHON
  echo "ready after $SECONDS s"
}

keep() { # under another name until all is there: the machine may be taken away meanwhile
  rm -f "$place"/part.*
  cd "$root/$RESULTS" || return
  local finished=(. -type d -name work -prune -o -type f) # a run's work folder is of no use here
  find "${finished[@]}" -size +"${largest_bytes}c" -printf 'left behind: %p, %s bytes\n' \
    >"$place/left.txt"
  find "${finished[@]}" -not -size +"${largest_bytes}c" -print0 |
    tar -cz --null -T - 2>/dev/null | split -d -b "$largest_bytes" - "$place/part."
  rm -f "$folder"/results.tar.gz.*
  for part in "$place"/part.*; do mv "$part" "$folder/results.tar.gz.${part##*.}"; done
}

finish() {
  local code=$?
  trap - EXIT
  if [[ -n ${keeper:-} ]]; then
    kill "$keeper" 2>/dev/null
    wait "$keeper" 2>/dev/null
  fi
  keep
  cat "$place/left.txt" >>"$log"
  exit "$code"
}

cd "$root" || exit
mkdir -p "$folder" "$RESULTS" "$WITH" || exit
folder=$(cd "$folder" && pwd) log=$(cd "$folder" && pwd)/log.txt
trap finish EXIT
trap 'exit 143' TERM
trap 'exit 130' INT
unpack 2>&1 | tee "$log"
((PIPESTATUS[0] == 0)) || exit 1
# shellcheck source=/dev/null
source "$root/built/card/provenance.sh"
(while sleep 60; do keep; done) >/dev/null 2>&1 &
keeper=$!
left=$((seconds - SECONDS - closing_seconds))
timeout --signal=INT --kill-after=10 "$((left > 1 ? left : 1))" bash -c "$command" 2>&1 |
  tee -a "$log"
exit "${PIPESTATUS[0]}"

#!/usr/bin/env bash
# transformers 5.23.0 with torch 2.13.0: the switch behind TrainingArguments(tf32=…) does not always
# switch. transformers.utils.import_utils.enable_tf32 remembers its calls (lru_cache), so that a
# value that was set once in a process is not set again: on, off, on leaves TF32 off. And it sets
# torch's general precision alone: where cuBLAS has been given one by name (allow_tf32, or
# set_float32_matmul_precision, as accelerate does for a compiled model), "off" leaves matrices in
# TF32. Nothing warns; a sweep in one process compares arithmetics.
#
# Seen (no card is needed to read the settings):
#   on, off, on                          general ieee
#   matmul precision "high", then off    general ieee, cuBLAS tf32
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 numpy==2.4.6
cat >"$folder/settings.py" <<'PYTHON'
import sys

import torch
from transformers.utils.import_utils import enable_tf32

if sys.argv[1] == "again":
    for switch in (True, False, True):
        enable_tf32(switch)
    print(torch.backends.fp32_precision)
else:
    torch.set_float32_matmul_precision("high")
    enable_tf32(False)
    print(torch.backends.fp32_precision, torch.backends.cuda.matmul.fp32_precision)
PYTHON
again=$("$folder/venv/bin/python" "$folder/settings.py" again 2>/dev/null)
named=$("$folder/venv/bin/python" "$folder/settings.py" named 2>/dev/null)
echo "on, off, on                          general $again"
echo "matmul precision \"high\", then off    general ${named% *}, cuBLAS ${named#* }"
[[ $again == ieee ]] || { echo "switching on again has changed"; exit 1; }
[[ $named == "ieee tf32" ]] || { echo "switching off beside cuBLAS has changed"; exit 1; }

#!/usr/bin/env bash
# bitsandbytes 0.50.2 on a CPU with AVX-512: dequantize_4bit gives other values than were quantized
# wherever a matrix's width is a multiple of 16 but not of 64. NF4 keeps one maximum for each 64
# weights in their order; its kernel starts each row with a block of its own, so that from the
# second row on it multiplies by another block's maximum. Nothing warns; training on such a base
# runs and looks like a somewhat worse QLoRA. The same bytes read as one row of n weights are right.
#
# Seen (torch 2.13.0, relative Frobenius error against the original, normal weights):
#   96 x 96    as a matrix 0.275   as one row 0.093
#   128 x 128  as a matrix 0.092   as one row 0.092
# On a processor without AVX-512 the generic code runs and both are right: there this script says so
# and fails, since it cannot show the behaviour.
set -euo pipefail
grep -qw avx512f /proc/cpuinfo || { echo "needs a processor with AVX-512"; exit 1; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 bitsandbytes==0.50.2 numpy==2.4.6
"$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit

torch.manual_seed(0)


def error(read, original):
    return float((read - original).norm() / original.norm())


found = {}
for width in (96, 128):
    weights = torch.randn(width, width)
    packed, state = quantize_4bit(weights, quant_type="nf4")
    matrix = error(dequantize_4bit(packed, state), weights)
    state.shape = torch.Size([1, weights.numel()])
    row = error(dequantize_4bit(packed, state).reshape(weights.shape), weights)
    found[width] = matrix, row
    print(f"{width} x {width}  as a matrix {matrix:.3f}   as one row {row:.3f}")
assert found[96][0] > 0.2 and found[96][1] < 0.1, "the behaviour at width 96 has changed"
assert max(found[128]) < 0.1, "the control at width 128 has changed"
PYTHON

#!/usr/bin/env bash
# transformers 5.23.0 reads a GGUF file, dequantizes every weight to plain fp32 parameters, and then
# refuses to save the model: "quantized with gguf and is not serializable". The weights are plain;
# what forbids it is a mark that stays on the model. Taking `quantization_config` out of the
# configuration is not enough: only with the model's `hf_quantizer` gone too is it saved, and what
# is saved loads again as an ordinary checkpoint with equal weights.
#
# Seen (torch 2.13.0, gguf 0.19.0, a random Llama of 2 layers):
#   parameters: float32
#   as it was loaded: ValueError
#   without the configuration's entry: ValueError
#   without the quantizer as well: saved, weights equal after loading
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 gguf==0.19.0 accelerate==1.15.0 2>/dev/null
cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python - 2>/dev/null <<'PYTHON'
import gguf
import numpy as np
import torch
from transformers import AutoModelForCausalLM

draw = np.random.default_rng(0)
writer = gguf.GGUFWriter("tiny.gguf", "llama")
writer.add_context_length(128)
writer.add_embedding_length(64)
writer.add_block_count(2)
writer.add_feed_forward_length(128)
writer.add_head_count(2)
writer.add_head_count_kv(2)
writer.add_layer_norm_rms_eps(1e-5)
writer.add_vocab_size(32)
shapes = {"token_embd": (32, 64), "output": (32, 64), "output_norm": (64,)}
for layer in range(2):
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        shapes[f"blk.{layer}.{name}"] = (64, 64)
    for name in ("ffn_gate", "ffn_up"):
        shapes[f"blk.{layer}.{name}"] = (128, 64)
    shapes |= {f"blk.{layer}.ffn_down": (64, 128), f"blk.{layer}.attn_norm": (64,), f"blk.{layer}.ffn_norm": (64,)}
for name, shape in shapes.items():
    writer.add_tensor(f"{name}.weight", draw.standard_normal(shape).astype(np.float32))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()

model = AutoModelForCausalLM.from_pretrained(".", gguf_file="tiny.gguf", dtype=torch.float32)


def save():
    try:
        model.save_pretrained("saved")
        return "saved"
    except ValueError as error:
        assert "not serializable" in str(error)
        return "ValueError"


dtypes = {str(p.dtype).removeprefix("torch.") for p in model.parameters()}
print("parameters:", *dtypes)
seen = [save()]
del model.config.quantization_config
seen.append(save())
model.hf_quantizer = None
seen.append(save())
again = AutoModelForCausalLM.from_pretrained("saved", dtype=torch.float32)
equal = all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
print("as it was loaded:", seen[0])
print("without the configuration's entry:", seen[1])
print(f"without the quantizer as well: {seen[2]}, weights {'equal' if equal else 'differ'} after loading")
assert dtypes == {"float32"} and seen == ["ValueError", "ValueError", "saved"] and equal, "changed"
PYTHON

#!/usr/bin/env bash
# peft 0.21.2 with transformers 5.23.0: an adapter that trains a tied embedding is twice as large on
# disk as what it trained. With modules_to_save=["embed_tokens"] and ensure_weight_tying=True peft
# keeps one matrix for embedding and output layer, and counts one; save_pretrained writes it under
# both names. A size computed from the trained parameters is short by a whole embedding matrix:
# 113 MB of fp32 for SmolLM2-135M, beside some MB of LoRA.
#
# Seen, a Llama of two layers, 512 tokens of 64 wide, tied:
#   trained 34816 numbers, one matrix of 32768 among them; in the file 67584, two of 32768
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 peft==0.21.2 numpy==2.4.6
cat >"$folder/save.py" <<'PYTHON'
import sys

from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

model = LlamaForCausalLM(LlamaConfig(
    vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=4, tie_word_embeddings=True))
model = get_peft_model(model, LoraConfig(
    task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"],
    modules_to_save=["embed_tokens"], ensure_weight_tying=True))
trained = [p.numel() for p in model.parameters() if p.requires_grad]
model.save_pretrained(sys.argv[1])
saved = [t.numel() for t in load_file(f"{sys.argv[1]}/adapter_model.safetensors").values()]
large = 512 * 64
print(sum(trained), trained.count(large), sum(saved), saved.count(large))
PYTHON
read -r trained once saved twice < <("$folder/venv/bin/python" "$folder/save.py" "$folder/adapter" 2>/dev/null)
echo "trained $trained numbers, of 32768: $once; in the file $saved, of 32768: $twice"
[[ $once == 1 && $twice == 2 ]] || { echo "what peft writes of a tied embedding has changed"; exit 1; }

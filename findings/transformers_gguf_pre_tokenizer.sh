#!/usr/bin/env bash
# A GGUF file names the rule by which text is cut before the merges (tokenizer.ggml.pre).
# transformers 5.23.0 knows 23 of the names; for every other one it takes GPT-2's rule without a
# warning. A file that says `smollm` (each digit cut off first, then GPT-2's rule) and one that says
# `gpt-2` give the same tokenizer.
# Two blanks before a digit then become two words where the model learned one: GPT-2's rule leaves
# the last blank to what follows, the other one has cut the digit off before.
#
# Seen (gguf 0.19.0), text "a  1", a vocabulary in which two blanks are one word:
#   file says gpt-2    a _ _ 1
#   file says smollm   a _ _ 1
#   digits cut first   a __ 1
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 tokenizers==0.23.3 gguf==0.19.0 2>/dev/null
cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python - 2>/dev/null <<'PYTHON'
import gguf
import numpy as np
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

BLANK = chr(256 + 32)  # how the byte-level alphabet spells it


def write(rule):
    writer = gguf.GGUFWriter(f"{rule}.gguf", "llama")
    alphabet = [chr(b) for b in [*range(33, 127), *range(161, 173), *range(174, 256)]]
    words = ["<end>", *alphabet, *[chr(256 + n) for n in range(68)], BLANK * 2]
    writer.add_context_length(16)
    writer.add_embedding_length(8)
    writer.add_block_count(1)
    writer.add_feed_forward_length(8)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(rule)
    writer.add_token_list(words)
    writer.add_token_types([3, *[1] * (len(words) - 1)])
    writer.add_token_merges([f"{BLANK} {BLANK}"])
    writer.add_eos_token_id(0)
    writer.add_tensor("token_embd.weight", np.zeros((len(words), 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return AutoTokenizer.from_pretrained(".", gguf_file=f"{rule}.gguf")


def cut(tokenizer):
    return " ".join(tokenizer.tokenize("a  1")).replace(BLANK, "_")


seen = {f"file says {rule}": cut(write(rule)) for rule in ("gpt-2", "smollm")}
right = write("smollm")
digits = pre_tokenizers.Digits(individual_digits=True)
bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False)
right.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_])
seen["digits cut first"] = cut(right)
for what, words in seen.items():
    print(f"{what:18} {words}")
assert list(seen.values()) == ["a _ _ 1", "a _ _ 1", "a __ 1"], "the behaviour has changed"
PYTHON

#!/usr/bin/env bash
# transformers 5.23.0: with bf16_full_eval=True, Trainer.evaluate() turns the model's weights into
# bf16 in place and leaves them so. Whoever measures the base first, as a comparison does, then
# trains in bf16: fp32 weights are gone, and peft's fp32 adapters are bf16 too. Adam's small steps
# are lost in the rounding of larger weights; LoRA's B, which begins at zero, moves, A does not.
# Nothing warns: the switch is documented as one of evaluation. Evaluations inside train() convert
# nothing, so that the same arguments train one way or the other by what was called before.
#
# Seen (torch 2.13.0, peft 0.21.2, a Llama of two layers, 10 updates at a constant rate of 2e-5):
# dtype while training, and the share of trained weights that changed
#   full    train alone      float32 1.00     evaluate, then train  bfloat16 0.30
#   lora A  train alone      float32 1.00     evaluate, then train  bfloat16 0.08
#   lora B  train alone      float32 1.00     evaluate, then train  bfloat16 1.00
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 \
  peft==0.21.2 accelerate==1.15.0 numpy==2.4.6 2>/dev/null
cd "$folder"
OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 venv/bin/python - 2>/dev/null <<'PYTHON'
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

ids = torch.randint(1, 512, (32, 16), generator=torch.Generator().manual_seed(0))
rows = [{"input_ids": row, "labels": row} for row in ids]


def make(lora):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=512, hidden_size=256, intermediate_size=256, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4))
    return get_peft_model(model, LoraConfig(r=8, target_modules="all-linear")) if lora else model


def share_moved(lora, part, first):
    """(the weights' dtype, share of the trained weights named by `part` that training changed)"""
    model = make(lora)
    trainer = Trainer(
        model, train_dataset=rows, eval_dataset=rows,
        args=TrainingArguments(
            "out", max_steps=10, learning_rate=2e-5, lr_scheduler_type="constant",
            bf16_full_eval=True, use_cpu=True, save_strategy="no", report_to=[], disable_tqdm=True))
    trainer.log = lambda *values: None
    if first:
        trainer.evaluate()
    trained = [p for n, p in model.named_parameters() if p.requires_grad and part in n and p.ndim == 2]
    before = [p.detach().clone() for p in trained]
    trainer.train()
    moved = sum(int((p != b).sum()) for p, b in zip(trained, before, strict=True))
    dtype = str(trained[0].dtype).removeprefix("torch.")
    return dtype, moved / sum(p.numel() for p in trained)


seen = {}
for name, lora, part in (("full", False, "_proj"), ("lora A", True, "lora_A"), ("lora B", True, "lora_B")):
    alone, after = (share_moved(lora, part, first) for first in (False, True))
    seen[name] = alone, after
    print("{:7} train alone      {} {:.2f}     evaluate, then train  {} {:.2f}".format(name, *alone, *after))
for alone, after in seen.values():
    assert alone[0] == "float32" and after[0] == "bfloat16", "what evaluate leaves behind has changed"
assert all(alone[1] > 0.99 for alone, _ in seen.values()), "training alone has changed"
assert seen["lora A"][1][1] < 0.2 and seen["full"][1][1] < 0.8, "more weights move in bf16 now"
PYTHON
echo "the behaviour is as described"

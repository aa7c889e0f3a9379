#!/usr/bin/env bash
# transformers 5.23.0: the total_flos that Trainer logs and saves is six times parameters times input
# tokens whatever is trained, so that it says of methods the opposite of what they do. LoRA saves the
# gradients of the weights and is put above full fine-tuning, by its own parameters; training the
# output layer alone counts in full; prompt tuning, whose virtual tokens go through every layer, is
# put at full fine-tuning's figure and takes more. A tied output layer counts for nothing, being an
# embedding, and is multiplied all the same.
#
# Seen (torch 2.13.0's FlopCounterMode over the same two updates, peft 0.21.2, a Llama of two layers of
# 256 wide, rows of 64 tokens; MFLOP, and Trainer's figure as a part of the counted; what attention
# itself multiplies is in neither)
#   full              total_flos 4433  counted 4429  1.00
#   full, tied head   total_flos 4030  counted 4429  0.91
#   output layer      total_flos 4433  counted 1611  2.75
#   LoRA              total_flos 4540  counted 2855  1.59
#   64 prompt tokens  total_flos 4433  counted 5906  0.75
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 \
  peft==0.21.2 accelerate==1.15.0 numpy==2.4.6 2>/dev/null
cd "$folder"
OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 venv/bin/python - 2>/dev/null <<'PYTHON'
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

ids = torch.randint(1, 512, (8, 64), generator=torch.Generator().manual_seed(0))
rows = [{"input_ids": row, "labels": row, "attention_mask": torch.ones_like(row)} for row in ids]


def base(tied=False):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=512, hidden_size=256, intermediate_size=512, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, tie_word_embeddings=tied))


def head_alone():
    model = base()
    model.requires_grad_(False)
    model.lm_head.requires_grad_(True)
    return model


def count(model):
    """(Trainer's figure, the counted one) of two updates, in MFLOP"""
    trainer = Trainer(model, train_dataset=rows, args=TrainingArguments(
        "out", max_steps=2, per_device_train_batch_size=4, use_cpu=True, save_strategy="no", report_to=[],
        disable_tqdm=True))
    trainer.log = lambda *values: None
    with FlopCounterMode(display=False) as counter:
        trainer.train()
    return trainer.state.total_flos / 1e6, counter.get_total_flops() / 1e6


lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
prompts = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=64)
models = {
    "full": base(), "full, tied head": base(tied=True), "output layer": head_alone(),
    "LoRA": get_peft_model(base(), lora), "64 prompt tokens": get_peft_model(base(), prompts)}
seen = {name: count(model) for name, model in models.items()}
ratio = {name: said / counted for name, (said, counted) in seen.items()}
for name, (said, counted) in seen.items():
    print(f"{name:17} total_flos {said:.0f}  counted {counted:.0f}  {ratio[name]:.2f}")
assert abs(ratio["full"] - 1) < 0.02, "the control, full fine-tuning, has changed"
assert seen["LoRA"][0] > seen["full"][0] and ratio["LoRA"] > 1.4, "LoRA's total_flos has changed"
assert ratio["output layer"] > 2 and ratio["64 prompt tokens"] < 0.8, "a part's, or prompts', total_flos has changed"
assert ratio["full, tied head"] < 0.95, "a tied head counts now"
PYTHON
echo "the behaviour is as described"

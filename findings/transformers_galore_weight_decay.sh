#!/usr/bin/env bash
# transformers 5.23.0: with optim="galore_adamw" or "apollo_adamw" Trainer hands the optimizer the
# learning rate alone. weight_decay, adam_beta1, adam_beta2 and adam_epsilon of TrainingArguments
# are dropped without a word, and galore-torch's and apollo-torch's own defaults hold: no decay and
# an epsilon of 1e-6 in place of 1e-8. For "adamw_torch" all four hold. A comparison of GaLore or APOLLO
# with AdamW under one set of arguments is one of two sets.
#
# Seen (torch 2.13.0, galore-torch 1.0, apollo-torch 1.0.3, a Llama of two layers): what the
# optimizer has of a decay of 0.5, betas of (0.8, 0.9) and an epsilon of 1e-5, and whether 20 updates
# with and without the decay differ
#   adamw_torch   decay 0.5  betas (0.8, 0.9)    epsilon 1e-05  the decay changes the weights
#   galore_adamw  decay 0.0  betas (0.9, 0.999)  epsilon 1e-06  the decay changes nothing
#   apollo_adamw  decay 0.0  betas (0.9, 0.999)  epsilon 1e-06  the decay changes nothing
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 \
  accelerate==1.15.0 galore-torch==1.0 apollo-torch==1.0.3 numpy==2.4.6 2>/dev/null
cd "$folder"
OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 venv/bin/python - 2>/dev/null <<'PYTHON'
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

ids = torch.randint(1, 64, (32, 8), generator=torch.Generator().manual_seed(0))
rows = [{"input_ids": row, "labels": row} for row in ids]


def train(optim, decay):
    """(the optimizer's own settings by group, all weights after 20 updates)"""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4))
    low_rank = {"optim_target_modules": ["attn", "mlp"], "optim_args": "rank=16"}
    trainer = Trainer(model, train_dataset=rows, args=TrainingArguments(
        "out", max_steps=20, learning_rate=1e-3, optim=optim, weight_decay=decay, adam_beta1=0.8,
        adam_beta2=0.9, adam_epsilon=1e-5, seed=0, use_cpu=True, save_strategy="no", report_to=[],
        disable_tqdm=True, **({} if optim == "adamw_torch" else low_rank)))
    trainer.log = lambda *values: None
    trainer.train()
    return trainer.optimizer, torch.cat([p.detach().flatten() for p in model.parameters()])


seen = {}
for optim in ("adamw_torch", "galore_adamw", "apollo_adamw"):
    (optimizer, decayed), (_, plain) = train(optim, 0.5), train(optim, 0.0)
    groups = optimizer.param_groups
    large = max(groups, key=lambda group: group["weight_decay"])
    works = not torch.equal(decayed, plain)
    seen[optim] = large["weight_decay"], tuple(large["betas"]), large["eps"], works
    print("{:13} decay {}  betas {!s:13} epsilon {}  the decay changes {}".format(
        optim, *seen[optim][:3], "the weights" if works else "nothing"))
assert seen["adamw_torch"] == (0.5, (0.8, 0.9), 1e-5, True), "the control, AdamW, has changed"
for optim in ("galore_adamw", "apollo_adamw"):
    assert seen[optim][0] == 0 and seen[optim][1] != (0.8, 0.9) and not seen[optim][3], f"{optim} has changed"
PYTHON
echo "the behaviour is as described"

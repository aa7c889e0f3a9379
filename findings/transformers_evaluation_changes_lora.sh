#!/usr/bin/env bash
# transformers 5.23.0 with peft 0.21.2: measuring changes what LoRA trains. Each evaluation of Trainer
# goes over a DataLoader, which draws one number from torch's global generator, the one that
# lora_dropout draws its masks from. One seed, one order of the examples, and an evaluation before
# training, or more of them inside, gives another adapter. Full fine-tuning of a model without
# dropout is the same to the bit however often one looks: in a comparison only the adapter's runs
# move, and one look before training moves them as far as another seed of the masks.
#
# Seen (torch 2.13.0, a Llama of two layers, 40 updates, LoRA of rank 8 with lora_dropout=0.05):
# distance of the trained weights from those of the run without evaluation, relative to what it
# trained, and whether the examples came in the same order
#   full   evaluated before 0.00   every 10 updates 0.00   another seed for dropout 0.00   same order
#   LoRA   evaluated before 0.35   every 10 updates 0.09   another seed for dropout 0.35   same order
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

ids = torch.randint(1, 512, (64, 16), generator=torch.Generator().manual_seed(0))
rows = [{"input_ids": row, "labels": row} for row in ids]


class Watched(list):
    """Examples that note in which order they are taken."""

    def __getitem__(self, index):
        self.order.append(index)
        return super().__getitem__(index)


def train(lora, before=False, reseed=None, **arguments):
    """(the trained weights less their start, the examples in the order in which they were taken)"""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4))
    if lora:
        model = get_peft_model(model, LoraConfig(r=8, lora_dropout=0.05, target_modules="all-linear"))
    examples = Watched(rows)
    examples.order = []
    trainer = Trainer(
        model, train_dataset=examples, eval_dataset=rows, args=TrainingArguments(
            "out", max_steps=40, learning_rate=1e-3, seed=1, data_seed=1, use_cpu=True,
            save_strategy="no", report_to=[], disable_tqdm=True, **arguments))
    trainer.log = lambda *values: None
    start = torch.cat([p.detach().flatten().clone() for p in model.parameters() if p.requires_grad])
    if before:
        trainer.evaluate()
    if reseed is not None:
        torch.manual_seed(reseed)
    trainer.train()
    return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad]) - start, examples.order


for name, lora in (("full", False), ("LoRA", True)):
    alone, order = train(lora)
    others = [train(lora, before=True), train(lora, eval_strategy="steps", eval_steps=10), train(lora, reseed=5)]
    again, _ = train(lora)
    far = [float((weights - alone).norm() / alone.norm()) for weights, _ in others]
    same = all(other == order for _, other in others)
    print("{}   evaluated before {:.2f}   every 10 updates {:.2f}   another seed for dropout {:.2f}   {} order".format(
        name, *far, "same" if same else "another"))
    assert torch.equal(again, alone) and same, "a repeated run, or the order of examples, has changed"
    if lora:
        assert min(far) > 0.01, "evaluating leaves an adapter's training alone now"
    else:
        assert max(far) == 0, "the control, full fine-tuning, has changed"
PYTHON
echo "the behaviour is as described"

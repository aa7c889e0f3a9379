#!/usr/bin/env bash
# peft 0.21.2: add_weighted_adapter makes a new adapter with the first one's options and then writes
# its matrices. For an adapter that was begun by PiSSA or OLoRA, making one takes its beginning out
# of the base's weights once more: the base moves a second time, though the mixture uses none of it.
# Every adapter on that base is wrong from then on, the mixed ones and the one that was just trained,
# and so is the model without adapters; deleting the mixture does not bring it back. No warning, no
# error. (That the same function scales a mixture of rsLoRA by a surplus root of the rank is reported
# and open; here the mixture is right and what it stands on is not.)
#
# Seen (torch 2.13.0, transformers 5.23.0, a Llama of two layers, rank 8, ten updates of training, the
# adapter mixed alone with weight 1; change of the logits, relative to their norm)
#   plain LoRA  trained adapter 0.00  without adapters 0.00  mixture 0.00  after deleting it 0.00
#   pissa       trained adapter 1.04  without adapters 1.16  mixture 1.04  after deleting it 1.04
#   olora       trained adapter 0.70  without adapters 0.69  mixture 0.70  after deleting it 0.70
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
from transformers import LlamaConfig, LlamaForCausalLM

ids = torch.randint(1, 128, (4, 16), generator=torch.Generator().manual_seed(0))


def train(begin):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, initializer_range=0.1))
    model = get_peft_model(model, LoraConfig(
        r=8, lora_alpha=8, target_modules="all-linear", init_lora_weights=begin))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(10):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@torch.no_grad()
def answer(model, adapter="default"):
    model.set_adapter(adapter)
    return model(input_ids=ids).logits


@torch.no_grad()
def answer_bare(model):
    with model.disable_adapter():
        return model(input_ids=ids).logits


def change(now, before):
    return float((now - before).norm() / before.norm())


for name, begin in (("plain LoRA", True), ("pissa", "pissa"), ("olora", "olora")):
    model = train(begin)
    trained, bare = answer(model), answer_bare(model)
    model.add_weighted_adapter(["default"], [1.0], "mixture", combination_type="cat")
    seen = [change(answer(model), trained), change(answer_bare(model), bare), change(answer(model, "mixture"), trained)]
    model.set_adapter("default")
    model.delete_adapter("mixture")
    seen.append(change(answer(model), trained))
    print("{:10}  trained adapter {:.2f}  without adapters {:.2f}  mixture {:.2f}  after deleting it {:.2f}".format(
        name, *seen))
    if begin is True:
        assert max(seen) < 1e-4, "the control, plain LoRA, has changed"
    else:
        assert min(seen) > 0.1, f"mixing adapters begun by {name} leaves the base alone now"
PYTHON
echo "the behaviour is as described"

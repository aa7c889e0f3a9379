"""One of two processes that divide a model as the launcher's FSDP2 does on cards.

The wrapping is accelerate's own function, called directly because accelerate itself divides on
cards only. Writes what each process holds, the losses of three steps, and a divided checkpoint.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.tensor import DTensor

from studylib.modelling.chunked_loss import install_chunked_loss
from studylib.modelling.methods import attach
from studylib.modelling.models import load_model
from studylib.schema.profile import LoraSettings, ModelRef, parse_method

STEPS, RATE = 3, 1e-3


def prepare(method):
    settings = parse_method(method, LoraSettings(rank=4))
    model = load_model(ModelRef.parse("ladder:0.4m"), settings, "fp32").model
    model = attach(model, settings, seed=0)
    install_chunked_loss(model)
    model.config.use_cache = False
    return model.train()


def batches(rank, processes):
    """Rows of every step, the same numbers however many processes share them."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(0, 500, (STEPS, 2, 1, 40), generator=generator)
    return rows[:, rank::processes]


def train(model, rank, processes):
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE)
    losses = []
    for step in batches(rank, processes):
        total = 0.0
        for ids in step:
            loss = model(input_ids=ids, labels=ids).loss / len(step)
            loss.backward()
            total += loss.item()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    return losses, optimizer


def shard(model):
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", reshard_after_forward=True,
        cpu_ram_efficient_loading=False, state_dict_type="SHARDED_STATE_DICT",
    )  # fmt: skip
    accelerator = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin), mixed_precision="no", is_main_process=True,
        device=torch.device("cpu"), torch_device_mesh=None,
    )  # fmt: skip
    return fsdp2_prepare_model(accelerator, model)


def main(folder: Path, method: str) -> None:
    dist.init_process_group("gloo")
    rank, processes = dist.get_rank(), dist.get_world_size()
    model = shard(prepare(method))
    losses, optimizer = train(model, rank, processes)
    divided = {
        name: (p.to_local().numel(), p.numel())
        for name, p in model.named_parameters()
        if isinstance(p, DTensor)
    }
    whole = [name for name, p in model.named_parameters() if not isinstance(p, DTensor)]
    states = [v for s in optimizer.state.values() for k, v in s.items() if k != "step"]
    weights, moments = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": moments}, checkpoint_id=folder / "checkpoint")
    average = torch.tensor(losses)
    dist.all_reduce(average)
    result = {
        "divided": divided,
        "whole": whole,
        "states_divided": all(isinstance(v, DTensor) for v in states),
        "state_numbers": sum(v.to_local().numel() for v in states),
        "losses": (average / processes).tolist(),
    }
    (folder / f"rank-{rank}.json").write_text(json.dumps(result))
    dist.destroy_process_group()

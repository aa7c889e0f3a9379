"""FSDP2 as the launcher applies it, by two processes on a CPU: divided weights, equal training."""

from __future__ import annotations

import json

import pytest
import torch
import torch.distributed.checkpoint as dcp
from shard_worker import main, prepare, train
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from two_processes import Pair


@pytest.mark.parametrize("method", ["full", "lora"])
def test_two_processes_hold_half_each_and_train_as_one(tmp_path, method):
    assert Pair(main, tmp_path, method, log=tmp_path / "log").wait() == 0
    ranks = [json.loads((tmp_path / f"rank-{rank}.json").read_bytes()) for rank in (0, 1)]
    alone = prepare(method)
    losses, optimizer = train(alone, 0, 1)

    for rank in ranks:
        assert rank["whole"] == []
        assert rank["states_divided"]
        assert rank["losses"] == pytest.approx(losses, rel=1e-5)
    for name, (_, numel) in ranks[0]["divided"].items():
        assert sum(rank["divided"][name][0] for rank in ranks) == numel
    held = [sum(here for here, _ in rank["divided"].values()) for rank in ranks]
    assert held[0] == pytest.approx(held[1], rel=0.02)
    trained = sum(p.numel() for p in alone.parameters() if p.requires_grad)
    assert sum(rank["state_numbers"] for rank in ranks) == 2 * trained  # two moments a weight

    # The divided checkpoint goes into one undivided process, weights and moments alike.
    model = prepare(method)
    other = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    weights, moments = get_state_dict(model, other)
    dcp.load({"model": weights, "optimizer": moments}, checkpoint_id=tmp_path / "checkpoint")
    set_state_dict(model, other, model_state_dict=weights, optim_state_dict=moments)
    for a, b in zip(alone.parameters(), model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=2e-5)
    pairs = zip(optimizer.state.values(), other.state.values(), strict=True)
    assert all(torch.allclose(a["exp_avg_sq"], b["exp_avg_sq"], atol=1e-6) for a, b in pairs)

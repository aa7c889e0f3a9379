"""The first update trains, the last warm-up step is below the full rate, the rest is as it was."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import get_scheduler

from studylib.schema.settings import TrainSettings
from studylib.training.optimizer import rise_from_above_zero, warmup_steps


def rates(schedule, steps, share, ours=True):
    recipe = TrainSettings(steps=steps, seq_len=8, warmup_share=share)
    warmup = warmup_steps(recipe) if ours else math.ceil(share * steps)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    made = get_scheduler(schedule, optimizer, num_warmup_steps=warmup, num_training_steps=steps)
    if ours:
        made = rise_from_above_zero(made, warmup)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        made.step()
    return found


@pytest.mark.parametrize("share", [0.0, 0.05, 0.99])
@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant_with_warmup"])
def test_one_step_trains_at_its_rate(schedule, share):
    assert rates(schedule, 1, share) == [1.0]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant_with_warmup"])
@pytest.mark.parametrize(("steps", "share"), [(2, 0.05), (20, 0.05), (100, 0.05), (10, 0.95)])
def test_every_update_has_a_rate_and_one_has_all_of_it(schedule, steps, share):
    found = rates(schedule, steps, share)
    assert min(found) > 0
    assert max(found) == 1.0


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant_with_warmup"])
def test_only_the_warm_up_differs_from_transformers_own(schedule):
    ours, theirs = (rates(schedule, 100, 0.05, ours) for ours in (True, False))
    assert theirs[:5] == [0.0, 0.2, 0.4, 0.6, 0.8]
    assert ours[:5] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6])
    assert ours[5:] == theirs[5:]

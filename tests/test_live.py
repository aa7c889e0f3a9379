"""Live bytes are counted exactly: storages, not views, from birth to death."""

from __future__ import annotations

import torch

from studylib.metering.live import LiveBytes


def test_views_count_once_and_freed_tensors_no_more():
    with LiveBytes() as live:
        a = torch.zeros(1000)
        _view = a[10:]
        doubled = a * 2
        assert live.live_bytes == 8000
        del doubled
        assert live.live_bytes == 4000
    assert live.peak_bytes == 8000


def test_saved_activations_live_until_the_backward_and_gradients_stay():
    weight = torch.nn.Parameter(torch.ones(10, 10))
    rows = torch.ones(5, 10)
    with LiveBytes() as live:
        loss = (rows @ weight).relu().sum()
        assert live.live_bytes == 400 + 200 + 200 + 4  # weight, rows, relu's output, loss
        loss.backward()
        del loss
        assert live.live_bytes == 400 + 200 + 400  # weight, rows, gradient
    assert weight.grad is not None


def test_categories_follow_moves_and_padding_is_a_category_of_its_own():
    with LiveBytes(block_bytes=512) as live:
        live.category = "made"
        a = torch.zeros(100)
        live.move([a], "kept")
        assert live.parts == {"made": 0, "kept": 400, "allocator": 112}
        assert live.live_bytes == 512
        del a
        assert live.live_bytes == 0


def test_nothing_is_counted_after_the_counter_has_ended():
    with LiveBytes() as live:
        a = torch.zeros(10)
    b = a * 2
    assert live.live_bytes == 40
    assert b.numel() == 10

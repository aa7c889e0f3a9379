"""What PyTorch's allocator asks of the driver is followed block by block, and measured runs agree.

The sequences' answers are worked by hand from the allocator's rules.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from studylib.core.places import REFERENCE
from studylib.forecasting.caching_allocator import MIB, CachingAllocator, NoRoom
from studylib.forecasting.job import StepSettings
from studylib.forecasting.moves import Depths, Held, LayersDiffer, SegmentMoves, Trained, stretch
from studylib.forecasting.optimizers import make_optimizer
from studylib.forecasting.replay import Demand, flatten_moves, least_memory, replay
from studylib.forecasting.run_forecasts import forecast_record
from studylib.forecasting.updates import UpdateLog, trace_updates
from studylib.schema.records import RECORD, read_record
from studylib.schema.settings import MethodSettings


@pytest.mark.parametrize(
    ("request_bytes", "allocated", "reserved"),
    [
        (1, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),
        (MIB + 1, MIB + 512, 20 * MIB),
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB, 10 * MIB),
        (10 * MIB + 1, 10 * MIB + 512, 12 * MIB),
        (135 * MIB, 136 * MIB, 136 * MIB),  # the rest of 1 MiB is too small to be cut off
    ],
)
def test_a_first_request_takes_its_block_and_segment(request_bytes, allocated, reserved):
    card = CachingAllocator()
    card.make("a", request_bytes)
    assert (card.allocated_bytes, card.reserved_bytes) == (allocated, reserved)
    card.free("a")
    assert (card.allocated_bytes, card.reserved_bytes) == (0, reserved)
    assert (card.peak_allocated_bytes, card.peak_reserved_bytes) == (allocated, reserved)


def made(sizes: dict[str, int], limit: int | None = None) -> CachingAllocator:
    card = CachingAllocator(limit)
    for key, mib in sizes.items():
        card.make(key, mib * MIB)
    return card


def test_the_smallest_free_block_that_holds_a_request_is_taken():
    card = made({"a": 30, "b": 20})
    card.free("a")
    card.free("b")
    card.make("c", 18 * MIB)  # of b's 20, so that a's 30 are left whole
    card.make("d", 30 * MIB)
    assert card.reserved_bytes == 50 * MIB
    card.make("e", 2 * MIB)  # what was cut off b
    assert card.reserved_bytes == 50 * MIB


def test_freed_neighbours_become_one_block():
    card = made({"a": 4, "b": 4, "c": 4})  # of one segment, of which 8 are left
    assert card.reserved_bytes == 20 * MIB
    card.free("c")
    card.make("d", 12 * MIB)  # c's 4 and the 8 after it
    assert card.reserved_bytes == 20 * MIB
    card.free("a")
    card.free("b")
    card.make("e", 8 * MIB)
    assert (card.reserved_bytes, card.allocated_bytes) == (20 * MIB, 20 * MIB)
    card.free("d")
    card.free("e")
    card.make("f", 20 * MIB)
    assert card.reserved_bytes == 20 * MIB


def test_segments_are_never_joined():
    card = made({"a": 32, "b": 32})
    card.free("a")
    card.free("b")
    card.make("c", 64 * MIB)
    assert card.reserved_bytes == 128 * MIB


def test_a_full_card_gives_back_whole_segments_and_no_others():
    card = made({"a": 20, "b": 30}, limit=52 * MIB)
    card.free("a")
    card.free("b")
    card.make("c", 40 * MIB)
    assert card.reserved_bytes == 40 * MIB
    card.free("c")
    card.make("pin", 2 * MIB)
    with pytest.raises(NoRoom):
        card.make("d", 39 * MIB)
    card.free("pin")
    card.make("d", 42 * MIB)
    assert card.reserved_bytes == 42 * MIB
    assert card.peak_reserved_bytes == 50 * MIB


def test_a_block_is_used_again_on_its_own_stream_alone():
    card = CachingAllocator()
    card.make("a", 12 * MIB, stream=1)
    card.free("a")
    card.make("b", 12 * MIB)
    assert card.reserved_bytes == 24 * MIB
    card.make("c", 12 * MIB, stream=1)
    assert card.reserved_bytes == 24 * MIB


# A pass that needs 32 MiB at once, and states of 12 that the first update makes in their place.
PASS = Demand([10 * MIB], [(0, 32 * MIB), (0, -1)], [(0, 12 * MIB)], [])


def test_states_made_in_cached_blocks_cost_the_next_pass_a_segment():
    found = replay(PASS)
    assert found.allocated_bytes == (10 + 12 + 32) * MIB
    assert found.reserved_bytes == (10 + 32 + 32) * MIB
    # The first segment is cut, so that a full card cannot have it back.
    assert least_memory(PASS, found) == found.reserved_bytes


def test_the_least_memory_is_below_the_reserve_where_cached_segments_can_go_back():
    demand = Demand([10 * MIB], [(0, 32 * MIB), (0, -1), (1, 40 * MIB), (1, -1)], [], [])
    found = replay(demand)
    assert (found.allocated_bytes, found.reserved_bytes) == (50 * MIB, 82 * MIB)
    assert 50 * MIB <= least_memory(demand, found) <= 51 * MIB
    with pytest.raises(NoRoom):
        replay(demand, 49 * MIB)


def test_gradients_live_until_the_update_is_done():
    demand = Demand([], [(0, 16 * MIB)], [(0, 32 * MIB)], [(0, 64 * MIB), (0, -1)])
    assert replay(demand).allocated_bytes == (16 + 32 + 64) * MIB


def test_runs_become_moves_with_one_key_a_storage():
    runs = [
        SegmentMoves(("forward", 0), 0, [(8, None), (4, None), (0, ("forward", 0, 0, 0))]),
        SegmentMoves(("backward", 0), 0, [(2, None), (0, ("forward", 0, 0, 1))]),
    ]
    assert flatten_moves(runs) == [(0, 8), (1, 4), (0, -1), (2, 2), (1, -1)]


def test_what_layers_hold_is_stretched_and_unlike_layers_are_refused():
    layers = [Held(-1, 9), *(Held(i, i % 3 and 5) for i in range(4)), Held(-1, 7)]
    grown = stretch(layers, Depths(6))
    assert [item.layer for item in grown] == [-1, 0, 1, 2, 3, 4, 5, -1]
    assert [item.count_bytes for item in grown] == [9, 0, 5, 5, 5, 5, 0, 7]
    with pytest.raises(LayersDiffer):
        stretch([*layers[:3], Held(2, 6), *layers[4:]], Depths(6))


TRAINED = [Trained(0, (300, 40), torch.float32, False), Trained(1, (7,), torch.bfloat16, False)]


def settings(optimizer: str) -> StepSettings:
    return StepSettings(method=MethodSettings(name="full"), optimizer=optimizer)


def test_the_fused_optimizers_moves_are_those_of_a_traced_one():
    with FakeTensorMode(), UpdateLog() as log:
        parameters = [nn.Parameter(torch.empty(t.shape, dtype=t.dtype)) for t in TRAINED]
        optimizer = make_optimizer("adamw", parameters, False)
        found = []
        for _ in range(2):
            for parameter in parameters:
                parameter.grad = torch.empty_like(parameter)
            log.on = True
            optimizer.step()
            log.on = False
            found.append(log.take())
    assert tuple(found) == trace_updates(TRAINED, settings("adamw"))


def test_foreach_copies_and_8_bit_states_have_their_known_sizes():
    first, later = trace_updates(TRAINED, settings("adamw-foreach"))
    copies = [size for _, size in later if size > 4]
    assert sorted(set(copies)) == [14, 48_000]
    assert sum(size < 0 for _, size in later) == len(later) / 2  # nothing stays
    assert sum(size for _, size in first if size > 0) > sum(copies)
    first, later = trace_updates(TRAINED, settings("adamw-8bit"))
    assert [size for _, size in first] == [1024, 1024, 12_000, 12_000, 188, 188, 28, 28]
    assert later == []
    first, _ = trace_updates(
        [Trained(0, (400, 300), torch.float32, False)], settings("paged-adamw-8bit")
    )
    assert [size for _, size in first] == [1024, 1024, 1876, 1876]  # the states are paged
    first, _ = trace_updates(TRAINED, settings("adamw"), shards=2)
    assert [size for _, size in first] == [4, 24_000, 24_000, 4, 8, 8]


@pytest.mark.parametrize("run", ["lora-r16--1x512--s0", "full--paged--s0"])
def test_a_measured_card_is_met_within_a_percent(run):
    """One H200's figures of 13B, from whose memory nothing was fitted: PyTorch's own counters."""
    record = read_record(REFERENCE / "h200" / "runs" / f"llama-2-13b--{run}" / RECORD)
    assert record.train is not None
    seen, made = record.train.measure, forecast_record(record)
    assert made.allocated_bytes == pytest.approx(seen.torch_peak_allocated_bytes, rel=0.002)
    reserved = made.peak_bytes - made.parts["cuda_context"]
    assert reserved == pytest.approx(seen.torch_peak_reserved_bytes, rel=0.01)

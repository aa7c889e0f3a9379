"""Attention by examples gives what attention to each example alone gives, gradients included."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, MistralConfig

from studylib.core.errors import StudyError
from studylib.modelling.attention import choose_attention
from studylib.modelling.by_example import (
    SHORT_TOKENS,
    attend_by_example,
    find_lengths,
    lay_out,
)
from studylib.modelling.models import load_model
from studylib.modelling.packing import probe_packing
from studylib.schema.settings import MethodSettings, ModelRef

LENGTHS = [
    [5, 1, SHORT_TOKENS + 9, 2],
    [9, 7, SHORT_TOKENS + 1],
]  # two rows; both kinds of products
HEADS, GROUPS, SIZE, VALUE_SIZE, SCALE = 6, 2, 8, 4, 0.3
SMALL = {"vocab_size": 1024, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 1,
         "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
         "hidden_size": 64, "intermediate_size": 128}  # fmt: skip


def pack(lengths):
    """Positions [rows, tokens]; what a row lacks is one more example."""
    longest = max(map(sum, lengths))
    rows = [[*row, longest - sum(row)] if sum(row) < longest else row for row in lengths]
    return torch.stack([torch.cat([torch.arange(n) for n in row]) for row in rows]), rows


def draw(rows, length):
    torch.manual_seed(0)
    shapes = [(rows, HEADS, length, SIZE), (rows, GROUPS, length, SIZE)]
    shapes.append((rows, GROUPS, length, VALUE_SIZE))
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def attend_alone(q, k, v):
    """One example [heads, tokens, size] by the formula, every key written out for its heads."""
    k, v = (x.repeat_interleave(HEADS // GROUPS, 0) for x in (k, v))
    scores = (q @ k.transpose(1, 2)) * SCALE
    later = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
    return scores.masked_fill(later, -torch.inf).softmax(-1) @ v


def test_outputs_and_gradients_are_those_of_each_example_alone():
    positions, lengths = pack(LENGTHS)
    tensors = draw(*positions.shape)
    found, _ = attend_by_example(
        nn.Identity(), *tensors, attention_mask=None, scaling=SCALE, position_ids=positions
    )
    parts = []
    for row, sizes in enumerate(lengths):
        split = [x[row].split(sizes, dim=1) for x in tensors]
        parts.append(torch.cat([attend_alone(*one) for one in zip(*split, strict=True)], 1))
    wanted = torch.stack(parts).transpose(1, 2)
    assert found.shape == wanted.shape
    torch.testing.assert_close(found, wanted)
    weights = torch.randn_like(found)
    ours, theirs = (torch.autograd.grad((x * weights).sum(), tensors) for x in (found, wanted))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_every_token_has_one_slot_and_like_lengths_share_a_batch():
    positions, _ = pack([[20, 20, 20, 3]])
    layout = lay_out(find_lengths(positions), positions.device)
    assert layout.gather[layout.place].tolist() == list(range(63))
    assert layout.batches == [(3, 20), (1, 3)]
    assert layout.real.sum() == 63 == len(layout.real)


@pytest.mark.parametrize(
    "change",
    [{"attention_mask": torch.ones(1, 1, 4, 4)}, {"position_ids": None}, {"sliding_window": 2},
     {"softcap": 30.0}],
)  # fmt: skip
def test_what_is_more_than_causal_is_refused_and_not_left_out(change):
    given = {"attention_mask": None, "position_ids": torch.arange(4)[None]} | change
    with pytest.raises(ValueError, match="not causal attention over packed rows"):
        attend_by_example(nn.Identity(), *draw(1, 4), **given)


def test_a_model_reads_packed_rows_by_it_as_by_the_default(tiny_folder):
    ref, method = ModelRef.parse(f"path:{tiny_folder}"), MethodSettings(name="base")
    ours, plain = (load_model(ref, method, "fp32", attention=a) for a in ("by_example", "sdpa"))
    assert ours.attention == "by_example" and ours.packing_reason is None
    assert probe_packing(ours.model) is None
    positions, _ = pack([[3, 9, 4]])
    ids = torch.arange(16)[None]
    with torch.no_grad():
        given = {"input_ids": ids, "position_ids": positions, "use_cache": False}
        logits = [x.model(**given).logits for x in (ours, plain)]
    torch.testing.assert_close(*logits)


def test_windows_are_refused_by_name():
    assert choose_attention(LlamaConfig(**SMALL), "by_example") == ("by_example", None)
    with pytest.raises(StudyError, match="looks back over a window"):
        choose_attention(MistralConfig(**SMALL, sliding_window=8), "by_example")

"""What an optimizer's update makes and frees: the first one, which makes the states, and a later.

As it is known parameter by parameter, it is traced at a model's own depth, with parameters and
gradients of their own shapes and nothing else of the model. They are meta tensors, ten times as
fast as fake ones. PyTorch has no fused AdamW for those; its moves are written down instead, and a
test holds them against a traced one.

Not covered: clipping, which makes numbers alone; the update's arithmetic and parts, which the
traced step has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from studylib.forecasting.job import StepSettings
from studylib.forecasting.moves import Trained
from studylib.forecasting.optimizers import make_optimizer
from studylib.metering.live import LiveBytes

FlatMove = tuple[int, int]  # (key, bytes): a making; (key, -1): the free of a storage


class UpdateLog(LiveBytes):
    """Keeps the moves of what is made while it is `on`; a key is never used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.on = False
        self.moves: list[FlatMove] = []
        self._keys: dict[int, int] = {}
        self._next = 0

    def take(self) -> list[FlatMove]:
        """The moves since the last call."""
        moves, self.moves = self.moves, []
        return moves

    def _add(self, storage: Any, key: int, category: str) -> None:
        super()._add(storage, key, category)
        if self.on:
            self._keys[key] = self._next
            self.moves.append((self._next, storage.nbytes()))
            self._next += 1

    def _free(self, key: int) -> None:
        super()._free(key)
        if key in self._keys:
            self.moves.append((self._keys.pop(key), -1))


def trace_updates(
    trained: Sequence[Trained], settings: StepSettings, shards: int = 1
) -> tuple[list[FlatMove], list[FlatMove]]:
    """(moves of the first update, moves of each later one); states are never freed.

    shards: on how many cards each parameter is divided.
    """
    shapes = [item.shape if shards == 1 else shard(item.shape, shards) for item in trained]
    halves = settings.master_weights and any(t.dtype != torch.float32 for t in trained)
    if settings.optimizer == "adamw" and not halves:
        sizes = [
            count_bytes
            for shape, item in zip(shapes, trained, strict=True)
            for count_bytes in (4, *[math.prod(shape) * item.dtype.itemsize] * 2)
        ]
        return list(enumerate(sizes)), []
    with UpdateLog() as log:
        parameters = [
            nn.Parameter(torch.empty(shape, dtype=item.dtype, device="meta"))
            for shape, item in zip(shapes, trained, strict=True)
        ]
        embeddings = [p for p, item in zip(parameters, trained, strict=True) if item.is_embedding]
        log.on = True
        with torch.device("meta"):  # where some states are made at once
            optimizer = make_optimizer(
                settings.optimizer, parameters, settings.master_weights, embeddings
            )
        moves = []
        for _ in range(2):
            log.on = False
            for parameter in parameters:
                parameter.grad = torch.empty_like(parameter)
            log.on = True
            optimizer.step()
            moves.append(log.take())
    return moves[0], moves[1]


def shard(shape: tuple[int, ...], shards: int) -> tuple[int, ...]:
    return (-(-math.prod(shape) // shards),)

"""Change the variant of a running model: switch, load, merge, unmerge; how long, and is it right?

Answers after a change are compared with those of a model that was freshly loaded with only that
adapter. On a plain base peft merges and unmerges in place. On a 4-bit base that would round the
sum to 4 bits, and unmerging would not bring the base back; there the adapter is merged into a copy
of 16 bits or more and the 4-bit base stays. What peft's way does to it stands beside, for show.

Loads come from files that the operating system has read before: a first load takes longer.

Not covered: requests under way while a variant changes.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from functools import partial
from itertools import combinations, islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from studylib.metering.allocator import release_leftovers
from studylib.modelling.four_bit import four_bit_layers
from studylib.modelling.variants import load_adapters, merge_adapter, ready
from studylib.schema.serving import Equality, SwapMeasures, summarise_seconds
from studylib.scoring.evaluate import NotANumber
from studylib.serving.abilities import Attempt
from studylib.serving.latency import undisturbed, wait_for

# Largest difference of logits, in their standard deviations, that passes for equal. In bf16 the
# merged weights are rounded anew, to 8 bits of mantissa: 0.07 to 0.3 in trials of 2 to 40 layers,
# where another adapter's answers are 2 to 6 apart; float32 leaves 1e-5.
TOLERANCES = {"fp32": 1e-4, "bf16": 0.5}
REPEATS = 3
IN_PLACE = "in place, by peft"
IN_A_COPY = "into a copy with dequantized weights; the 4-bit base stays, so nothing is unmerged"

NOT_AT_ALL = "not possible"

Load = Callable[[], nn.Module]


@torch.inference_mode()
def answer(model: Any, ids: torch.Tensor, **extra: Any) -> torch.Tensor:
    """Logits [batch, tokens, vocabulary] in float32."""
    device = next(model.parameters()).device
    return model(input_ids=ids.to(device), use_cache=False, **extra).logits.float()


def logit_difference(logits: torch.Tensor, reference: torch.Tensor) -> float:
    """Largest absolute difference, in standard deviations of the reference.

    Raises NotANumber where a logit is not finite: no answer is then equal to another.
    """
    broken = int((~logits.isfinite() | ~reference.isfinite()).sum())
    if broken:
        raise NotANumber(f"{broken:,} of {logits.numel():,} logits are not finite")
    return float((logits - reference).abs().max() / reference.std())


def equality(
    what: str, logits: torch.Tensor, reference: torch.Tensor, dtype: str, required: bool = True
) -> Equality:
    difference = logit_difference(logits, reference)
    return Equality(
        what=what, dtype=dtype, difference=difference, tolerance=TOLERANCES[dtype],
        required=required,
    )  # fmt: skip


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds until the action's work is done on the device too, and what it returned."""
    with undisturbed(collect=False):
        start = time.perf_counter()
        made = action()
        if torch.cuda.is_available():
            wait_for(torch.device("cuda"))
        return time.perf_counter() - start, made


def time_loads(load: Load) -> list[float]:
    """Seconds to bring in the model, as a service without hot-swap would for each change."""
    seconds = []
    for _ in range(REPEATS):
        seconds.append(timed(load)[0])
        release_leftovers()
    return seconds


def measure_swap(
    load: Load,
    folders: dict[str, Path],
    ids: torch.Tensor,
    dtype: str,
    switches: int,
    load_plain: Load | None = None,
    from_disk: bool = True,
    attempt: Attempt = lambda what, ability, work: work(),
) -> SwapMeasures:
    """All of it on models that `load` brings in; folders: the adapters on disk by name, 2 or more.

    load_plain: the same base in 16 or 32 bits, needed where `load` gives a 4-bit one. from_disk:
    whether `load` reads files, so that its time means something. attempt: gives None for what the
    method cannot do.
    """
    load_seconds, fresh = answer_fresh(load, folders, ids)
    names = list(folders)
    model: Any = load_adapters(load(), {names[0]: folders[names[0]]})
    bring = partial(model.load_adapter, autocast_adapter_dtype=False)
    load_adapter_seconds = [timed(partial(bring, folders[name], name))[0] for name in names[1:]]
    ready(model, names[0])
    cycle = [names[index % len(names)] for index in range(1, switches + 1)]
    switch_seconds = [timed(partial(model.set_adapter, name))[0] for name in cycle]
    checks = []
    for name, reference in fresh.items():
        ready(model, name)
        checks.append(equality(f"swap to {name}, fresh load", answer(model, ids), reference, dtype))
    if any(four_bit_layers(model)):
        assert load_plain is not None
        merge = partial(merge_in_a_copy, load_plain(), model, folders, fresh, ids, dtype)
    else:
        merge = partial(merge_in_place, model, fresh, ids, dtype)
    merging: Merging | None = attempt("merge between requests", "merge", merge)
    merge_seconds, unmerge_seconds, way, merge_checks = merging or ([], [], NOT_AT_ALL, [])
    return SwapMeasures(
        adapters=len(names),
        switch_seconds=summarise_seconds(switch_seconds),
        load_adapter_seconds=summarise_seconds(load_adapter_seconds),
        merge_seconds=summarise_seconds(merge_seconds) if merge_seconds else None,
        unmerge_seconds=summarise_seconds(unmerge_seconds) if unmerge_seconds else None,
        merge_way=way,
        load_model_seconds=summarise_seconds(load_seconds) if from_disk else None,
        contrast=min(logit_difference(a, b) for a, b in combinations(fresh.values(), 2)),
        checks=tuple(checks + merge_checks),
    )


def load_anew(load: Load, name: str, folder: Path) -> nn.Module:
    return load_adapters(load(), {name: folder})


def answer_fresh(
    load: Load, folders: dict[str, Path], ids: torch.Tensor
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Load base and one adapter anew for each of the first adapters: seconds, and its answers."""
    seconds, fresh = [], {}
    for name, folder in islice(folders.items(), REPEATS):
        spent, model = timed(partial(load_anew, load, name, folder))
        seconds.append(spent)
        fresh[name] = answer(model, ids)
        del model
        release_leftovers()  # 4-bit layers and their weights hold each other
    return seconds, fresh


Merging = tuple[list[float], list[float], str, list[Equality]]


def merge_in_place(
    model: Any, fresh: dict[str, torch.Tensor], ids: torch.Tensor, dtype: str
) -> Merging:
    """merge → unmerge → swap to the next adapter, around all that have fresh answers."""
    merge_seconds, unmerge_seconds, checks = [], [], []
    names = list(fresh)
    for name, following in zip(names, names[1:] + names[:1], strict=True):
        ready(model, name)
        merge_seconds.append(timed(model.merge_adapter)[0])
        checks.append(equality(f"{name} merged, dynamic", answer(model, ids), fresh[name], dtype))
        unmerge_seconds.append(timed(model.unmerge_adapter)[0])
        checks.append(equality(f"{name} unmerged, fresh load", answer(model, ids), fresh[name],
                               dtype))  # fmt: skip
        ready(model, following)
        what = f"merge {name}, unmerge, swap to {following}, fresh load"
        checks.append(equality(what, answer(model, ids), fresh[following], dtype))
    return merge_seconds, unmerge_seconds, IN_PLACE, checks


def merge_in_a_copy(
    plain: nn.Module,
    model: Any,
    folders: dict[str, Path],
    fresh: dict[str, torch.Tensor],
    ids: torch.Tensor,
    dtype: str,
) -> Merging:
    """The same with a 4-bit base: a merged copy answers, and the base serves the next adapter."""
    seconds, checks = [], []
    names = list(fresh)
    for name, following in zip(names, names[1:] + names[:1], strict=True):
        four_bit = model.get_base_model()
        spent, merged = timed(partial(merge_adapter, plain, folders[name], four_bit))
        seconds.append(spent)
        checks.append(equality(f"{name} merged, dynamic", answer(merged, ids), fresh[name], dtype))
        del merged
        ready(model, following)
        what = f"merge {name}, drop, swap to {following}, fresh load"
        checks.append(equality(what, answer(model, ids), fresh[following], dtype))
    checks += show_requantizing(model, names[0], fresh[names[0]], ids, dtype)
    return seconds, [], IN_A_COPY, checks


def show_requantizing(
    model: Any, name: str, reference: torch.Tensor, ids: torch.Tensor, dtype: str
) -> list[Equality]:
    """What peft's in-place way does to a 4-bit base. The model is of no use afterwards."""
    ready(model, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.merge_adapter()
        merged = answer(model, ids)
        model.unmerge_adapter()
    unmerged = answer(model, ids)
    return [
        equality("merged in place on 4-bit layers, dynamic", merged, reference, dtype, False),
        equality("unmerged on 4-bit layers, fresh load", unmerged, reference, dtype, False),
    ]

"""Do bitsandbytes' kernels compute what they stand for on this device: 4-bit layers, optimizers.

The layers are made by studylib.modelling.four_bit, as a QLoRA run makes them. A 4-bit product is
held to the product with the dequantized weight in float64, and the dequantized weight to the one
that was quantized, so that an error of the dequantization cannot hide in both sides.

Not covered: whole models (studylib.checking.check_study), speed.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from studylib.checking.check_card import error_of
from studylib.modelling.four_bit import LARGEST_ERROR, NF4_BLOCK, dequantize, quantize_part
from studylib.schema.checks import CheckedFigure, Found, apply_rules

BF16_EPSILON = 2**-7
# Norm of the error over the norm of the result. A bf16 product rounds weights, inputs' product and
# result once each, by half an epsilon at most; fp32 is held to a 64th of that, far above its own
# rounding and far below any wrong kernel.
TOLERANCE = {torch.bfloat16: BF16_EPSILON, torch.float32: BF16_EPSILON / 64}
# Half of NF4's widest gap between levels (0.30 of a block's maximum) and the rounding of that
# maximum to 8 bits (double quantization).
DEQUANTIZED_TOLERANCE = 0.17
# In and out of each layer. The widths of a row that are no multiple of the block are those at which
# a kernel can take another block's constant.
WIDTHS = ((512, 544), (96, 160), (172, 64))
LOST, LOST_BLOCK = "weights against the originals", "weights, largest error of a block's maximum"
# One row is decoded by a kernel of its own; beyond about 1,536 rows the weight is unpacked first.
ROWS = (1, 7, 256, 1600)
FOUR_BIT_RULE = (
    "4-bit forward and backward within 2^-7 (bf16) and 2^-13 (fp32) of the dequantized product, "
    f"before and after an evaluation; weights within {LARGEST_ERROR:g} of the originals' norm and "
    f"{DEQUANTIZED_TOLERANCE:g} of a block's maximum, at inner widths "
    + ", ".join(str(width) for width, _ in WIDTHS)
)
OPTIMIZER_STEPS = 10
SAME_UPDATE = 1e-5
OPTIMIZER_RULE = (
    f"{OPTIMIZER_STEPS} steps of each optimizer halve a small loss; 8-bit states are uint8 (and "
    f"paged on a card); fused AdamW equals foreach within {SAME_UPDATE:g}"
)


class OneLayer(nn.Module):
    """A linear layer in a module, so that it can be replaced by its 4-bit form."""

    def __init__(self, widths: tuple[int, int], dtype: torch.dtype) -> None:
        super().__init__()
        self.layer: Any = nn.Linear(*widths, bias=False, dtype=dtype)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.layer(rows)


def check_four_bit_kernels(device: torch.device) -> Found:
    """4-bit weights and products in both directions and dtypes, around an evaluation pass.

    Figures are the worst over the layers' widths.
    """
    figures, rules = [], []
    for dtype, limit in TOLERANCE.items():
        name = str(dtype).removeprefix("torch.")
        worst = dict[str, float]()
        for widths in WIDTHS:
            for what, value in try_layer(widths, device, dtype).items():
                worst[what] = max(worst.get(what, 0.0), value)
        for what, value in worst.items():
            bound = {LOST: LARGEST_ERROR, LOST_BLOCK: DEQUANTIZED_TOLERANCE}.get(what, limit)
            figures.append(CheckedFigure(what=f"{name} {what}", value=value))
            rules.append((value <= bound, f"{name} {what} is {value:.2g} off"))
    return apply_rules(figures, *rules)


def try_layer(
    widths: tuple[int, int], device: torch.device, dtype: torch.dtype
) -> dict[str, float]:
    """Every error of one layer, by name. widths: in, out."""
    torch.manual_seed(0)
    model = OneLayer(widths, dtype).to(device)
    # Normal, as NF4's loss is known for such weights; of a usual size.
    nn.init.normal_(model.layer.weight, std=0.02)
    original = model.layer.weight.detach().double()
    quantize_part(model, dtype)
    weight = dequantize(model.layer).double()
    found = {LOST: error_of(weight, original), LOST_BLOCK: block_error(weight, original)}
    for when in ("before", "after"):
        forward, backward, evaluated = product_errors(model, weight)
        found[f"forward {when} an evaluation"] = forward
        found[f"backward {when} an evaluation"] = backward
    return found | {"in evaluation": evaluated}


def block_error(weight: torch.Tensor, original: torch.Tensor) -> float:
    """The largest error as a share of its quantization block's largest weight."""
    blocks = original.reshape(-1, NF4_BLOCK)
    error = (weight.reshape(-1, NF4_BLOCK) - blocks).abs().amax(1) / blocks.abs().amax(1)
    worst = float(error.max())
    return worst if worst == worst else float("inf")


def product_errors(model: OneLayer, weight: torch.Tensor) -> tuple[float, float, float]:
    """The worst errors, over numbers of rows, of the product and of its gradient, and then of the
    product in evaluation mode, without gradients."""
    model.train()
    worst = [0.0, 0.0, 0.0]
    device, dtype = weight.device, model.layer.compute_dtype
    for count in ROWS:
        rows = random_rows(count, weight.shape[1], device, dtype).requires_grad_()
        upstream = random_rows(count, weight.shape[0], device, dtype)
        out = model(rows)
        out.backward(upstream)
        assert rows.grad is not None
        worst[0] = max(worst[0], error_of(out.detach(), rows.detach().double() @ weight.T))
        worst[1] = max(worst[1], error_of(rows.grad, upstream.double() @ weight))
    model.eval()
    with torch.no_grad():
        for count in ROWS:
            rows = random_rows(count, weight.shape[1], device, dtype)
            worst[2] = max(worst[2], error_of(model(rows), rows.double() @ weight.T))
    return worst[0], worst[1], worst[2]


def random_rows(count: int, width: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, width, generator=generator).to(device, dtype)


def check_optimizers(device: torch.device) -> Found:
    """A few steps on one small problem by every optimizer that a recipe can name."""
    from bitsandbytes import optim

    figures, rules = [], []
    for name, paged, make in (
        ("8-bit AdamW", False, optim.AdamW8bit),
        ("paged 8-bit AdamW", True, optim.PagedAdamW8bit),
    ):
        with warnings.catch_warnings():  # a CPU has no paged memory, and says so each time
            warnings.simplefilter("ignore", UserWarning)
            ratio, _, states = descend(device, make)
        kinds = {str(state.dtype).removeprefix("torch.") for state in states}
        figures += [
            CheckedFigure(what=f"{name}, loss after / before", value=ratio),
            CheckedFigure(what=f"{name}, states", value=", ".join(sorted(kinds)) or "none"),
        ]
        rules += [
            (ratio < 0.5, f"{name} does not lower the loss"),
            (kinds == {"uint8"}, f"{name} keeps no 8-bit states"),
        ]
        if paged and device.type == "cuda":
            on_pages = all(getattr(state, "is_paged", False) for state in states)
            rules.append((on_pages, f"{name} keeps its states in ordinary memory"))
    fused_ratio, fused, _ = descend(device, torch.optim.AdamW, fused=True)
    foreach_ratio, foreach, _ = descend(device, torch.optim.AdamW, foreach=True)
    apart = error_of(fused, foreach)
    figures += [
        CheckedFigure(what="fused AdamW, loss after / before", value=fused_ratio),
        CheckedFigure(what="foreach AdamW, loss after / before", value=foreach_ratio),
        CheckedFigure(what="fused against foreach", value=apart),
    ]
    rules += [
        (max(fused_ratio, foreach_ratio) < 0.5, "AdamW does not lower the loss"),
        (apart <= SAME_UPDATE, f"fused and foreach AdamW part by {apart:.2g}"),
    ]
    return apply_rules(figures, *rules)


def descend(
    device: torch.device, make: Any, **options: Any
) -> tuple[float, torch.Tensor, list[torch.Tensor]]:
    """(last loss over first, the weights, the moments) of fitting a linear map.

    The map has 262,144 weights: more than the least that bitsandbytes keeps in 8 bits or pages.
    """
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randn(*shape, generator=generator).to(device)
             for shape in ((512, 512), (64, 512), (64, 512))]  # fmt: skip
    weight = nn.Parameter(draws[0] * 0.1)
    optimizer = make([weight], lr=1e-2, **options)
    losses = []
    for _ in range(OPTIMIZER_STEPS + 1):
        loss = (draws[1] @ weight - draws[2]).square().mean()
        losses.append(float(loss.detach()))
        if len(losses) <= OPTIMIZER_STEPS:
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    state = optimizer.state[weight]
    moments = [state[name] for name in ("state1", "state2") if name in state]
    return losses[-1] / losses[0], weight.detach(), moments

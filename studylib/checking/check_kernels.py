"""Do bitsandbytes' kernels compute what they stand for on this device: 4-bit layers, optimizers.

The layers are made by studylib.modelling.models, as a QLoRA run makes them. A 4-bit product is held
to the product with the dequantized weight in float64, and the dequantized weight to the one that
was quantized, so that an error of the dequantization cannot hide in both sides.

Not covered: whole models (studylib.checking.check_study), speed.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from studylib.checking.check_card import error_of
from studylib.modelling.four_bit import quantize_linears
from studylib.schema.checks import Figure, Found, judge

BF16_EPSILON = 2**-7
# Norm of the error over the norm of the result. A bf16 product rounds weights, inputs' product and
# result once each, by half an epsilon at most; fp32 is held to a 64th of that, far above its own
# rounding and far below any wrong kernel.
TOLERANCE = {torch.bfloat16: BF16_EPSILON, torch.float32: BF16_EPSILON / 64}
# Half of NF4's widest gap between levels (0.30 of a block's maximum) and the rounding of that
# maximum to 8 bits (double quantization).
DEQUANTIZED_TOLERANCE = 0.17
WIDTHS = (512, 544)  # in, out: the latter no multiple of 64
# One row is decoded by a kernel of its own; beyond about 1,536 rows the weight is unpacked first.
ROWS = (1, 7, 256, 1600)
FOUR_BIT_RULE = (
    "4-bit forward and backward within 2^-7 (bf16) and 2^-13 (fp32) of the dequantized product, "
    "before and after an evaluation; dequantized weights within "
    f"{DEQUANTIZED_TOLERANCE} of a block's maximum"
)
OPTIMIZER_STEPS = 10
SAME_UPDATE = 1e-5
OPTIMIZER_RULE = (
    f"{OPTIMIZER_STEPS} steps of each optimizer halve a small loss; 8-bit states are uint8 (and "
    f"paged on a card); fused AdamW equals foreach within {SAME_UPDATE:g}"
)


class OneLayer(nn.Module):
    """A linear layer in a module that studylib.modelling.models can quantize."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer: Any = nn.Linear(*WIDTHS, bias=False, dtype=dtype)

    def get_output_embeddings(self) -> None:
        return None

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.layer(rows)


def check_four_bit(device: torch.device) -> Found:
    """4-bit products in both directions and dtypes, before and after an evaluation pass."""
    figures, rules = [], []
    for dtype, limit in TOLERANCE.items():
        torch.manual_seed(0)
        model = OneLayer(dtype).to(device)
        original = model.layer.weight.detach().double()
        quantize_linears(model, dtype)
        weight = dequantize(model.layer)
        name = str(dtype).removeprefix("torch.")
        lost = block_error(weight, original)
        figures.append(Figure(what=f"{name} dequantized error of a block's maximum", value=lost))
        rules.append((lost <= DEQUANTIZED_TOLERANCE, f"{name} weights come back {lost:.2g} off"))
        for when in ("before", "after"):
            forward, backward = product_errors(model, weight, device, dtype)
            for which, worst in (("forward", forward), ("backward", backward)):
                what = f"{name} {which} {when} an evaluation"
                figures.append(Figure(what=what, value=worst))
                rules.append((worst <= limit, f"{what} is {worst:.2g} off"))
            evaluated = evaluate_error(model, weight, device, dtype)
        figures.append(Figure(what=f"{name} in evaluation", value=evaluated))
        rules.append((evaluated <= limit, f"{name} in evaluation is {evaluated:.2g} off"))
    return judge(figures, *rules)


def dequantize(layer: Any) -> torch.Tensor:
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(layer.weight.data, layer.weight.quant_state).double()


def block_error(weight: torch.Tensor, original: torch.Tensor, block: int = 64) -> float:
    """The largest error as a share of its quantization block's largest weight."""
    blocks = original.reshape(-1, block)
    error = (weight.reshape(-1, block) - blocks).abs().amax(1) / blocks.abs().amax(1)
    worst = float(error.max())
    return worst if worst == worst else float("inf")


def product_errors(
    model: nn.Module, weight: torch.Tensor, device: torch.device, dtype: torch.dtype
) -> tuple[float, float]:
    """The worst errors, over numbers of rows, of the product and of its gradient."""
    model.train()
    worst = [0.0, 0.0]
    for count in ROWS:
        rows = random_rows(count, WIDTHS[0], device, dtype).requires_grad_()
        upstream = random_rows(count, WIDTHS[1], device, dtype)
        out = model(rows)
        out.backward(upstream)
        assert rows.grad is not None
        worst[0] = max(worst[0], error_of(out.detach(), rows.detach().double() @ weight.T))
        worst[1] = max(worst[1], error_of(rows.grad, upstream.double() @ weight))
    return worst[0], worst[1]


def evaluate_error(
    model: nn.Module, weight: torch.Tensor, device: torch.device, dtype: torch.dtype
) -> float:
    """The worst error of products in evaluation mode, without gradients."""
    model.eval()
    worst = 0.0
    with torch.no_grad():
        for count in ROWS:
            rows = random_rows(count, WIDTHS[0], device, dtype)
            worst = max(worst, error_of(model(rows), rows.double() @ weight.T))
    return worst


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
            Figure(what=f"{name}, loss after / before", value=ratio),
            Figure(what=f"{name}, states", value=", ".join(sorted(kinds)) or "none"),
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
        Figure(what="fused AdamW, loss after / before", value=fused_ratio),
        Figure(what="foreach AdamW, loss after / before", value=foreach_ratio),
        Figure(what="fused against foreach", value=apart),
    ]
    rules += [
        (max(fused_ratio, foreach_ratio) < 0.5, "AdamW does not lower the loss"),
        (apart <= SAME_UPDATE, f"fused and foreach AdamW part by {apart:.2g}"),
    ]
    return judge(figures, *rules)


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

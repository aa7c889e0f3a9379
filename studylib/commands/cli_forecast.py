"""The commands that need no device: `study forecast` and `study prices`.

Not covered: the forecast itself (studylib.forecasting.forecast), the other commands
(studylib.commands.cli).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from studylib.core.errors import StudyError
from studylib.schema.methods import ADAPTER, name_methods

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for a program.")]
PricesOption = Annotated[
    Path | None, typer.Option("--prices", help="Your own prices.csv; it overrides the shipped one.")
]


def forecast(
    model: Annotated[str, typer.Option(help="shape:NAME, hub:ID, path:FOLDER or ladder:NAME.")],
    method: Annotated[str, typer.Option(help=name_methods())] = ADAPTER,
    rank: int = 16,
    targets: Annotated[str, typer.Option(help="all-linear, or q_proj,v_proj,…")] = "all-linear",
    micro_batch: Annotated[int, typer.Option(help="Rows a card holds at once.")] = 1,
    seq_len: Annotated[int, typer.Option(help="Tokens a row.")] = 2048,
    masked: Annotated[
        bool, typer.Option(help="A mask for every row, as packed or padded rows need with sdpa.")
    ] = False,
    accumulation: int = 1,
    weights: Annotated[str, typer.Option(help="bf16 or fp32.")] = "bf16",
    master_weights: Annotated[bool, typer.Option(help="fp32 copies in the optimizer.")] = False,
    autocast: Annotated[bool, typer.Option(help="Multiply in bf16 under autocast.")] = True,
    adapter: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
    optimizer: Annotated[
        str, typer.Option(help="adamw, adamw-foreach, adamw-loop, adamw-8bit or paged-adamw-8bit.")
    ] = "adamw",
    checkpointing: Annotated[bool, typer.Option(help="Gradient checkpointing.")] = True,
    loss: Annotated[str, typer.Option(help="full, chunked or shifted (of old versions).")] = "full",
    gpus: int = 1,
    sharding: Annotated[str, typer.Option(help="none or fsdp.")] = "none",
    gpu: Annotated[str, typer.Option(help="The card for time and dollars.")] = "a100-80gb",
    prices: PricesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Memory, time and dollars of a training step on a card that you need not have."""
    from studylib.forecasting.forecast import ForecastSettings, format_forecast
    from studylib.forecasting.forecast import forecast as run_forecast
    from studylib.planning.catalog import load_prices

    names = targets if targets == "all-linear" else tuple(t.strip() for t in targets.split(","))
    options = {
        "model": model,
        "method": method,
        "rank": rank,
        "targets": names,
        "micro_batch": micro_batch,
        "seq_len": seq_len,
        "masked": masked,
        "accumulation": accumulation,
        "weights": weights,
        "master_weights": master_weights,
        "autocast": autocast,
        "adapter": adapter,
        "optimizer": optimizer,
        "checkpointing": checkpointing,
        "loss": loss,
        "gpus": gpus,
        "sharding": sharding,
        "gpu": gpu,
    }
    try:
        settings = ForecastSettings.model_validate(options)
    except ValidationError as error:
        raise explain_option(error) from None
    made = run_forecast(settings, prices=load_prices(prices))
    if as_json:
        print(json.dumps(to_json(made), indent=1))
    else:
        print(format_forecast(made))


def explain_option(error: ValidationError) -> StudyError:
    fault = error.errors()[0]
    option = "--" + str(fault["loc"][0]).replace("_", "-")
    return StudyError(f"{option} {fault['input']}", fault["msg"], "See `study forecast --help`.")


def to_json(made: Any) -> dict[str, Any]:
    """The forecast as scripts read it; `fits` maps each card to its answer and headroom."""
    return made.model_dump(mode="json")


def prices(prices: PricesOption = None, as_json: JsonOption = False) -> None:
    """The offers behind every dollar: card, provider, price an hour, date, source."""
    from studylib.planning.catalog import load_prices

    offers = sorted(load_prices(prices), key=lambda o: (o.gpu, o.usd_per_gpu_hour))
    if as_json:
        print(json.dumps([offer.model_dump(mode="json") for offer in offers], indent=1))
        return
    for offer in offers:
        print(
            f"{offer.gpu:16} ${offer.usd_per_gpu_hour:7.3f} an hour and card  "
            f"{offer.provider} {offer.instance}, {offer.as_of}  [{offer.source}]"
        )

"""The commands that need no device: `study forecast`, `study prices` and `study forecasts`.

Not covered: the forecast itself (studylib.forecasting.forecast), what the reference report shows as
forecast (studylib.forecasting.article_forecasts, run_forecasts), the other commands
(studylib.commands.cli).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from studylib.commands.cli_options import JsonOption, PricesOption, split
from studylib.commands.forecast_only import forecast_only
from studylib.core.errors import StudyError
from studylib.schema.method_names import name_methods


@forecast_only
def forecast(
    model: Annotated[str, typer.Option(help="shape:NAME, hub:ID, path:FOLDER or ladder:NAME.")],
    method: Annotated[
        str | None, typer.Option(help=f"{name_methods()}; the first adapter if left out.")
    ] = None,
    rank: int | None = None,
    targets: Annotated[
        str | None, typer.Option(help="all-linear (the usual), or q_proj,v_proj,…")
    ] = None,
    micro_batch: Annotated[int | None, typer.Option(help="Rows a card holds at once.")] = None,
    seq_len: Annotated[int | None, typer.Option(help="Tokens a row.")] = None,
    masked: Annotated[
        bool | None,
        typer.Option(help="A mask for every row, as packed or padded rows need with sdpa."),
    ] = None,
    accumulation: int | None = None,
    weights: Annotated[str | None, typer.Option(help="bf16 or fp32.")] = None,
    master_weights: Annotated[
        bool | None, typer.Option(help="fp32 copies of what is trained whole.")
    ] = None,
    autocast: Annotated[bool | None, typer.Option(help="Multiply in bf16 under autocast.")] = None,
    adapter: Annotated[str | None, typer.Option(help="fp32 or bf16.")] = None,
    optimizer: Annotated[
        str | None,
        typer.Option(help="adamw, adamw-foreach, adamw-loop, adamw-8bit or paged-adamw-8bit."),
    ] = None,
    checkpointing: Annotated[bool | None, typer.Option(help="Gradient checkpointing.")] = None,
    loss: Annotated[
        str | None, typer.Option(help="chunked (the usual), full or shifted (of old versions).")
    ] = None,
    gpus: int = 1,
    sharding: Annotated[str | None, typer.Option(help="none or fsdp.")] = None,
    gpu: Annotated[str, typer.Option(help="The card to fit, and for time and dollars.")] = (
        "a100-80gb"
    ),
    tokens: Annotated[
        int | None, typer.Option(min=1, help="Of your data, in place of the Alpaca-style run.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Your data, whose tokens are reckoned from its characters.")
    ] = None,
    epochs: Annotated[float, typer.Option(min=0.001, help="How often data is read.")] = 3.0,
    prices: PricesOption = None,
    results: Annotated[
        Path | None, typer.Option(help="Your results, whose runs teach; usually ./results.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Memory, time and dollars of a training on a card that you need not have.

    What is not stated is as a study on a card has it: bf16, fp32 masters in full fine-tuning, the
    loss in pieces, checkpointing, packed rows of 2,048 tokens.
    """
    from pydantic import ValidationError

    from studylib.forecasting.calibration import learn_from
    from studylib.forecasting.forecast_text import format_forecast
    from studylib.forecasting.job_forecast import trace_once
    from studylib.forecasting.usual_recipe import usual_settings
    from studylib.planning.catalog import load_prices
    from studylib.schema.methods import ADAPTER

    learn_from(results)
    given: dict[str, Any] = {
        "rank": rank, "micro_batch": micro_batch, "seq_len": seq_len, "masked": masked,
        "accumulation": accumulation, "weights": weights, "master_weights": master_weights,
        "autocast": autocast, "adapter": adapter, "optimizer": optimizer,
        "checkpointing": checkpointing, "loss": loss, "sharding": sharding,
    }  # fmt: skip
    stated = {name: value for name, value in given.items() if value is not None}
    if targets is not None:
        stated["targets"] = targets if targets == "all-linear" else tuple(split(targets) or ())
    try:
        settings = usual_settings(model, method or ADAPTER, gpu, gpus, **stated)
    except ValidationError as error:
        raise explain_option(error) from None
    count = own_tokens(tokens, data, epochs)
    made = trace_once(settings, True, tokens=count, prices=tuple(load_prices(prices)))
    print(made.model_dump_json(indent=1) if as_json else format_forecast(made))


def own_tokens(tokens: int | None, data: str | None, epochs: float) -> int | None:
    """Tokens of the reader's training, all epochs together; None where nothing is said of it."""
    from studylib.inputs.examples import read_source
    from studylib.planning.estimate import CHARACTERS_PER_TOKEN, sum_characters
    from studylib.schema.settings import DataSettings

    if tokens is not None and data is not None:
        raise StudyError("--tokens and --data", "both say how much data there is", "Give one.")
    if data is not None:
        examples = read_source(data, DataSettings(source=data))
        letters = sum(map(sum_characters, examples))
        tokens = max(1, round(letters / CHARACTERS_PER_TOKEN.mid))
        print(f"{data}: {len(examples):,} examples, about {tokens:,} tokens "
              f"({CHARACTERS_PER_TOKEN.mid:g} characters a token)", file=sys.stderr)  # fmt: skip
    return None if tokens is None else max(1, round(tokens * epochs))


def explain_option(error: Any) -> StudyError:
    """Of pydantic's error, the message on the first option that is wrong."""
    fault = error.errors()[0]
    option = "--" + str(fault["loc"][0]).replace("_", "-")
    return StudyError(f"{option} {fault['input']}", fault["msg"], "See `study forecast --help`.")


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


def forecasts(
    reference: Annotated[
        Path | None, typer.Option(help="The reference results; results/reference.")
    ] = None,
) -> None:
    """Trace the article's 13B jobs, published peaks and the reference's own runs once more."""
    from studylib.core.places import REFERENCE
    from studylib.forecasting.article_forecasts import make_article_forecasts
    from studylib.forecasting.run_forecasts import refresh_forecasts
    from studylib.schema.forecast_book import FORECASTS
    from studylib.schema.records import read_records

    root = reference or REFERENCE
    print(make_article_forecasts(root / FORECASTS))
    for folder in sorted(path.parent for path in root.glob("*/runs")):
        print(refresh_forecasts(folder, read_records(folder / "runs")))

"""What to rent for a study: the machine, its price, the hours agreed on, and SkyPilot's task.

The task is a plain mapping, so that it can be shown, tested and priced without SkyPilot; the hub's
token is never in it, only the name under which it will come.

Not covered: asking (studylib.commands.cli_rent), carrying it through (studylib.planning.renting).
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from studylib.core.errors import StudyError
from studylib.planning.catalog import Gpu, Offer, PriceRange, find_gpu, load_gpus, price_range
from studylib.planning.estimate import StudyEstimate
from studylib.planning.renting import with_results
from studylib.schema.profile import Profile, is_file_name
from studylib.schema.ranges import Range
from studylib.schema.serving import serve_specs
from studylib.schema.settings import Frozen, ModelRef, nearest

# SkyPilot's names of the catalog's cards; PCIe kinds and those that nobody rents out have none.
SKY_NAMES = {
    "a10-24gb": "A10", "a10g-24gb": "A10G", "a100-40gb": "A100", "a100-80gb": "A100-80GB",
    "a40-48gb": "A40", "a6000-48gb": "A6000", "b200-180gb": "B200", "gh200-96gb": "GH200",
    "h100-80gb": "H100", "h200-141gb": "H200", "l4-24gb": "L4", "l40s-48gb": "L40S",
    "rtx3090-24gb": "RTX3090", "rtx4090-24gb": "RTX4090", "rtx5090-32gb": "RTX5090",
}  # fmt: skip
# SkyPilot 0.14.1's own list, less those that need a cluster of one's own.
CLOUDS = (
    "aws", "azure", "cudo", "do", "fluidstack", "gcp", "hyperbolic", "ibm", "lambda", "mithril",
    "nebius", "oci", "paperspace", "primeintellect", "runpod", "seeweb", "shadeform", "vast",
    "verda", "yotta",
)  # fmt: skip
MOST_CARDS = 8  # of one machine
SYSTEM_GB = 80  # the image, the packages with CUDA, room for caches and records
BYTES_PER_DOWNLOADED_PARAM = 4  # some repositories keep fp32
BYTES_PER_SAVED_PARAM = 12  # a checkpoint of full fine-tuning: weights and two moments
LARGEST_DISK_GB = 4000
IDLE_MINUTES = (
    10  # after the job: SkyPilot's own takedown, should nobody here be left to ask for it
)
SETUP_HOURS = 0.5  # on top of the slowest forecast: provisioning and packages
# gcc and a Python with its headers are for Triton, which builds kernels when they are first used.
TOOLS = """\
NEEDED=; command -v make >/dev/null || NEEDED=make
command -v cc >/dev/null || NEEDED="$NEEDED gcc libc6-dev"
if [ -n "$NEEDED" ]; then
  SUDO=$(command -v sudo || true)
  $SUDO apt-get update -qq && $SUDO apt-get install -y -qq $NEEDED
fi
command -v uv >/dev/null || python3 -m pip install --quiet --user uv
uv python install 3.12
[ -e "$HOME/.local/bin/python3.12" ] || ln -s "$(uv python find 3.12)" "$HOME/.local/bin/python3.12"
"""
PREAMBLE = 'set -e\nexport PATH="$HOME/.local/bin:$PATH"\n'


class Rental(Frozen):
    """One machine: a card of the catalog, how many, on which terms. usd_cap: an hour, at most."""

    gpu: Gpu
    cards: int
    spot: bool = False
    cloud: str | None = None
    usd_cap: float

    @property
    def accelerators(self) -> str:
        return f"{SKY_NAMES[self.gpu.name]}:{self.cards}"


class Bill(Frozen):
    """What a rental should and may cost. None where no forecast could be made."""

    hours: Range | None
    usd: Range | None
    most_hours: float
    most_usd: float


def parse_gpus(text: str) -> tuple[Gpu, int]:
    """`H100:1` as a card of the catalog and a count: SkyPilot's name or the catalog's, 1 if none.

    Raises StudyError: unknown names get the nearest ones.
    """
    name, colon, count = text.strip().partition(":")
    if not name:
        raise StudyError("GPU", "no card is named", "Write GPU=H100:1.")
    if colon and not (re.fullmatch(r"[0-9]+", count) and 1 <= int(count) <= MOST_CARDS):
        raise StudyError(
            text, f"a machine has 1 to {MOST_CARDS} cards", f"Write {name or 'H100'}:1."
        )
    known = {sky.lower(): card for card, sky in SKY_NAMES.items()}
    found = known.get(name.lower(), name.lower())
    if found in SKY_NAMES:
        return find_gpu(found), int(count or 1)
    if found in load_gpus():
        raise StudyError(text, "SkyPilot rents out no such card", nearest(name, list(known)))
    raise StudyError(text, "this is no card that can be rented", nearest(name, list(known)))


def parse_cloud(text: str | None) -> str | None:
    """A provider, or PROVIDER/REGION, as SkyPilot takes it; None leaves the choice to SkyPilot."""
    if not text:
        return None
    if text.partition("/")[0].lower() not in CLOUDS:
        raise StudyError(text, "SkyPilot has no such provider", nearest(text, list(CLOUDS)))
    return text.lower()


def make_rental(
    gpus: str, offers: Iterable[Offer], spot: bool, cloud: str | None, usd_cap: float | None
) -> tuple[Rental, PriceRange | None]:
    """The machine and its offers. An hour may cost usd_cap, or what the dearest offer takes."""
    gpu, cards = parse_gpus(gpus)
    prices = price_range(gpu.name, offers)
    if usd_cap is None:
        if prices is None:
            raise StudyError(
                gpus, "no offer for this card is known", "Say what an hour may cost: MAX=3.50."
            )
        usd_cap = prices.dearest * cards
    if not (math.isfinite(usd_cap) and usd_cap > 0):
        raise StudyError(f"MAX={usd_cap:g}", "these are dollars an hour", "Write MAX=3.50.")
    if prices and not spot and usd_cap < prices.cheapest * cards:
        raise StudyError(
            f"MAX={usd_cap:g}",
            f"the cheapest offer known for {gpus} is ${prices.cheapest * cards:.2f} an hour",
            "Allow more, try SPOT=1, or name a cheaper offer in a file of PRICES.",
        )
    rental = Rental(
        gpu=gpu, cards=cards, spot=spot, cloud=parse_cloud(cloud), usd_cap=round(usd_cap, 4)
    )
    return rental, prices


def estimate(profile: Profile, home: Path, gpu: Gpu, cards: int) -> StudyEstimate:
    """Hours of what is left of a profile on these cards, by forecast alone. Imports torch.

    home: where its results lie here; StudyError if what is there does not belong to it.
    """
    from studylib.forecasting.prospects import estimate_study
    from studylib.planning.plan import plan_study, specs_left
    from studylib.planning.sweeps import sweeps_first
    from studylib.running.runner import serve_left

    waiting = set(serve_left(profile, home))
    return estimate_study(
        specs_left(profile, plan_study(profile, home)),
        gpu.name,
        cards,
        [spec for spec in serve_specs(profile) if spec.serve_id in waiting] if waiting else [],
        sweeps=sweeps_first(profile, home)[0],
    )


def make_bill(
    made: StudyEstimate, rental: Rental, prices: PriceRange | None, budget_usd: float
) -> Bill:
    """What it should cost, and when the machine is taken down at the latest.

    most_hours: those that the budget pays at the highest price; more where the slowest forecast
    with the setup needs more. So a forecast that is wrong cannot cost without end.
    """
    expected = made.hours if made.runs else None
    usd = expected * rental.cards * prices.usd if expected and prices else None
    most_hours = budget_usd / rental.usd_cap
    if expected:
        most_hours = max(most_hours, expected.high + SETUP_HOURS)
    return Bill(
        hours=expected, usd=usd, most_hours=most_hours, most_usd=most_hours * rental.usd_cap
    )


def disk_gb(profile: Profile) -> int:
    """Room for every model's download and for one checkpoint of the largest that is trained whole.

    A model whose size cannot be found counts as 13 billion parameters.
    """
    from studylib.forecasting.job_forecast import count_params

    sizes: dict[str, int] = {}
    for spec in profile.runs():
        if spec.model not in sizes:
            try:
                sizes[spec.model] = count_params(spec.model, False)
            except StudyError:
                sizes[spec.model] = 13_000_000_000
    whole = {s.model for s in profile.runs() if s.method.kind.trains and not s.method.kind.adapter}
    needed = sum(
        n * BYTES_PER_DOWNLOADED_PARAM
        for model, n in sizes.items()
        if ModelRef.parse(model).kind == "hub"
    )
    needed += max((sizes[model] for model in whole), default=0) * BYTES_PER_SAVED_PARAM
    return min(LARGEST_DISK_GB, 50 * math.ceil((SYSTEM_GB + needed / 1e9) / 50))


def rental_name(profile: Profile, rental: Rental) -> str:
    """One name for each profile and machine: the same command finds the machine that it left."""
    words = f"study-{profile.name}-{rental.accelerators}".lower()
    return re.sub(r"[^a-z0-9]+", "-", words).strip("-")


def build_task(
    rental: Rental,
    profile: Profile,
    options: Mapping[str, str],
    checkout: Path,
    home: Path,
    disk: int,
    token: bool,
) -> dict[str, Any]:
    """SkyPilot's task. options: make's variables, PROFILE first; home: where results lie here.

    SkyPilot sends the checkout without what .gitignore names: no virtual environment, no results of
    other studies. Those of this one are mounted, so that it goes on where it was.
    """
    words = " ".join(f"{key}={shlex.quote(value)}" for key, value in options.items())
    resources: dict[str, Any] = {
        "accelerators": rental.accelerators,
        "use_spot": rental.spot,
        "disk_size": disk,
        "max_hourly_cost": rental.usd_cap,
        "autostop": {"idle_minutes": IDLE_MINUTES, "down": True, "wait_for": "jobs"},
    }
    if rental.cloud:
        resources["infra"] = rental.cloud
    task: dict[str, Any] = {
        "name": rental_name(profile, rental),
        "workdir": str(checkout),
        "resources": resources,
        "setup": f"{PREAMBLE}{TOOLS}mkdir -p results/{profile.name}\nmake setup\n",
        "run": f"{PREAMBLE}make reproduce {words}\n",
    }
    if token:
        task["secrets"] = {"HF_TOKEN": None}  # SkyPilot gets the value beside the task
    return with_results(task, home.resolve(), profile.name)


def to_yaml(task: Mapping[str, Any]) -> str:
    """The task as SkyPilot's YAML, scripts as blocks, in the order in which people read it."""

    class Readable(yaml.SafeDumper):
        pass

    def block(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
        style = "|" if "\n" in text else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)

    Readable.add_representer(str, block)
    return yaml.dump(dict(task), Dumper=Readable, sort_keys=False, width=100)


def check_travels(options: Mapping[str, str], checkout: Path) -> None:
    """Raise where an option names a file that the machine will not have, or not under that name."""
    named = [options["PROFILE"]] if is_file_name(options["PROFILE"]) else []
    models = options.get("MODEL", "").split(",")
    named += [text.strip()[5:] for text in models if text.strip().startswith("path:")]
    named += [
        value
        for value in (options.get("DATA", ""), options.get("MMLU", ""))
        if value and value != "hub" and not re.match(r"(hub|almanac|tasks):", value)
    ]
    settings = dict(word.partition("=")[::2] for word in options.get("SET", "").split())
    parts = [settings.get(f"data.{part}", "") for part in ("source", "test", "validation")]
    named += [value for value in parts if value and not re.match("(hub|almanac):", value)]
    for value in named:
        inside = (checkout / value).resolve().is_relative_to(checkout.resolve())
        if value.startswith(("/", "~")) or not inside:
            raise StudyError(
                value,
                "the machine gets this checkout and nothing else",
                "Copy it into the checkout and name it from there, or take it from a hub: hub:ID.",
            )

"""The article's claims against our figures: one finding a part, judged by the rule in claims.yaml.

Every finding says how its figure was got: counted (exact arithmetic on the model's shape),
measured (records), forecast (traced without the device) or not measured yet, and what it needs.
Where a study has several sizes, each is judged by itself; what depends on the rows and tokens of a
pass (peaks, dollars) by the pass that is nearest to the article's.

Not covered: the rule itself (studylib.core.verdicts), which pass that is
(studylib.reporting.passes), getting forecasts, which are handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from studylib.core.metrics import plain_number, points
from studylib.core.verdicts import Measured, Rule, judge_claim, parse_rule
from studylib.planning.alpaca_run import TOKENS
from studylib.reporting.cells import rows_of
from studylib.reporting.claim_sources import (
    MEASURES,
    SERVED,
    ClaimFigure,
    ClaimForecast,
    Part,
    count_figure,
    forecast_figure,
    measured_on,
    with_unit,
)
from studylib.reporting.evidence_kinds import kind_of_model
from studylib.reporting.glossary import few_seeds, read_texts
from studylib.reporting.notes import at_edge, edge_words
from studylib.reporting.passes import Cell, gather_passes, job_of, why_judged
from studylib.reporting.resources import Spread, spread_of
from studylib.reporting.summary import Comparison, Row, Summary
from studylib.schema.methods import WHOLE
from studylib.schema.nvml_peak import nvml_bytes
from studylib.schema.records import Record

NOT_YET = "not measured yet"
Measure = Callable[[Comparison, Row], ClaimFigure | None]
TORCH_ALONE = "torch's allocator alone (reserved; NVML told nothing)"


@dataclass(frozen=True)
class Finding:
    """One part of a claim beside what we found.

    how: "counted ...", "measured on ...", "forecast ...", or what it still needs. decided_by: the
    figure that the verdict rests on. measured: the figure itself, None where there is none or it is
    in words. at: the model and the device of a measured one. beside: what a reader of the figure
    alone has to know.
    """

    claim: str
    part: str
    topic: str
    article: str
    ours: str
    how: str
    verdict: str
    decided_by: str
    rule: str
    measured: Measured | None = None
    at: Place | None = None
    beside: str = ""

    @property
    def is_toy(self) -> bool:
        """Whether a toy model gave the figure: it settles nothing of what large ones learn."""
        return self.at is not None and kind_of_model(self.at.model) == "toy"

    @property
    def is_few(self) -> bool:
        """Whether it rests on fewer seeds than the rule of what is enough asks."""
        return self.measured is not None and bool(few_seeds(self.measured.seeds))

    @property
    def cautions(self) -> list[str]:
        """Why a figure of what is learned may not last: few seeds, a rate at its grid's edge."""
        seeds = few_seeds(self.measured.seeds) if self.measured else ""
        labels = self.at.at_edge if self.at and self.measured else ()
        edge = edge_words(labels) if labels else ""
        return [words for words in (seeds, edge) if words]

    @property
    def got(self) -> str:
        """counted, measured or forecast; empty where there is no figure yet."""
        return first_word(self.how) if self.decided_by else ""


@dataclass(frozen=True)
class Place:
    """Where a figure was measured: model, parameters (None where not known), device; of a training
    also its rows × tokens, an optimizer other than the usual one, else empty, and whose learning
    rate, of the method's and full fine-tuning's, was the last one tried."""

    model: str
    params: int | None
    device: str
    rows: str = ""
    optimizer: str = ""
    at_edge: tuple[str, ...] = ()


def first_word(how: str) -> str:
    return how.split()[0].rstrip(":")


def read_claims() -> dict[str, dict[str, Any]]:
    return read_texts("claims.yaml")


def article_rule(method: str, track: str) -> Rule | None:
    """The rule by which the article's gap of a method is judged (C4), in points behind full; None
    on tracks that C4 does not speak of."""
    for part in read_claims()["C4"]["parts"]:
        if part["key"] == method and track in part["source"]["tracks"]:
            return parse_rule(part["rule"])
    return None


def evaluate_claims(
    summaries: Iterable[Summary], forecasts: Mapping[str, Sequence[ClaimForecast]] | None = None
) -> list[Finding]:
    """All findings in the order of the claims; of one part what a card measured comes first, and
    forecasts last. forecasts: by CLAIM.PART, such as C2.qlora."""
    studies = sorted(summaries, key=lambda summary: summary.study.card is None)  # cards first
    found = []
    for claim, content in read_claims().items():
        for part in content["parts"]:
            figures = find_figures(part, studies)
            traced = (forecasts or {}).get(f"{claim}.{part['key']}", ())
            figures += [(forecast_figure(part, forecast), None)
                        for forecast in give_way(traced, part, studies)]  # fmt: skip
            topic = content["topic"]
            found += [judge_figure(claim, topic, part, figure, at) for figure, at in figures]
            if not figures:
                found.append(Finding(claim, part["key"], topic, part["article"], NOT_YET,
                                     f"needs {part['needs']}", NOT_YET, "",
                                     describe_rule(part)))  # fmt: skip
    return found


def find_figures(part: Part, studies: list[Summary]) -> list[tuple[ClaimFigure, Place | None]]:
    """Our figures for a part and where they were measured: one count, or one a comparison, or one
    a serving run, or none."""
    source = part.get("source", {})
    if "count" in source:
        return [(count_figure(source), None)]
    found: list[tuple[ClaimFigure | None, Place | None]] = []
    if "measure" in source:
        cells = find_cells(source, studies)
        if source["measure"] in BY_PASS:
            measure = BY_PASS[source["measure"]]
            found += [(measure_passes(measure, group), place_of_row(*group[0]))
                      for group in gather_passes(cells)]  # fmt: skip
        else:
            measure_cell, held_out = MEASURES[source["measure"]], source.get("held_out", False)
            found += [(measure_cell(*cell, held_out), place_of_row(*cell)) for cell in cells]
    if "serve" in source:
        found += [
            (SERVED[source["serve"]](source, record),
             Place(str(record.spec.model_ref), None, record.environment.device))
            for study in studies
            for record in study.study.serves
        ]  # fmt: skip
    return [(figure, at) for figure, at in found if figure is not None]


def place_of_row(comparison: Comparison, row: Row) -> Place:
    first = row.records[0]
    optimizer = first.run.optimizer
    both = {r.method.label: r for r in (comparison.row(WHOLE), row) if r is not None}
    return Place(comparison.model, comparison.total_params, first.environment.device,
                 rows_of(first), "" if optimizer == "adamw" else optimizer,
                 tuple(label for label, one in both.items() if at_edge(one)))  # fmt: skip


def find_cells(source: Part, studies: Sequence[Summary]) -> list[Cell]:
    """Every row that a part speaks of, with the comparison that it stands in."""
    return [
        (comparison, row)
        for study in studies
        for comparison in study.comparisons
        if speaks_of(source, comparison)
        for row in (comparison.scored if source.get("every_weights") else comparison.rows)
        if row.method.name == source["method"]
    ]


def give_way(
    forecasts: Sequence[ClaimForecast], part: Part, studies: Sequence[Summary]
) -> list[ClaimForecast]:
    """The forecasts but those of a job that was measured: a record speaks before a forecast."""
    source = part.get("source", {})
    if source.get("measure") not in BY_PASS:
        return list(forecasts)
    done = [r for _, row in find_cells(source, studies) for r in row.complete]
    jobs = {job_of(record) for record in done}
    if source["measure"] == "train_peak":  # which is the same on any card
        jobs = {job._replace(gpu=None) for job in jobs}
    return [forecast for forecast in forecasts if forecast.job not in jobs]


def speaks_of(source: Part, comparison: Comparison) -> bool:
    """Whether a part is about this track and a model of this size (least, most parameters)."""
    least, most = source.get("params", (0, float("inf")))
    size = comparison.total_params or 0
    return comparison.track in source.get("tracks", [comparison.track]) and least <= size <= most


def judge_figure(
    claim: str, topic: str, part: Part, figure: ClaimFigure, at: Place | None
) -> Finding:
    """The finding of one figure, by the part's rule."""
    if figure.settled is not None:
        verdict, reason = figure.settled
    else:
        judgement = judge_claim(parse_rule(part["rule"]), figure.measured, figure.obstacle)
        verdict, reason = str(judgement.verdict), judgement.reason.replace(" -", " −")
    got = first_word(figure.how)
    sampled = got == "measured" and part.get("source", {}).get("measure") not in BY_PASS
    if not sampled:  # counts, forecasts, peaks and prices have a range, not a sampling interval
        reason = reason.replace("measured", got).replace("95 % interval", "range")
    return Finding(claim, part["key"], topic, part["article"], figure.ours, figure.how,
                   verdict, reason, describe_rule(part), figure.measured, at,
                   figure.beside)  # fmt: skip


def describe_rule(part: Part) -> str:
    """The rule of a part in words, as it stands in claims.yaml."""
    if "rule" not in part:
        return part["words"]
    rule = parse_rule(part["rule"])
    low, high = (with_unit(end, rule.unit) for end in rule.band)
    seeds = f", {rule.min_seeds} seeds or more" if rule.min_seeds > 1 else ""
    return f"reproduced from {low} to {high}{seeds} ({part['why']})"


def measure_train_peak(comparison: Comparison, row: Row) -> ClaimFigure | None:
    """The peak of training in GB, all cards together: of NVML, which is what one rents; of torch's
    allocator, and named so, where NVML told nothing."""
    found = ((nvml_peak(row), "NVML"),
             (row.memory.get(("torch_peak_reserved_bytes", "train")), TORCH_ALONE))  # fmt: skip
    peak, words = next(((p, words) for p, words in found if p is not None), (None, ""))
    if peak is None:
        return None
    value, low, high = (b / 1e9 for b in (peak.value, peak.low, peak.high))
    first = row.records[0]
    switches = first.fingerprint.get("recipe.switches", "")
    ours = f"{row.label}, {rows_of(first)} tokens at once ({switches}): "
    if not row.complete:
        ours += f"{row.status}, {plain_number(value, 3)} GB reached"
        more = "the run needs more than was reached"
        return ClaimFigure(ours, measured_on(comparison), None, more)
    ours += f"{plain_number(value, 3)} GB by {words}"
    if words == "NVML" and (made := forecast_of(comparison, first)):
        off = f"{points(made / peak.value - 1)} %"
        ours += f" (forecast without it: {plain_number(made / 1e9, 3)} GB, {off})"
    return ClaimFigure(ours, measured_on(comparison), Measured(value, "GB", low, high))


def nvml_peak(row: Row) -> Spread | None:
    """What NVML showed over the seeds, as every other table of a card has it; of several cards
    their sum."""
    if any(record.run.gpus > 1 for record in row.records):
        return row.memory.get(("nvml_peak_bytes", "train"))
    return spread_of((nvml_bytes(record) for record in row.records), peak=True)


def forecast_of(comparison: Comparison, record: Record) -> int | None:
    """The peak that was forecast of this very record, on one card, in bytes."""
    made = (f for f in comparison.study.forecasts if f.record_digest == record.digest)
    return next((f.card_bytes for f in made), None) if record.run.gpus <= 1 else None


def measure_run_dollars(comparison: Comparison, row: Row) -> ClaimFigure | None:
    """Dollars of the article's Alpaca-style run at the measured tokens/s and listed prices."""
    speed, price = row.figures.get("tokens_per_second"), row.price
    if speed is None or price is None or price.single:
        return None
    hours = TOKENS["packed"] / speed.value / 3600
    low, mid, high = (hours * hour for hour in (price.cheapest, price.median, price.dearest))
    ours = (
        f"{row.label}: {plain_number(TOKENS['packed'] / 1e6, 3)}M tokens at "
        f"{plain_number(speed.value, 3)} tokens/s, {plain_number(hours, 3)} h: "
        f"{with_unit(mid, '$')} ({plain_number(low, 3)} to {plain_number(high, 3)}); {price.note}"
    )
    return ClaimFigure(ours, measured_on(comparison), Measured(mid, "$", low, high))


def measure_passes(measure: Measure, cells: Sequence[Cell]) -> ClaimFigure | None:
    """The figure of one job at the pass to judge by (the first), the others' beside it."""
    figures = [(row, figure) for comparison, row in cells if (figure := measure(comparison, row))]
    if len(figures) < 2:
        return figures[0][1] if figures else None
    row, judged = figures[0]
    known = [figure.measured for _, figure in figures if figure.measured]
    words = [
        f"{rows_of(other.records[0])} "
        + (with_unit(f.measured.value, f.measured.unit) if f.measured else other.status)
        for other, f in figures[1:]
    ]
    ours = f"{judged.ours}; {why_judged(row)}; at the others tried {', '.join(words)}"
    if len(known) > 1:
        values, unit = [measured.value for measured in known], known[0].unit
        ours += f": {with_unit(min(values), unit)} to {with_unit(max(values), unit)} in all"
    return replace(judged, ours=ours)


BY_PASS: dict[str, Measure] = {"train_peak": measure_train_peak, "run_dollars": measure_run_dollars}

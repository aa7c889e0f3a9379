"""The report's part on a study that had a card for some minutes: memory, speed, serving, peers.

Figures of one table were made by one commit and one code; records of another one get tables of
their own under its name. Weights are random, so that nothing is said of accuracy.

Not covered: claims (studylib.reporting.claims).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from studylib.core.metrics import METRICS, MISSING, byte_size, percent, points
from studylib.planning.catalog import match_gpu
from studylib.reporting import forecast_errors, serve_tables
from studylib.reporting.blocks import (
    NAMED,
    Block,
    Heading,
    Number,
    Table,
    Text,
    bullets,
    cell_of,
    figures,
    named,
    titled,
    words,
)
from studylib.reporting.cells import link_record, rows_of, short_number
from studylib.reporting.glossary import say
from studylib.reporting.notes import count_of, join_words
from studylib.reporting.passes import made_by
from studylib.reporting.study import Study
from studylib.reporting.summary import Summary, method_order, untouched_params
from studylib.schema.card_study import CardFiles
from studylib.schema.checks import format_verdict
from studylib.schema.nvml_peak import nvml_bytes
from studylib.schema.records import Record
from studylib.schema.run_forecasts import RunForecast
from studylib.schema.serve_records import ServeRecord

Made = TypeVar("Made", Record, ServeRecord)
WATT_HOUR = 3600  # joules
NOT_FORECAST = "not forecast"


def is_card(summary: Summary) -> bool:
    """Whether this is a card's study under a clock, with its own files beside the records."""
    return summary.study.card is not None


def card_section(summary: Summary, several: bool) -> list[Block]:
    """Memory, speed and serving; parts of which nothing was measured are left out."""
    study, card = summary.study, card_of(summary.study)
    title = "Measured on a card" + (f" (profile {study.name})" if several else "")
    blocks: list[Block] = [Heading(2, title), Text(card_opening(study, card))]
    runs = trained(study)
    for records in by_maker(runs):
        mark = maker_words(records, runs)
        peaks, speeds = card_memory_table(study, records), card_speed_table(card, records)
        blocks += titled(f"Peak memory of training{mark}", peaks, say("card_memory"))
        blocks += titled(f"Speed{mark}", speeds, say("card_speed"))
    for serves in by_maker(study.serves):
        setting = serve_tables.setting_sentence(serves)
        mark = maker_words(serves, study.serves)
        blocks += titled(f"Serving{mark}", serve_tables.overhead_table(serves), setting)
    return blocks + left_out(study, card)


def card_details(summary: Summary) -> list[Block]:
    """The appendix: parts of the peaks, swaps, other libraries, MMLU by two ways."""
    study, card = summary.study, card_of(summary.study)
    blocks: list[Block] = []
    runs = trained(study)
    for records in by_maker(runs):
        ids = {record.run_id for record in records}
        found = [c for c in forecast_errors.compare_runs([study]) if c.record.run_id in ids]
        words = f"{forecast_errors.sentence(found)} By part, measured, with the forecast's error:"
        title = f"Parts of the peak{maker_words(records, runs)}"
        blocks += titled(title, forecast_errors.part_table(found), words)
    for serves in by_maker(study.serves):
        title = f"Swapping adapters on the card{maker_words(serves, study.serves)}"
        blocks += titled(title, serve_tables.swap_table(serves))
    for one in card.peers:
        blocks += titled("Beside other libraries", peers_table(one), one.get("words", ""))
    failed = bullets(f"{r.name}: {r.fault}" for checks in card.checks
                     for r in checks.results if not r.passed)  # fmt: skip
    blocks += [Heading(3, "Failed in the card's self-check"), *failed] if failed else []
    return blocks + titled("MMLU: each few-shot prefix computed once", mmlu_table(card.mmlu))


def card_of(study: Study) -> CardFiles:
    if study.card is None:
        raise ValueError(f"{study.name} is no card's study")
    return study.card


def trained(study: Study) -> list[Record]:
    """Records of trainings: models by size, then methods, then by the tokens of a pass."""
    sizes = {r.run.model: untouched_params([r]) or 0 for r in study.records if r.load}

    def place(record: Record) -> tuple[object, ...]:
        recipe = record.run.train
        tokens = recipe.micro_batch * recipe.seq_len
        return (-sizes.get(record.run.model, 0), record.run.model,
                method_order(record.run.method), tokens, recipe.seq_len, record.run_id)  # fmt: skip

    return sorted((r for r in study.records if r.run.method.kind.trains), key=place)


def by_maker(records: Iterable[Made]) -> list[list[Made]]:
    """Records of one device, commit and code together, the largest group first."""
    groups: dict[tuple[str, ...], list[Made]] = {}
    for record in records:
        groups.setdefault(made_by(record), []).append(record)
    return sorted(groups.values(), key=lambda group: (-len(group), made_by(group[0])))


def maker_words(records: Sequence[Made], everything: Sequence[Made]) -> str:
    """Which code made a table's records, as its title ends; empty where one code made all."""
    device, commit, code = made_by(records[0])
    several = len(by_maker(everything)) > 1
    return f" ({device}, commit {commit[:12]}, code {code[:12]})" if several else ""


# Sentences ----------------------------------------------------------------------------------------


def card_opening(study: Study, files: CardFiles) -> str:
    """Which card, when, by which code, and what it reached when it was asked alone."""
    every: list[Record | ServeRecord] = [*study.records, *study.serves]
    devices = join_words(sorted({record.environment.device for record in every}))
    days = sorted({record.environment.finished_at[:10] for record in every})
    called = {(call.git_commit or "unknown")[:12] for call in files.study.calls}
    commits = join_words(sorted({made_by(record)[1][:12] for record in every} | called))
    card = files.study.card
    facts = ", ".join([devices, byte_size(card.memory_bytes), f"torch {card.torch}",
                       *([f"driver {card.driver}"] if card.driver else [])])  # fmt: skip
    records = f"{count_of(len(every), 'record')} of {join_words(days)}"
    text = say("card_opening", facts=facts, records=records, commits=commits)
    checks = [f"Its self-check: {format_verdict(found)}." for found in files.checks]
    return " ".join(part for part in (text, ceilings(study, files), *checks) if part)


def ceilings(study: Study, files: CardFiles) -> str:
    """What the card gave when it was asked for nothing else, beside its datasheet."""
    found = files.study.card.ceiling
    if found is None:
        return ""
    gpu = match_gpu(study.records[0].environment.device)
    flops, copied = found.bf16_flops_per_second / 1e12, found.copy_bytes_per_second / 1e12
    sheet = ("", "")
    if gpu is not None:
        sheet = (f" (datasheet {gpu.flops_per_second('bf16') / 1e12:,.0f})",
                 f" (datasheet {gpu.bytes_per_second / 1e12:.2f})")  # fmt: skip
    return (
        f"Asked alone, it multiplied matrices in bf16 at {flops:,.0f} TFLOP/s{sheet[0]} and copied "
        f"at {copied:.2f} TB/s{sheet[1]}."
    )


def left_out(study: Study, files: CardFiles) -> list[Block]:
    """What the clock or a failure left unmeasured, by name."""
    words = []
    for step in files.study.steps:
        undone = [part.name for part in step.parts if part.state != "done"]
        which = f": {join_words(undone)}" if undone else ""
        if step.state != "done":
            words.append(f"{step.name}, {step.state}{which}{tell_reason(step.reason)}")
    words += [f"{r.run_id}, {r.status}{tell_reason(r.reason)}"
              for r in study.records if not r.complete]  # fmt: skip
    listed = bullets([*words, *serve_tables.tell_skipped(study.serves)])
    return [Heading(3, "Cut off or not measured"), *listed] if listed else []


def tell_reason(reason: str | None) -> str:
    return f" ({reason})" if reason else ""


def method_and_optimizer(record: Record) -> str:
    """Method, and its optimizer where it is not the usual one."""
    optimizer = record.run.optimizer
    other = "" if optimizer == "adamw" else f", {optimizer}"
    status = "" if record.complete else f" — {record.status}"
    return f"{record.run.method.label}{other}{status}"


def card_memory_table(study: Study, records: Iterable[Record]) -> Table:
    """Each run's peak by three counters, with what was forecast of it by each."""
    made = {f.record_digest: f for f in study.forecasts}
    header = (*NAMED, *figures("Rows × tokens", "Allocated ↓; forecast",
              "Reserved ↓; forecast", "NVML ↓; forecast"))  # fmt: skip
    rows = [
        (r.run.model, method_and_optimizer(r), link_record(study.link, r, rows_of(r)),
         *peak_cells(r, made.get(r.digest) if r.complete else None))
        for r in records
        if r.train
    ]  # fmt: skip
    return Table(header, tuple(rows))


def peak_cells(record: Record, made: RunForecast | None) -> Iterator[str]:
    """Allocated, reserved and NVML's, each measured; forecast, with the forecast's error."""
    assert record.train is not None
    measure = record.train.measure
    measured = (measure.torch_peak_allocated_bytes, measure.torch_peak_reserved_bytes,
                nvml_bytes(record))  # fmt: skip
    ours: tuple[int | None, ...] = (None,) * 3
    if made is not None:
        context = made.parts.get("cuda_context", 0)
        ours = (made.allocated_bytes, made.peak_bytes - context, made.card_bytes)
    for seen, own in zip(measured, ours, strict=True):
        beside = NOT_FORECAST
        if seen is not None and own is not None:
            beside = f"{byte_size(own)} ({points(own / seen - 1)} %)"
        yield MISSING if seen is None else Number(f"{byte_size(seen)}; {beside}", seen)


def card_speed_table(card: CardFiles, records: Iterable[Record]) -> Table:
    """Each run's step, tokens, shares of the card's arithmetic, and energy where it was read."""
    header = (*NAMED, *figures("Rows × tokens", METRICS["clean_step_seconds"].header,
              METRICS["tokens_per_second"].header, "Of the datasheet's bf16 peak (%) ↑",
              "Of the peak measured here (%) ↑", "The same with what is computed again (%) ↑",
              "Energy (Wh a million tokens) ↓"))  # fmt: skip
    ceiling = card.study.card.bf16_peak
    rows = []
    for record in records:
        train = record.train
        if train is None or not record.complete:
            continue
        rate, flops = train.tokens_per_second, train.model_flops_per_token
        again = train.recomputed_flops_per_token
        every = None if flops is None or again is None else flops + again
        rows.append((
            record.run.model, method_and_optimizer(record), rows_of(record),
            cell_of(train.clean_step_seconds, METRICS["clean_step_seconds"].number),
            cell_of(rate, METRICS["tokens_per_second"].number),
            cell_of(train.model_flops_utilisation, percent),
            share_cell(rate, flops, ceiling),
            share_cell(rate, every, ceiling),
            energy_cell(record),
        ))  # fmt: skip
    return Table(header, tuple(rows))


def share_cell(rate: float | None, flops: float | None, ceiling: float | None) -> str:
    return cell_of(rate * flops / ceiling, percent) if rate and flops and ceiling else MISSING


def energy_cell(record: Record) -> str:
    """Of the whole training stage, its warm-up steps included, over all of its tokens; missing for
    a run that went on after a kill, which has spent more than its tokens tell."""
    assert record.train is not None
    joules, tokens = record.train.measure.energy_joules, record.train.tokens_seen
    if not joules or not tokens or record.environment.sessions > 1:
        return MISSING
    return short_number(1e6 * joules / tokens / WATT_HOUR)


# Columns of the peers' table that are worth a reader's minute; the file has the others.
PEER_COLUMNS = ("peer", "tokens/s", "by ", "allocated", "reserved", "card (NVML)", "padding",
                "did the same work")  # fmt: skip


def peers_table(content: Mapping[str, Any]) -> Table:
    """Other libraries beside ours, as benchmarks/peers.py reckons it; empty where it did not."""
    head, *rows = content.get("table") or [[]]
    keep = [i for i, name in enumerate(head) if name.startswith(PEER_COLUMNS)]
    names = [head[i] for i in keep]
    header = (*map(named, names[:1]), *figures(*names[1:-1]), *words(*names[1:][-1:]))
    return Table(header, tuple(tuple(row[i] for i in keep) for row in rows))


def mmlu_table(found: Sequence[Mapping[str, Any]]) -> Table:
    """The usual way to score MMLU beside shared prefixes: the same questions, one row a dtype."""
    header = (named("Model"), *words("dtype"), *figures("Questions", "Usual way (s) ↓",
              "Ours (s) ↓", "Ratio ↑", "Answers changed ↓",
              "Largest difference of log-likelihoods ↓"))  # fmt: skip
    rows = [
        (str(one["model"]), str(one["dtype"]), cell_of(one["items"]),
         short_number(one["stock_model_seconds"]), short_number(one["our_model_seconds"]),
         Number(f"{short_number(one['time_ratio'])} ×", one["time_ratio"]),
         cell_of(one["answers_changed"]),
         cell_of(one["max_abs_loglikelihood_difference"], "{:.2g}".format))
        for one in found
    ]  # fmt: skip
    return Table(header, tuple(rows))

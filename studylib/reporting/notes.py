"""The sentences under tables: how to read them, what they could have shown, what they do not say.

Not covered: the answer (studylib.reporting.prose), the report's last list
(studylib.reporting.limits).
"""

from __future__ import annotations

from collections.abc import Sequence

from studylib.core.metrics import percent, plain_number
from studylib.reporting.appendix import rerun_command
from studylib.reporting.blocks import Block, Items, Text
from studylib.reporting.glossary import say
from studylib.reporting.resources import MEMORY, TIMED
from studylib.reporting.summary import Comparison, Row, Summary
from studylib.schema.shared_card import runs_on_card


def count_of(number: int, word: str) -> str:
    return f"{number} {word}" + ("" if number == 1 else "s")


def join_words(words: Sequence[str], last: str = "and") -> str:
    """a, b and c"""
    return f" {last} ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def machine_line(summary: Summary) -> str:
    """Where and when the runs were made, as the records say it."""
    records = summary.study.records
    devices = sorted({record.environment.device for record in records})
    days = sorted({record.environment.finished_at[:10] for record in records})
    host = records[0].environment.host
    parts = [join_words(devices), f"{host.get('cores_logical', '?')} cores"]
    if memory := host.get("memory_total_bytes"):
        parts.append(f"{plain_number(memory / 1e9, 3)} GB of host memory")
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    return f"{', '.join(parts)}; runs of {when}; {count_of(len(records), 'record')}"


def memory_note(comparisons: Sequence[Comparison]) -> str:
    """What a peak is where no card was read; empty where one was."""
    kind = comparisons[0].memory_kind
    return say(kind) if kind in ("live_tensor_peak_bytes", "host_peak_bytes") else ""


def stages_note(comparisons: Sequence[Comparison]) -> str:
    """Beside a table of memory by stage: what else it holds where live tensors were counted."""
    if comparisons[0].memory_kind != "live_tensor_peak_bytes":
        return ""
    return "The process's own memory, Python included, stands in the table of memory by stage."


def all_share(comparisons: Sequence[Comparison]) -> bool:
    """Whether every trained run of these tables shared a card: they then have no times at all."""
    rows = [row for c in comparisons for row in c.rows if row.method.kind.trains and row.complete]
    return bool(rows) and all(row.shares_card for row in rows)


def shown_keys(comparisons: Sequence[Comparison], keys: Sequence[str]) -> list[str]:
    """The figures of a table, those of a clock left out where nothing had a card of its own."""
    shared = all_share(comparisons)
    return [key for key in keys if not (shared and key in TIMED)]


def sharing_note(comparisons: Sequence[Comparison]) -> str:
    """Why times are missing, where runs shared a card; empty where none did."""
    rows = [row for c in comparisons for row in c.rows if row.shares_card]
    most = max((runs_on_card(record) for row in rows for record in row.complete), default=0)
    return say("shared_card", most=most) if rows else ""


def price_note(comparisons: Sequence[Comparison]) -> str:
    """Which price the dollars rest on, or why there are none."""
    notes = sorted({row.price.note for c in comparisons for row in c.rows if row.price})
    if notes:
        text = "Cost is seconds of loading and training × price: " + "; ".join(notes) + "."
        text += " Searching for a learning rate and asking questions are not in it."
        return f"{text} {sharing_note(comparisons)}".strip()
    return sharing_note(comparisons) or say("no_price")


def end_to_end_note(comparisons: Sequence[Comparison]) -> str:
    """What end to end holds beyond training, where methods differ in how often they are asked."""
    twice = dict.fromkeys(row.method.label for c in comparisons for row in c.also)
    told = twice and not all_share(comparisons)
    return say("end_to_end", methods=join_words(list(twice))) if told else ""


def spread_note(comparisons: Sequence[Comparison]) -> str:
    """What the intervals and the other figures of a table rest on."""
    rows = [row for c in comparisons for row in c.rows]
    seeds = max((len(row.complete) for row in rows), default=0)
    asked = sorted({row.accuracy.items for row in rows if row.accuracy})
    over = [*(["examples"] if any(c.measured for c in comparisons) else []),
            *(["subjects"] if asked else [])] or ["subjects"]  # fmt: skip
    text = f"Intervals of 95 % over {join_words([*over, *(['seeds'] if seeds > 1 else [])])}"
    text += "" if seeds > 1 else ", for these runs alone: one seed says nothing of others"
    counts = [f"{' to '.join(f'{n:,}' for n in dict.fromkeys((asked[0], asked[-1])))} questions"
              ] if asked else []  # fmt: skip
    counts += [seed_words(rows)] if seeds > 1 else []
    text += f" ({', '.join(counts)})" if counts else ""
    peak = f"train peak is {MEMORY[comparisons[0].memory_kind]}, the largest of the seeds"
    clock = "" if all_share(comparisons) else "time and cost are medians, "
    return f"{text}; {clock}{peak}."


def seed_words(rows: Sequence[Row]) -> str:
    """`one seed`, `3 seeds`, `2 to 3 seeds`: complete runs of each trained method."""
    counts = [len(row.complete) for row in rows if row.method.kind.trains and row.complete] or [0]
    if max(counts) == 1:
        return "one seed"
    return f"{' to '.join(str(n) for n in dict.fromkeys((min(counts), max(counts))))} seeds"


def seeds_not_run(comparisons: Sequence[Comparison]) -> str:
    """Planned seeds without a record of methods that have one, in a sentence; empty without."""
    found: dict[tuple[str, str], list[str]] = {}
    for comparison in comparisons:
        for label, seeds in not_run(comparison).items():
            name = f"{label} at {comparison.name}" if len(comparisons) > 1 else label
            found.setdefault(tuple(seeds), []).append(name)  # type: ignore[arg-type]
    parts = [f"{'seed' if len(seeds) == 1 else 'seeds'} {join_words(seeds)} of {join_words(names)}"
             for seeds, names in found.items()]  # fmt: skip
    return f"Not run: {'; '.join(parts)}." if parts else ""


def not_run(comparison: Comparison) -> dict[str, list[str]]:
    """Method -> its planned seeds that have no record, where it has one of another seed."""
    have = {row.method.label for row in comparison.rows}
    found: dict[str, list[str]] = {}
    for spec in comparison.missing:
        if spec.method.label in have and spec.run_id not in comparison.study.failed:
            found.setdefault(spec.method.label, []).append(str(spec.seed))
    return found


def at_edge(row: Row) -> bool:
    """Whether a row's learning rate was its search's lowest or highest."""
    return any("at the grid's edge" in record.run.learning_rate_source for record in row.records)


def edge_sentence(comparison: Comparison) -> str:
    """Which methods' rates were the last ones tried; empty where none was."""
    names = [f"{row.method.label} ({row.records[0].run.learning_rate:g})"
             for row in comparison.rows if at_edge(row)]  # fmt: skip
    words = edge_words(names)
    return f"{words[0].upper()}{words[1:]}: better ones may lie beyond." if names else ""


def edge_words(names: Sequence[str]) -> str:
    if len(names) == 1:
        return f"the best learning rate of {names[0]} lies at its grid's edge"
    return f"the best learning rates of {join_words(names)} lie at their grids' edges"


def not_run_note(summary: Summary) -> str:
    """Models and tracks of the plan of which no run has a record; empty where there are none."""
    begun = {(r.run.track, r.run.model) for r in summary.study.records}
    missing = dict.fromkeys((spec.track, spec.model) for spec in summary.study.missing)
    names = [f"{model} (track {track})" for track, model in missing if (track, model) not in begun]
    return f"Not run at all: {join_words(names)}." if names else ""


def command_note(comparisons: Sequence[Comparison]) -> str:
    record = comparisons[0].rows[0].records[0]
    if not rerun_command(record).startswith("study run"):
        return "The command that makes a record again stands in the appendix."
    command = f"`study run RUN_ID --profile {record.run.profile}`"
    return f"Each linked record is made again by {command} with its folder's name as RUN_ID."


def chance_notes(comparisons: Sequence[Comparison]) -> list[str]:
    """One sentence for each size at which some accuracy cannot be told from guessing."""
    notes = []
    for comparison in comparisons:
        rows = [(row, row.chance.chance) for row in comparison.rows if row.chance]
        at = [row.method.label for row, _ in rows if not row.above_chance]
        if at:
            who = f"the accuracy of {join_words(at)} is not"
            who = "no accuracy is" if len(at) == len(rows) else who
            text = f"At {comparison.name} {who} clearly better than guessing"
            notes.append(f"{text} ({percent(rows[0][1])} %).")
    return notes


def tuning_note(comparisons: Sequence[Comparison]) -> str:
    """How a rate was chosen, and how surely: sweeps are short and have one seed."""
    sweeps = [sweep for comparison in comparisons for sweep in comparison.sweeps]
    text = say("tuned_by_measure" if judged_by_measure(comparisons) else "tuned_by_questions")
    if any(row.forgetting for comparison in comparisons for row in comparison.rows):
        text += ", and what it keeps of old knowledge is that of this rate, which no search minds"
    if any(sweep.at_edge for sweep in sweeps if not all(p.is_out for p in sweep.points)):
        text += ". Where the best rate lies at the edge, a better one may lie beyond"
    commits = {sweep.environment.git_commit for sweep in sweeps}
    runs = {r.environment.git_commit for c in comparisons for row in c.rows for r in row.records}
    if commits - runs:
        names = join_words(sorted((commit or "unknown")[:12] for commit in commits - runs))
        text += f". The searches were made at another commit than the runs: {names}"
    return f"{text}."


def judged_by_measure(comparisons: Sequence[Comparison]) -> bool:
    """Whether a measure on held-out examples chose some rate."""
    return any(p.measure for c in comparisons for sweep in c.sweeps for p in sweep.points)


def refusals(summary: Summary, track: str) -> list[Block]:
    """Which runs were not put into one table, by field and values."""
    lines = []
    for refusal in (refusal for refusal in summary.refusals if refusal.track == track):
        values = "; ".join(
            f"`{shorten_hash(value)}` in {', '.join(runs)}"
            for value, runs in sorted(refusal.values.items())
        )
        lines.append(f"{refusal.model}: **{refusal.field}** differs: {values}")
    why = "**Not put into one table**, because these fields must be shared and are not:"
    return [Text(why), Items(tuple(lines))] if lines else []


def shorten_hash(value: str) -> str:
    """A hash by its first 16 digits; other values whole."""
    return f"{value[:16]}…" if len(value) == 64 and " " not in value else value

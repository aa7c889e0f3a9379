"""The report's appendix: each run by itself, how to make it again, and where it came from.

Not covered: limits in words (studylib.reporting.prose).
"""

from __future__ import annotations

import posixpath
import shlex
from collections.abc import Sequence

from studylib.core.metrics import METRICS, percent
from studylib.reporting.blocks import Block, Number, Table, Text, cell_of, figures, named, words
from studylib.reporting.cells import NOT_RUN, link_record
from studylib.reporting.glossary import read_texts, read_words
from studylib.reporting.resources import wall_seconds
from studylib.reporting.summary import Summary
from studylib.schema.profile import shipped_profiles
from studylib.schema.records import LoadBlock, Record


def rerun_command(record: Record) -> str:
    """The command that makes a run again. A changed custom profile needs its own words."""
    run = record.run
    if run.profile in shipped_profiles() or not run.profile.startswith("custom-"):
        return f"study run {record.run_id} --profile {run.profile}"
    words = {
        "PROFILE": "custom",
        "MODEL": run.model,
        "DATA": run.data.source,
        "MMLU": run.evaluate.questions,
        "METHODS": run.method.slug if run.method.kind.trains else None,
        "SEEDS": run.seed if run.method.kind.trains else None,
        "STEPS": run.train.steps,
        "LIMIT": run.evaluate.limit,
    }
    named = (f"{key}={shlex.quote(str(v))}" for key, v in words.items() if v is not None)
    return f"make reproduce {' '.join(named)}"


def command_of(summary: Summary, record: Record) -> str:
    """The same for a run of a study; a card's profile lies beside its records alone."""
    if summary.study.card is None:
        return rerun_command(record)
    return f"study run {record.run_id} --profile {profile_beside(summary)}"


def profile_beside(summary: Summary) -> str:
    return posixpath.join(summary.study.link, "profile.yaml")


def runs_table(summary: Summary) -> Table:
    header = (named("Run"), *words("Status"),
              *figures("Seed", "Learning rate", "Accuracy (%)", "Wall clock (s)", "Sessions",
                       "Runs at once"), *words("Command"))  # fmt: skip
    rows = []
    for record in summary.study.records:
        score = record.evaluate.score("questions") if record.evaluate else None
        rows.append((
            link_record(summary.study.link, record, record.run_id),
            record.status + (f": {record.reason}" if record.reason else ""),
            str(record.run.seed) if record.run.method.kind.trains else "—",
            learning_rate(record),
            cell_of(score.accuracy, percent) if score else "not measured",
            cell_of(wall_seconds(record), METRICS["end_to_end_seconds"].number),
            sessions(record),
            str(record.environment.concurrent_runs),
            f"`{command_of(summary, record)}`",
        ))  # fmt: skip
    for spec in summary.study.missing:
        end = summary.study.failed.get(spec.run_id)
        status = f"failed: {end}" if end else NOT_RUN
        command = f"`study run {spec.run_id} --profile {spec.profile}`"
        rows.append((spec.run_id, status, str(spec.seed), "—", "—", "—", "—", "—", command))
    return Table(header, tuple(rows))


def serves_table(summaries: Sequence[Summary]) -> Table:
    """Every serving run: its record, how it ended, what it took and the command."""
    header = (named("Serving run"), *words("Status"), *figures("Wall clock (s)", "Runs at once"),
              *words("Commit", "Command"))  # fmt: skip
    rows, seconds = [], METRICS["end_to_end_seconds"].number
    for summary in summaries:
        for record in summary.study.serves:
            profile = profile_beside(summary) if summary.study.card else record.spec.profile
            place = posixpath.join(summary.study.link, "serve", record.serve_id)
            environment, engine = record.environment, record.spec.engine
            dirty = ", with uncommitted changes" if environment.git_dirty else ""
            other = "" if engine == "transformers" else f" --engine {engine}"
            rows.append((
                f"[{record.serve_id}]({place}/serve.json)",
                record.status + (f": {record.reason}" if record.reason else ""),
                cell_of(sum(m.wall_seconds for m in record.stages.values()), seconds),
                str(environment.concurrent_runs),
                (environment.git_commit or "unknown")[:12] + dirty,
                f"`study serve {record.serve_id} --profile {profile}{other}`",
            ))  # fmt: skip
    return Table(header, tuple(rows))


def words_table() -> Table:
    """What every figure and test of the tables means."""
    rows = [(metric.label, metric.meaning) for metric in METRICS.values()]
    return Table((named("Column"), *words("Meaning")), (*rows, *read_words()["columns"].items()))


def learning_rate(record: Record) -> str:
    if not record.run.method.kind.trains:
        return "not trained"
    run = record.run
    return Number(f"{run.learning_rate:g}, {run.learning_rate_source}", run.learning_rate)


def sessions(record: Record) -> str:
    """How many processes the run took, and where it was taken up again."""
    steps = record.train.resumed_at_steps if record.train else ()
    resumed = f", resumed at step {', '.join(map(str, steps))}" if steps else ""
    return f"{record.environment.sessions}{resumed}"


def provenance_table(summary: Summary) -> Table:
    """Each fact once, with the number of runs that share it where they do not all agree."""
    facts: dict[str, list[str]] = {}
    for record in summary.study.records:
        for name, value in provenance(record).items():
            facts.setdefault(name, []).append(value)
    rows = []
    for name, values in facts.items():
        counts = {value: f"{value} ({values.count(value)} runs)" for value in sorted(set(values))}
        rows.append((name, values[0] if len(counts) == 1 else "; ".join(counts.values())))
    return Table((named("What"), *words("Value")), tuple(rows))


def provenance(record: Record) -> dict[str, str]:
    environment, marks, host = record.environment, record.fingerprint, record.environment.host
    dirty = ", with uncommitted changes" if environment.git_dirty else ""
    packages = ", ".join(f"{name} {v}" for name, v in sorted(environment.packages.items()))
    drivers = sorted({str(d.get("driver_version")) for d in environment.devices})
    facts = {
        "Device": environment.device,
        "Driver": ", ".join(drivers) or f"none ({environment.devices_reason or 'no card'})",
        "System": f"{host.get('system')}, Python {host.get('python')}",
        "Threads": str(environment.threads),
        "Commit": (environment.git_commit or "unknown") + dirty,
        "Measuring code": short(marks.get("code.sha256")),
        "Packages": packages,
    }
    if record.load:
        revision = record.load.model_revision
        facts[f"Weights of {record.run.model}"] = short(record.load.model_sha256) + (
            f", revision {revision}" if revision else ""
        )
        facts |= tried(record.run.model, record.load)
    if marks.get("held_out.items_sha256"):
        facts[f"Held-out examples, track {record.run.track}"] = (
            f"{marks.get('held_out.part')} part of {record.run.data.source}, "
            f"{', '.join(record.run.evaluate.measures)}, {short(marks['held_out.items_sha256'])}"
        )
    if marks.get("evaluate.items_sha256"):
        facts[f"Questions, track {record.run.track}"] = (
            f"{record.run.evaluate.questions}, {record.run.evaluate.scoring}, "
            f"{record.run.evaluate.shots} shots, {short(marks.get('evaluate.items_sha256'))}"
        )
    if marks.get("data.sha256"):
        facts[f"Training data, track {record.run.track}"] = (
            f"{record.run.data.source}, {short(marks.get('data.sha256'))}"
        )
    return facts


def tried(model: str, load: LoadBlock) -> dict[str, str]:
    """What was tried on a model when it was loaded, and what came out."""
    facts = {}
    if load.origin:
        file = load.origin.get("wheel") or load.origin.get("gguf")
        sha256 = load.origin.get("wheel_sha256") or load.origin.get("gguf_sha256")
        facts[f"Origin of {model}"] = f"{file}, {short(sha256)}, {load.origin.get('license')}"
    if load.attention is not None:
        apart = load.packing_reason and f"read one by one: {load.packing_reason}"
        facts[f"How {model} reads"] = (
            f"{load.attention} attention; examples of a packed row "
            f"{apart or 'do not see each other (tried at each load)'}"
        )
    if load.four_bit_share is not None and load.four_bit_error is not None:
        facts[f"4-bit base of {model}"] = (
            f"{percent(load.four_bit_share)} % of the weights outside embeddings; a matrix of its "
            f"shapes comes back at most {percent(load.four_bit_error)} % off"
        )
    return facts


def short(sha256: object) -> str:
    """The first twelve digits of a hash; the record has it whole."""
    return f"sha256 {str(sha256)[:12]}" if sha256 else "unknown"


def corrections() -> list[Block]:
    """What earlier versions of the shipped report got wrong, the newest first."""
    return [
        Text(f"**{entry['date']}.** *Said:* {entry['said']} *Wrong, because:* {entry['fault']} "
             f"*Done:* {entry['done']}")
        for entry in read_texts("corrections.yaml")
    ]  # fmt: skip

"""The report's last list: what its figures do not say, as far as the records show it.

Each line is a function of the studies that gives a sentence, or nothing where the records do not
call for one; LIMITS has them in the order of the report. Another line is another function there.

Not covered: how to read one table (studylib.reporting.notes).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from studylib.reporting.glossary import say
from studylib.reporting.notes import count_of, join_words
from studylib.reporting.summary import Summary
from studylib.schema.methods import UNTRAINED, WHOLE
from studylib.schema.profile import ModelRef
from studylib.schema.records import Record
from studylib.schema.tuning import TuneRecord

NEAR_END = 0.03  # of accuracy: closer to 0 or 1 a symmetric interval misses on one side

Studies = Sequence[Summary]


def limit_sentences(summaries: Studies) -> list[str]:
    """The sentences that these records call for, in order."""
    return [sentence for tell in LIMITS if (sentence := tell(summaries))]


def all_records(summaries: Studies) -> list[Record]:
    return [record for summary in summaries for record in summary.study.records]


def learning(summaries: Studies) -> list[Summary]:
    """The studies that ask what was learned: a card's under a clock has random weights."""
    return [summary for summary in summaries if summary.study.card is None]


def limit_scope(summaries: Studies) -> str:
    return say("limit_scope")


def limit_rates(summaries: Studies) -> str:
    records = all_records(learning(summaries))
    rates = {r.run.learning_rate_source for r in records if r.run.method.kind.trains}
    return say("limit_rates") if any("not tuned" in source for source in rates) else ""


def limit_edges(summaries: Studies) -> str:
    edges = [s.sweep_id for summary in summaries for s in summary.study.sweeps if is_at_edge(s)]
    return say("limit_edges", where=join_words(edges)) if edges else ""


def is_at_edge(sweep: TuneRecord) -> bool:
    """Whether a sweep's best rate is its grid's lowest or highest; not if all diverged."""
    return not all(p.is_out for p in sweep.points) and sweep.at_edge


def limit_near_ends(summaries: Studies) -> str:
    scored = [row.accuracy for s in summaries for c in s.comparisons for row in c.rows]
    near = any(a is not None and not NEAR_END < a.value < 1 - NEAR_END for a in scored)
    return say("limit_near_ends", points=f"{100 * NEAR_END:g}") if near else ""


def limit_broken(summaries: Studies) -> str:
    """Runs without an accuracy, and what cannot be known for the want of it."""
    broken = [r for r in all_records(summaries) if r.status == "not a number"]
    if not broken:
        return ""
    text = (
        f"The log-likelihoods of {join_words([r.run_id for r in broken])} choose no answer (not "
        "finite, or all alike), so that there is no accuracy"
    )
    without = [what for method, what in ((UNTRAINED, "gains over the base and what was kept"),
                                         (WHOLE, "gaps to full fine-tuning"))
               if any(r.run.method.name == method for r in broken)]  # fmt: skip
    return text + (f", and {join_words(without)} are not known there." if without else ".")


def limit_read_apart(summaries: Studies) -> str:
    records = all_records(summaries)
    apart = dict.fromkeys(
        model_and_track(r, summaries) for r in records if r.load and r.load.packing_reason
    )
    return say("limit_read_apart", where=join_words(list(apart))) if apart else ""


def limit_eager(summaries: Studies) -> str:
    records = all_records(summaries)
    plain = sorted({r.load.attention_reason for r in records if r.load and r.load.attention_reason})
    return say("limit_eager", why=join_words(plain)) if plain else ""


def limit_quantized_before(summaries: Studies) -> str:
    """Models whose 16- or 32-bit weights lie on a grid of few bits already."""
    found = {
        r.run.model: " and ".join(r.load.origin["quantized"])
        for r in all_records(summaries)
        if r.load and r.load.origin.get("quantized")
    }
    names = join_words([f"{model} ({types})" for model, types in found.items()])
    return say("limit_quantized_before", names=names) if found else ""


def limit_untrained_adapters(summaries: Studies) -> str:
    found = dict.fromkeys(
        f"{', '.join(record.train.untrained_adapters)} in {model_and_track(record, summaries)}"
        for record in all_records(summaries)
        if record.train and record.train.untrained_adapters
    )
    return tell_each(
        found, "Some adapters never got a gradient and are as they were before the training: "
    )


def limit_shared(summaries: Studies) -> str:
    shared = any(r.environment.concurrent_runs > 1 for r in all_records(summaries))
    return say("limit_shared") if shared else ""


def limit_dirty(summaries: Studies) -> str:
    if not any(record.environment.git_dirty for record in all_records(summaries)):
        return ""
    return "Some runs were made from code with changes that no commit holds."


def limit_cards(summaries: Studies) -> str:
    bare = all(r.environment.device.startswith("CPU") for r in all_records(summaries))
    return say("limit_cards") if bare else ""


def limit_resumed(summaries: Studies) -> str:
    if not any(r.train and r.train.resumed_at_steps for r in all_records(summaries)):
        return ""
    return "Some runs were interrupted and resumed from a checkpoint (see the runs)."


def limit_rows_skipped(summaries: Studies) -> str:
    """By data set: every run of it reads the same rows."""
    found = {}
    for record in all_records(summaries):
        if record.train and record.train.rows_skipped:
            found[record.run.data.source] = record.train.rows_skipped
    return tell_each(
        (f"{source}: {count_of(count, 'row')}" for source, count in found.items()),
        "Rows of the training data without a prompt or an answer, or that another part asks too, "
        "were left out: ",
    )


def limit_examples_left_out(summaries: Studies) -> str:
    return tell_training(
        summaries,
        "examples_left_out",
        "Some examples were not learned: their prompt alone fills a row (at most, in one run): ",
    )


def limit_examples_cut(summaries: Studies) -> str:
    return tell_training(
        summaries,
        "examples_cut",
        "Some examples were longer than a row and the end of their answer was not learned (at "
        "most, in one run): ",
    )


def tell_training(summaries: Studies, field: str, words: str) -> str:
    """By model and track the most examples of a run that a count of TrainBlock names."""
    found: dict[str, tuple[int, int, int]] = {}
    for record in all_records(summaries):
        train = record.train
        if train and getattr(train, field):
            count, where = getattr(train, field), model_and_track(record, summaries)
            each = (count, train.examples_drawn or 0, record.run.train.seq_len)
            found[where] = max(each, found.get(where, each))
    parts = (
        f"{count:,} of {of} in rows of {length:,} tokens, {where}"
        for where, (count, drawn, length) in found.items()
        for of in [f"{drawn:,} drawn" if drawn else "the set"]
    )
    return tell_each(parts, words)


def limit_prompts_cut(summaries: Studies) -> str:
    return tell_answers(
        summaries,
        "prompts_cut",
        "prompts of",
        "Some prompts were longer than the model's context and lost their beginning (a question is "
        "asked once for each of its choices; at most, in one run): ",
    )


def limit_undecided(summaries: Studies) -> str:
    return tell_answers(
        summaries,
        "undecided",
        "of",
        "All choices of some questions were equally likely, which counts as a wrong answer (at "
        "most, in one run): ",
    )


def tell_answers(summaries: Studies, field: str, of: str, words: str) -> str:
    """By model and track the most that a count of EvaluateBlock names in a run."""
    found: dict[str, tuple[int, int]] = {}
    for record in all_records(summaries):
        block = record.evaluate
        if block and getattr(block, field):
            where, asked = (
                model_and_track(record, summaries),
                sum(s.questions for s in block.scores),
            )
            forms = len({s.weights for s in block.scores}) or 1  # each is asked everything
            each = (-(-getattr(block, field) // forms), asked // forms)
            found[where] = max(each, found.get(where, each))
    parts = (f"{n:,} {of} {asked:,} questions, {where}" for where, (n, asked) in found.items())
    return tell_each(parts, words)


def model_and_track(record: Record, summaries: Studies) -> str:
    """A record's model and track, the track where there are several."""
    run = record.run
    tracks = {r.run.track for r in all_records(summaries)}
    ref = ModelRef.parse(run.model)
    name = ref.slug if ref.kind == "path" else run.model
    return name + (f" (track {run.track})" if len(tracks) > 1 else "")


def tell_each(parts: Iterable[str], words: str) -> str:
    told = list(parts)
    return f"{words}{'; '.join(told)}." if told else ""


def limit_few_seeds(summaries: Studies) -> str:
    few = [
        s.study.name
        for s in learning(summaries)
        if any(
            len(row.complete) < 3 for c in s.comparisons for row in c.rows if row.method.kind.trains
        )
    ]
    where = f" of profile {join_words(few)}" if len(summaries) > 1 else ""
    return say("limit_few_seeds", where=where) if few else ""


def limit_serving(summaries: Studies) -> str:
    return say("limit_serving") if any(summary.study.serves for summary in summaries) else ""


LIMITS: tuple[Callable[[Studies], str], ...] = (
    limit_scope,
    limit_broken,
    limit_rates,
    limit_edges,
    limit_near_ends,
    limit_rows_skipped,
    limit_examples_left_out,
    limit_examples_cut,
    limit_prompts_cut,
    limit_undecided,
    limit_read_apart,
    limit_eager,
    limit_untrained_adapters,
    limit_quantized_before,
    limit_shared,
    limit_dirty,
    limit_cards,
    limit_resumed,
    limit_few_seeds,
    limit_serving,
)

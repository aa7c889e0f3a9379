"""The report's last list: what its figures do not say, as far as the records show it.

Each sentence stands in its list with what calls for it, in the order of the report; one that the
records do not call for is empty and left out.

Not covered: how to read one table (studylib.reporting.notes).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from studylib.reporting.glossary import say
from studylib.reporting.notes import count_of, join_words
from studylib.reporting.summary import Summary
from studylib.schema.methods import UNTRAINED, WHOLE
from studylib.schema.profile import ModelRef
from studylib.schema.records import Record

NEAR_END = 0.03  # of accuracy: closer to 0 or 1 a symmetric interval misses on one side

Studies = Sequence[Summary]


def limit_sentences(studies: Studies) -> list[str]:
    """The sentences that these records call for, in order."""
    scope = say("limit_scope")
    return [scope, *learning_limits(studies), *left_out_sentences(studies), *run_limits(studies)]


def all_records(studies: Studies) -> list[Record]:
    return [record for study in studies for record in study.study.records]


def learning(studies: Studies) -> list[Summary]:
    """The studies that ask what was learned: a card's under a clock has random weights."""
    return [study for study in studies if study.study.card is None]


def learning_limits(studies: Studies) -> list[str]:
    """On what was learned: broken answers, rates, accuracies close to an end."""
    trained = [r.run for r in all_records(learning(studies)) if r.run.method.kind.trains]
    edges = [sweep.sweep_id for study in studies for sweep in study.study.sweeps
             if not all(p.is_out for p in sweep.points) and sweep.at_edge]  # fmt: skip
    scored = [row.accuracy for s in studies for c in s.comparisons for row in c.rows]
    near = any(a is not None and not NEAR_END < a.value < 1 - NEAR_END for a in scored)
    told = [
        tell_broken([r for r in all_records(studies) if r.status == "not a number"]),
        say("limit_rates") if any("not tuned" in r.learning_rate_source for r in trained) else "",
        say("limit_edges", where=join_words(edges)) if edges else "",
        say("limit_near_ends", points=f"{100 * NEAR_END:g}") if near else "",
    ]
    return list(filter(None, told))


def tell_broken(broken: Sequence[Record]) -> str:
    """Runs without an accuracy, and what cannot be known for the want of it."""
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


def left_out_sentences(studies: Studies) -> list[str]:
    """What of the data was left out or cut, and questions that no answer decides."""
    skipped = {  # every run of a data set reads the same rows
        record.run.data.source: record.train.rows_skipped
        for record in all_records(studies)
        if record.train and record.train.rows_skipped
    }
    return tell_each({
        "Rows of the training data without a prompt or an answer, or that another part asks too, "
        "were left out": [f"{source}: {count_of(n, 'row')}" for source, n in skipped.items()],
        "Some examples were not learned: their prompt alone fills a row (at most, in one run)":
        count_examples(studies, "examples_left_out"),
        "Some examples were longer than a row and the end of their answer was not learned (at "
        "most, in one run)": count_examples(studies, "examples_cut"),
        "Some prompts were longer than the model's context and lost their beginning (a question is "
        "asked once for each of its choices; at most, in one run)":
        count_questions(studies, "prompts_cut", "prompts of"),
        "All choices of some questions were equally likely, which counts as a wrong answer (at "
        "most, in one run)": count_questions(studies, "undecided", "of"),
    })  # fmt: skip


def tell_each(found: Mapping[str, Iterable[str]]) -> list[str]:
    """What happened: to whom, how often. Nothing of what happened to none."""
    told = {words: "; ".join(dict.fromkeys(parts)) for words, parts in found.items()}
    return [f"{words}: {parts}." for words, parts in told.items() if parts]


def count_examples(studies: Studies, field: str) -> list[str]:
    """By model and track the most examples of a run that a count of TrainBlock names."""
    found: dict[str, tuple[int, int, int]] = {}
    for record in all_records(studies):
        if record.train and (count := getattr(record.train, field)):
            where = model_and_track(record, studies)
            each = (count, record.train.examples_drawn or 0, record.run.train.seq_len)
            found[where] = max(each, found.get(where, each))
    return [
        f"{count:,} of {f'{drawn:,} drawn' if drawn else 'the set'} in rows of {length:,} tokens, "
        f"{where}"
        for where, (count, drawn, length) in found.items()
    ]


def count_questions(studies: Studies, field: str, of: str) -> list[str]:
    """By model and track the most that a count of EvaluateBlock names in a run."""
    found: dict[str, tuple[int, int]] = {}
    for record in all_records(studies):
        block = record.evaluate
        if block and (count := getattr(block, field)):
            where = model_and_track(record, studies)
            forms = len({s.weights for s in block.scores}) or 1  # each is asked everything
            each = (-(-count // forms), sum(s.questions for s in block.scores) // forms)
            found[where] = max(each, found.get(where, each))
    return [f"{n:,} {of} {asked:,} questions, {where}" for where, (n, asked) in found.items()]


def model_and_track(record: Record, studies: Studies) -> str:
    """A record's model and track, the track where there are several."""
    run = record.run
    tracks = {r.run.track for r in all_records(studies)}
    ref = ModelRef.parse(run.model)
    name = ref.slug if ref.kind == "path" else run.model
    return name + (f" (track {run.track})" if len(tracks) > 1 else "")


def run_limits(studies: Studies) -> list[str]:
    """On how the runs went: attention, packing, the machine, seeds."""
    records = all_records(studies)
    loaded = [(r, r.load) for r in records if r.load]
    apart = dict.fromkeys(model_and_track(r, studies) for r, load in loaded if load.packing_reason)
    plain = sorted({load.attention_reason for _, load in loaded if load.attention_reason})
    # 16- or 32-bit weights that lie on a grid of few bits already
    before = {r.run.model: f"{r.run.model} ({' and '.join(load.origin['quantized'])})"
              for r, load in loaded if load.origin.get("quantized")}  # fmt: skip
    no_gradient = {
        "Some adapters never got a gradient and are as they were before the training": [
            f"{', '.join(r.train.untrained_adapters)} in {model_and_track(r, studies)}"
            for r in records
            if r.train and r.train.untrained_adapters
        ]
    }
    few = [
        s.study.name
        for s in learning(studies)
        if any(len(r.complete) < 3 for c in s.comparisons for r in c.rows if r.method.kind.trains)
    ]
    of_few = f" of profile {join_words(few)}" if len(studies) > 1 else ""
    on_cards = any(not r.environment.device.startswith("CPU") for r in records)
    told = [
        say("limit_read_apart", where=join_words([*apart])) if apart else "",
        say("limit_eager", why=join_words(plain)) if plain else "",
        *tell_each(no_gradient),
        say("limit_quantized_before", names=join_words([*before.values()])) if before else "",
        say("limit_shared") if any(r.environment.concurrent_runs > 1 for r in records) else "",
        say("limit_dirty") if any(r.environment.git_dirty for r in records) else "",
        "" if on_cards else say("limit_cards"),
        say("limit_resumed") if any(r.train and r.train.resumed_at_steps for r in records) else "",
        say("limit_few_seeds", where=of_few) if few else "",
        say("limit_serving") if any(s.study.serves for s in studies) else "",
    ]
    return list(filter(None, told))

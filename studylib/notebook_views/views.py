"""What the run notebook shows: the data as the model sees it, losses, memory, answers.

Every function takes tables and returns a table or a figure with its caption.

Not covered: the report's figures (studylib.reporting.figures).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from studylib.inputs.data import IGNORED, TrainingData
from studylib.schema.measures import MEASURES
from studylib.schema.records import RECORD

if TYPE_CHECKING:
    from studylib.training.run import Run

INK, LEARNED, STAGES = "#333333", "#0072b2", ("#999999", "#0072b2", "#d55e00", "#009e73")


def describe_run(run: Run) -> str:
    """What is being asked, as Markdown."""
    spec, asked = run.spec, run.spec.evaluate
    lines = [f"**{spec.run_id}** of profile {spec.profile}, track {spec.track}"]
    if spec.method.kind.trains:
        lines.append(
            f"{spec.method.label} on {spec.model}, seed {spec.seed}, learning rate "
            f"{spec.learning_rate:g} ({spec.learning_rate_source}); {spec.train.steps} steps "
            f"on {spec.data.source}"
        )
    else:
        lines.append(f"{spec.model} as it is, untrained")
    if asked.questions:
        lines.append(
            f"then asked {asked.questions}, {asked.shots} shots, scored by {asked.scoring}"
            + (f"; and {asked.retention} for what it still knows" if asked.retention else "")
        )
    if asked.measures:
        lines.append(f"measured on held-out examples: {', '.join(asked.measures)}")
    if run.session.number > 1:
        lines.append(f"resumed: this is process {run.session.number} of this run")
    return "  \n".join(lines)


def summarise_run(run: Run) -> str:
    """How a run ended, in a few lines of Markdown, from what went into its record."""
    lines = [f"**{run.status}**" + (f": {run.reason}" if run.reason else "")]
    for score in run.evaluate_block.scores if run.evaluate_block else ():
        lines.append(
            f"{score.task}: {100 * score.accuracy:.1f} % of {score.questions} right "
            f"(chance {100 * score.chance:.0f} %), {score.weights}"
        )
    measured = run.evaluate_block.measures if run.evaluate_block else {}
    lines += [
        f"{MEASURES[key].label}, {figure.of.replace('_', ' ')}: {MEASURES[key].text(figure.value)} "
        f"(n={figure.items:,}), {figure.weights}"
        for key, figures in measured.items()
        for figure in figures
    ]
    if run.evaluate_block and run.evaluate_block.prompts_cut:
        lines.append(f"{run.evaluate_block.prompts_cut:,} prompts were cut from the left to fit")
    if run.train_block and run.train_block.tokens_per_second:
        share = run.train_block.model_flops_utilisation
        of_card = f", {share:.0%} of the cards' arithmetic" if share is not None else ""
        shared = run.spec.hardware.runs_per_card > 1 and run.concurrent_runs > 1
        crowd = " while other runs shared the card" if shared else ""
        lines.append(f"training: {run.train_block.tokens_per_second:,.0f} tokens/s{of_card}{crowd}")
    if run.serve_block and run.serve_block.variant_bytes:
        lines.append(f"one more variant: {run.serve_block.variant_bytes / 1e6:.2f} MB on disk")
    lines.append(f"record: {run.folder / RECORD}")
    return "  \n".join(lines)


def show_sample(data: TrainingData | None, tokenizer: Any) -> str:
    """The first examples of the first row as Markdown, what is learned bold and in colour."""
    if data is None:
        return "This run does not train."
    lines = [
        f"{data.examples:,} examples; this run sees {data.examples_seen:,} of them "
        f"({data.epochs:.2f} epochs), {data.tokens_seen:,} tokens, "
        f"{data.answer_tokens_seen:,} of them learned (bold). Too long for a row, of "
        f"{data.drawn:,} examples drawn: {data.left_out:,} left out, {data.cut:,} cut short."
        + (f" Of the source, {data.skipped:,} rows were left out." if data.skipped else "")
        + (
            f" {data.divided:,} conversations are one example an answer: the chat template "
            "rewrites their earlier turns."
            if data.divided
            else ""
        )
        + f" Template: {data.template}.",
        "",
    ]
    return "\n".join([*lines, show_tokens(data.rows[0][:3], tokenizer)])


def show_tokens(examples: Sequence[Mapping[str, list[int]]], tokenizer: Any) -> str:
    """Examples as the model reads them, as Markdown: what is learned bold and in colour."""
    lines = []
    for example in examples:
        pairs = zip(example["input_ids"], example["labels"], strict=True)
        said = []
        for learned, tokens in groupby(pairs, key=lambda pair: pair[1] != IGNORED):
            text = quote(tokenizer.decode([i for i, _ in tokens]))
            said.append(f'<span style="color:{LEARNED}">**{text}**</span>' if learned else text)
        lines.append(f"> {' '.join(said)}\n")
    return "\n".join(lines)


def quote(text: str) -> str:
    """Text as it stands: nothing in it is taken for Markdown."""
    for mark in "\\`*_<>#|[]":
        text = text.replace(mark, "\\" + mark)
    return text.strip().replace("\n", "  \n> ")


def finish(figure: Figure) -> Figure:
    """A figure without a box around it, closed: a cell shows the one that it ends with, once."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    plt.close(figure)
    return figure


def plot_loss(steps: list[dict[str, Any]]) -> Figure:
    """Loss by step, with its running mean over a twentieth of the run."""
    figure, axes = plt.subplots(figsize=(6.4, 2.8), layout="constrained")
    if not steps:
        axes.text(0.5, 0.5, "this run does not train", ha="center", transform=axes.transAxes)
        axes.set_axis_off()
        return finish(figure)
    table = pd.DataFrame(steps)
    smooth = table["loss"].rolling(max(1, len(table) // 20), min_periods=1).mean()
    axes.plot(table["step"], table["loss"], color="#bbbbbb", linewidth=0.8)
    axes.plot(table["step"], smooth, color=LEARNED, linewidth=1.8)
    axes.set(xlabel="step", ylabel="loss (nats a token)")
    axes.set_title(
        f"Loss from {table['loss'].iloc[0]:.2f} to {smooth.iloc[-1]:.2f} in {len(table)} steps",
        loc="left",
        fontsize=10,
        color=INK,
    )
    return finish(figure)


def plot_memory(samples: pd.DataFrame) -> Figure:
    """Memory over time, one colour a stage: NVML's where there is a card, else the host's."""
    on_card = samples["nvml_used_bytes"].notna().any()
    column, name = (
        ("nvml_used_bytes", "device memory (NVML)")
        if on_card
        else ("host_bytes", "host memory of the process")
    )
    figure, axes = plt.subplots(figsize=(6.4, 2.8), layout="constrained")
    if "session" in samples:  # each process of an interrupted run starts its clock at nought
        ends = samples.groupby("session")["t_seconds"].max().cumsum().shift(fill_value=0.0)
        samples = samples.assign(t_seconds=samples["t_seconds"] + samples["session"].map(ends))
    stages = zip(samples.groupby("stage", sort=False), STAGES * 3, strict=False)
    for number, ((stage, part), color) in enumerate(stages):
        gigabytes = part[column].astype(float) / 1e9
        axes.plot(part["t_seconds"], gigabytes, color=color, linewidth=1.8)
        label = f"{stage} {gigabytes.max():.2f} GB"  # beside the axes: stages may last an instant
        place = (1.02, 0.95 - 0.11 * number)
        axes.text(*place, label, color=color, fontsize=9, transform=axes.transAxes, va="top")
    axes.set(xlabel="seconds", ylabel="GB")
    axes.set_title(
        f"{name[0].upper()}{name[1:]}, with each stage's peak", loc="left", fontsize=10, color=INK
    )
    return finish(figure)


def tabulate_subjects(items: pd.DataFrame | None) -> pd.DataFrame | str:
    """Right answers in per cent and number of questions, by task and subject."""
    if items is None:
        return "No questions were asked."
    table = once(items).groupby(["task", "subject"])["correct"].agg(["mean", "size"])
    table["mean"] = (100 * table["mean"]).round(1)
    return table.rename(columns={"mean": "right (%)", "size": "questions"})


def once(items: pd.DataFrame) -> pd.DataFrame:
    """The items as the run's own weights answered them: a quantized run also has merged ones."""
    return items[items["weights"] == items["weights"].iloc[0]]


def name_choice(choices: Sequence[str], chosen: int) -> str:
    """The text of a choice; the word for none where all were equally likely."""
    return choices[chosen] if chosen >= 0 else "undecided"


def compare_items(before: pd.DataFrame | None, after: pd.DataFrame | None) -> pd.DataFrame | str:
    """A few items with the untrained model's choice and this run's, changed answers first."""
    if after is None:
        return "No questions were asked."
    if before is None:
        return "The untrained model's run is not there to compare with."
    keys = ["task", "item"]
    after = once(after)
    after = after[after["task"] == "questions"]
    both = after.merge(before[[*keys, "chosen", "correct"]], on=keys, suffixes=("", "_before"))
    both = both.drop_duplicates("item")
    changed = both["chosen"] != both["chosen_before"]
    picked = pd.concat([both[changed], both[~changed]]).head(5)
    text = picked.apply(
        lambda row: pd.Series(
            {
                "question": row["question"],
                "right": row["choices"][row["answer"]],
                "before": name_choice(row["choices"], row["chosen_before"]),
                "after": name_choice(row["choices"], row["chosen"]),
            }
        ),
        axis=1,
    )
    return text.reset_index(drop=True)

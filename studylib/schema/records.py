"""The record of a run: its schema, and how it is written and read.

record.json is written last and atomically, so its existence means that the run is complete.
It is the only thing (with the per-item and per-step tables that it names) that a report reads.
A digest inside it tells a record that was edited by hand from one that was measured.

Not covered: how the figures are measured (meter, train, evaluate, serve), how records differ
(studylib.schema.differences).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from studylib.core.errors import StudyError
from studylib.core.files import explain_write_error, file_sha256, write_atomically
from studylib.core.measure import StageMeasure
from studylib.core.sealed import canonical, read_sealed, write_sealed
from studylib.schema.kept import KeptWeights
from studylib.schema.measures import MeasureFigure
from studylib.schema.profile import Frozen, RunSpec

__all__ = [
    "RECORD",
    "SCHEMA_VERSION",
    "Environment",
    "EvaluateBlock",
    "LoadBlock",
    "Reached",
    "Record",
    "Score",
    "ServeBlock",
    "TrainBlock",
    "canonical",
    "check_files",
    "explain_write_error",
    "file_sha256",
    "read_record",
    "read_records",
    "write_atomically",
    "write_record",
]

SCHEMA_VERSION = 1
RECORD = "record.json"
Scalar = str | int | float | bool | None


class Reached(Frozen):
    """One kind of layer and how an adapter meets it.

    layer: the modules' name without numbers (`self_attn.q_proj`). params: weights of all modules of
    that name; adapted: those of them under an adapter, by `rank` (of an expert that holds two
    matrices in one, twice what was asked).
    """

    layer: str
    params: int
    adapted: int
    rank: int | None = None


class LoadBlock(Frozen):
    """How the weights came in, and what they are.

    attention: the implementation in use; attention_reason: why it is not the one asked for.
    packing_reason: why examples of one row are read one by one; null where packed rows are exact.
    four_bit_share: of the weights outside embeddings, 0 to 1; four_bit_error: the largest relative
    error (Frobenius) with which a matrix of one of the model's shapes comes back from 4 bits. Both
    null where nothing is quantized. reached: what the adapter meets, by kind of layer. origin: of a
    model that was converted first, where it is from (studylib.inputs.converted).
    """

    measure: StageMeasure
    total_params: int
    trainable_params: int
    model_sha256: str
    model_revision: str | None = None
    weights_dtype: str
    attention: str | None = None
    attention_reason: str | None = None
    packing_reason: str | None = None
    four_bit_share: float | None = None
    four_bit_error: float | None = None
    reached: tuple[Reached, ...] = ()
    origin: dict[str, Any] = Field(default_factory=dict)


class TrainBlock(Frozen):
    """One training. Clean figures leave out warm-up steps, loading, tokenising and checkpoints.

    examples_drawn: those that packing came to until the last row was full (null where all were);
    of these, examples_left_out: their prompt alone fills a row; examples_cut: their answer was cut.
    rows_skipped: of the source: no examples, asked by another part, or refused by the template.
    untrained_adapters: kinds of layers whose adapters got no gradient at all.
    optimizer_share, data_share: of the clean steps' seconds. model_flops_per_token: what model and
    data need (studylib.modelling.flops); recomputed_ is what checkpointing does again.
    peak_flops_per_second: the datasheet's, of all cards of the run; null for an unknown device.

    weights_bytes (with quantization constants), optimizer_states_bytes: what the device holds
    between two steps; null where several cards divide them. Paged states are not in it.
    """

    measure: StageMeasure
    steps: int
    examples_seen: int
    tokens_seen: int
    answer_tokens_seen: int
    epochs: float
    examples_drawn: int | None = None
    examples_left_out: int = 0
    examples_cut: int = 0
    rows_skipped: int = 0
    clean_step_seconds: float | None
    clean_steps: int
    tokens_per_second: float | None
    optimizer_share: float | None = None
    data_share: float | None = None
    model_flops_per_token: float | None = None
    recomputed_flops_per_token: float | None = None
    peak_flops_per_second: float | None = None
    weights_bytes: int | None = None
    optimizer_states_bytes: int | None = None
    first_loss: float | None
    last_loss: float | None
    resumed_at_steps: tuple[int, ...] = ()
    untrained_adapters: tuple[str, ...] = ()

    @property
    def model_flops_utilisation(self) -> float | None:
        """Share of the cards' datasheet arithmetic that the model's own took, 0 to 1."""
        rate, flops = self.tokens_per_second, self.model_flops_per_token
        if rate is None or flops is None or self.peak_flops_per_second is None:
            return None
        return rate * flops / self.peak_flops_per_second


class Score(Frozen):
    """Accuracy on one set of questions. by_subject: subject -> (questions, right answers)."""

    task: Literal["questions", "retention"]
    weights: str
    questions: int
    correct: int
    chance: float
    by_subject: dict[str, tuple[int, int]]

    @property
    def accuracy(self) -> float:
        """Share of right answers over all questions (micro mean), 0 to 1."""
        return self.correct / self.questions

    @property
    def macro_accuracy(self) -> float:
        """Mean of the subjects' accuracies, 0 to 1."""
        return sum(right / n for n, right in self.by_subject.values()) / len(self.by_subject)


class EvaluateBlock(Frozen):
    """The scores of one run.

    undecided: items all of whose choices are equally likely, counted as wrong. merge_difference:
    the largest difference of logits, in standard deviations, between the adapter on its 4-bit base
    and the model merged from both. measures: figure -> of each set of examples and weights.
    """

    measure: StageMeasure
    scores: tuple[Score, ...]
    measures: dict[str, tuple[MeasureFigure, ...]] = Field(default_factory=dict)
    engine: str | None = None
    prompts_cut: int = 0
    undecided: int = 0
    merge_difference: float | None = None
    reason: str | None = None

    def score(self, task: str) -> Score | None:
        return next((s for s in self.scores if s.task == task), None)


class ServeBlock(Frozen):
    """Bytes on disk that one more variant of this model needs, as files were really written."""

    measure: StageMeasure
    checkpoint_bytes: int | None
    adapter_bytes: int | None

    @property
    def variant_bytes(self) -> int | None:
        """What one more variant needs on disk: its adapter, or its whole checkpoint."""
        return self.checkpoint_bytes if self.adapter_bytes is None else self.adapter_bytes


class Environment(Frozen):
    """Where and with what the run was made."""

    started_at: str
    finished_at: str
    device: str
    devices: tuple[dict[str, Any], ...]
    devices_reason: str | None
    host: dict[str, Any]
    threads: int
    concurrent_runs: int
    sessions: int
    packages: dict[str, str]
    git_commit: str | None
    git_dirty: bool | None


class Record(Frozen):
    """One run, whole. `fingerprint` is flat: group.field -> value. kept: of its trained weights;
    null for a run that trained nothing, or was made before weights were kept."""

    schema_version: int = SCHEMA_VERSION
    run_id: str
    status: Literal[
        "complete", "out of memory", "diverged", "not a number", "does not fit, forecast"
    ]
    reason: str | None = None
    run: RunSpec
    load: LoadBlock | None = None
    train: TrainBlock | None = None
    evaluate: EvaluateBlock | None = None
    serve: ServeBlock | None = None
    kept: KeptWeights | None = None
    environment: Environment
    fingerprint: dict[str, Scalar]
    files: dict[str, str]
    digest: str = ""

    @property
    def complete(self) -> bool:
        return self.status == "complete"


def write_record(folder: Path, record: Record) -> Path:
    """Seal the record with its digest and write FOLDER/record.json. Never over another one."""
    return write_sealed(folder / RECORD, record)


def read_record(path: Path) -> Record:
    """The record in FOLDER/record.json, or one message on what is wrong with it."""
    remedy = "Restore it, or move its folder away and run again."
    return read_sealed(path, Record, SCHEMA_VERSION, "the record", remedy)


def check_files(folder: Path, record: Record) -> None:
    """Raise where a table that the record names is missing or is not the one that was written."""
    remedy = "Restore it, or move the run's folder away and run again."
    for name, sha256 in record.files.items():
        path = folder / name
        if not path.is_file():
            raise StudyError(path, "the record names this file, but it is missing", "Restore it.")
        if file_sha256(path) != sha256:
            raise StudyError(path, "the file was changed after the record was written", remedy)


def read_records(runs: Path) -> list[Record]:
    """All records below results/PROFILE/runs, by run id. Every bad one is named in one error."""
    records, faults = [], []
    for path in sorted(runs.glob(f"*/{RECORD}")):
        try:
            record = read_record(path)
            if record.run_id != path.parent.name:
                raise StudyError(path, f"the record is of run {record.run_id}", "Move it back.")
            check_files(path.parent, record)
        except StudyError as error:
            faults.append(error)
        else:
            records.append(record)
    if len(faults) == 1:
        raise faults[0]
    if faults:
        raise StudyError(
            "; ".join(f"{fault.value}: {fault.rule}" for fault in faults),
            f"{len(faults)} records cannot be trusted",
            "Restore them, or move their folders away and run again.",
        )
    return records

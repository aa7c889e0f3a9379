"""One run: load, train, evaluate, serve, then the record. A notebook calls it stage by stage.

A stage that a killed process had finished is not done again. Running out of memory, a loss that is
not finite and answers that are not numbers are results: later stages are skipped and the record
says so. Any other error is a bug and leaves no record.

Not covered: which runs there are and in what order (studylib.running.runner), which weights stay
(studylib.modelling.kept).
"""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from studylib.core.errors import StudyError, first_line
from studylib.core.files import full_disk_said, lock_folder
from studylib.core.sharing import most_concurrent
from studylib.inputs.data import TrainingData, prepare_data
from studylib.metering.code_files import code_sha256
from studylib.metering.devices import refuse_busy_devices
from studylib.metering.environment import describe_environment, device_name, now
from studylib.metering.meter import Meter
from studylib.metering.session import Session
from studylib.modelling.flops import count_token_flops
from studylib.modelling.kept import clear_weights, leave_weights
from studylib.modelling.merging import answer_probe, check_converted
from studylib.modelling.methods import trainable_and_total
from studylib.modelling.preflight import is_tight, refuse_outside
from studylib.modelling.reach import untrained
from studylib.modelling.serve import measure_footprint
from studylib.modelling.weights import bring_in, find_trained, keep, keep_beginning, settle_weights
from studylib.planning.catalog import match_gpu
from studylib.schema.profile import RunSpec
from studylib.schema.records import (
    RECORD,
    EvaluateBlock,
    LoadBlock,
    Record,
    ServeBlock,
    TrainBlock,
    file_sha256,
    write_record,
)
from studylib.schema.tuning import open_profile
from studylib.scoring.evaluate import NotANumber
from studylib.scoring.score import Scored, score_model
from studylib.training.checkpoints import checkpoint_step, newest_checkpoint
from studylib.training.distributed import take_cards, train_on_cards, try_model
from studylib.training.fingerprint import fingerprint
from studylib.training.four_bit_form import describe_weights, score_merged, spell_scored
from studylib.training.train import (
    OUT_OF_MEMORY,
    Diverged,
    StepLog,
    is_out_of_memory,
    summarise_steps,
    train_model,
)
from studylib.training.watch import Watch


def open_run(profile: str, run_id: str, results: str, concurrent_runs: int = 1) -> Run:
    """The run of a profile, in results/PROFILE/runs/RUN_ID; refuses one that is finished."""
    spec = open_profile(profile, Path(results), None, torch.cuda.is_available()).run(run_id)
    return Run(spec, Path(results) / spec.profile / "runs" / run_id, concurrent_runs)


class Run:
    """A run under way: its spec, its model, and what its stages have given so far."""

    def __init__(self, spec: RunSpec, folder: Path, concurrent_runs: int = 1):
        if (folder / RECORD).exists():
            raise StudyError(folder, "this run is finished", "Move its folder away to run it anew.")
        take_cards(spec)
        self.spec, self.folder, self.concurrent_runs = spec, folder, concurrent_runs
        self.work = folder / "work"
        code_sha256()  # what runs now, whatever is edited while it runs
        self.status = "complete"
        self.reason: str | None = None
        self.data: TrainingData | None = None
        self.scored: Scored | None = None
        self.load_block: LoadBlock | None = None
        self.train_block: TrainBlock | None = None
        self.evaluate_block: EvaluateBlock | None = None
        self.serve_block: ServeBlock | None = None
        self.merged: dict[str, Any] = {}
        self._lock = lock_folder(self.work)
        import_stage_libraries()
        own_card = torch.cuda.is_available() and spec.hardware.runs_per_card == 1
        watched: list[int] | None = None if own_card else []  # a shared one's memory is no run's
        refuse_busy_devices(devices=watched)
        self.meter = Meter(devices=watched)
        self.meter.__enter__()
        self.session = Session(self.work, self.meter)
        self.session.started_at = self.session.started_at or now()
        self.log = StepLog(self.session.steps, self.session.notes.get("memory", {}))
        self.watch = Watch(folder, spec.train.steps, self.meter)

    @property
    def tokenizer(self) -> Any:
        return self.loaded.tokenizer if self.ok else None

    @property
    def items(self) -> pd.DataFrame | None:
        """Every question's answer; None where none was asked."""
        answers = self.scored and self.scored.answers
        return answers.items if answers else None

    def base_items(self) -> pd.DataFrame | None:
        """The untrained model's answers, if its run is finished."""
        path = self.folder.parent / self.spec.base_run_id / "items.parquet"
        return pd.read_parquet(path) if path.is_file() else None

    @property
    def ok(self) -> bool:
        return self.status == "complete"

    def load(self) -> None:
        """Bring in weights and data, and attach the method."""
        spec = self.spec
        self.watch.show("loading")
        try:
            with self.meter.stage("load"):
                converted = spec.method.kind.converted  # counted as it is trained
                self.loaded, self.model = bring_in(spec, None if converted else self.trained_folder)
                if spec.method.kind.trains:
                    self.data = prepare_data(
                        spec.data, spec.train, self.loaded.tokenizer, spec.seed
                    )
                    base, tokenizer = self.loaded.model, self.loaded.tokenizer
                    if is_tight(base, tokenizer, spec.train.seq_len):
                        refuse_outside(base, self.data.rows, spec.model_ref)
        except (*OUT_OF_MEMORY, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            self.give_up("out of memory", f"while loading: {first_line(error)}")
            return
        trainable, total = trainable_and_total(self.model)
        self.load_block = LoadBlock(
            measure=self.session.stages()["load"],
            total_params=total,
            trainable_params=trainable if spec.method.kind.trains else 0,
            model_sha256=self.loaded.sha256,
            model_revision=self.loaded.revision,
            **describe_weights(spec, self.loaded, self.model),
        )
        if self.data is not None:
            self.flops = count_token_flops(self.model, self.data.lengths(), spec.train)

    @property
    def trained_folder(self) -> Path | None:
        """Where an earlier process left the trained weights, whole, or None."""
        return find_trained(self.work)

    def train(self) -> None:
        """Train from the newest checkpoint, or take what an earlier process had trained."""
        if not self.ok or not self.spec.method.kind.trains:
            return
        answers = None
        if self.trained_folder is None:
            keep_beginning(self.work, self.spec.method, self.model)
            try:
                with self.meter.stage("train"), full_disk_said(self.work):
                    self._train()
            except Diverged as error:
                self.give_up("diverged", str(error))
            except (*OUT_OF_MEMORY, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                self.give_up("out of memory", f"while training: {first_line(error)}")
            if self.ok and self.spec.gpus > 1:
                keep(self.work, None)
                with self.meter.stage("load"):
                    self.loaded, self.model = bring_in(self.spec, self.trained_folder)
            elif self.ok and (self.spec.method.kind.adapter or not self.loaded.random_weights):
                # A whole model of random weights is asked nothing, and counted without its file.
                answers = answer_probe(self.model) if self.spec.method.kind.converted else None
                keep(self.work, self.model)
            self.session.save()
        if self.ok and self.spec.method.kind.converted:  # what stays is what is scored
            del self.model, self.loaded.model
            with self.meter.stage("load"):
                self.loaded, self.model = bring_in(self.spec, self.trained_folder)
            if answers is not None:
                check_converted(self.model, answers)
        assert self.data is not None
        measure = self.session.stages().get("train")
        if measure is None:
            return
        memory = self.session.notes.get("memory", {})
        peaks = {"live_tensor_peak_bytes": memory.get("live_tensor_peak_bytes")}
        peaks |= self.session.notes.get("worker_peaks", {})
        measure = measure.model_copy(update=peaks)
        self.train_block = TrainBlock(
            measure=measure,
            steps=len(self.log.rows),
            examples_seen=self.data.examples_seen,
            tokens_seen=self.data.tokens_seen,
            answer_tokens_seen=self.data.answer_tokens_seen,
            epochs=self.data.epochs,
            examples_drawn=self.data.drawn,
            examples_left_out=self.data.left_out,
            examples_cut=self.data.cut,
            rows_skipped=self.data.skipped,
            resumed_at_steps=tuple(self.session.resumed_at_steps),
            untrained_adapters=untrained(self.model),
            model_flops_per_token=self.flops.model,
            recomputed_flops_per_token=self.flops.recomputed,
            peak_flops_per_second=peak_flops(self.spec),
            weights_bytes=memory.get("weights_bytes"),
            optimizer_states_bytes=memory.get("optimizer_states_bytes"),
            **summarise_steps(self.log),  # type: ignore[arg-type]
        )

    def _train(self) -> None:
        assert self.data is not None

        def on_save(step: int) -> None:
            self.session.notes["memory"] = self.log.memory
            self.session.save()

        if self.session.number > 1:
            checkpoint = newest_checkpoint(self.work, len(self.log.rows))
            self.session.resumed_at_steps.append(checkpoint_step(checkpoint))
        follow = (self.log, self.watch.show_step, on_save)
        if self.spec.gpus > 1:
            found = try_model(self.spec, self.loaded)
            del self.model, self.loaded.model
            peaks = train_on_cards(self.spec, self.work, self.spec.gpus, *follow, found)
            self.session.notes["worker_peaks"] = peaks
        else:
            train_model(self.model, self.data, self.spec, self.work, *follow)
            settle_weights(self.spec, self.loaded.model, self.model)
            self.session.notes["memory"] = self.log.memory

    def evaluate(self) -> None:
        """Ask the questions, those about what the base knew before, and take the measures."""
        if not self.ok:
            return
        self.watch.show("evaluating")
        block: dict[str, Any] = {"scores": (), "reason": "not measured: random weights"}
        with self.meter.stage("evaluate"):
            if not self.loaded.random_weights:
                try:
                    self.scored = self._score()
                    block = self.scored.counts() | self.merged
                except NotANumber as error:
                    self.give_up("not a number", str(error))
                    block["reason"] = str(error)
        self.evaluate_block = EvaluateBlock(measure=self.session.stages()["evaluate"], **block)
        self.session.save()

    def _score(self) -> Scored:
        """The trained model as it is; a quantized one also merged into 16 bits, as people serve."""
        tokenizer, folder = self.loaded.tokenizer, self.trained_folder
        scored = score_model(self.model, tokenizer, self.spec, self.weights_scored)
        if self.spec.method.kind.quantized and folder is not None:
            also, self.merged = score_merged(self.spec, self.model, tokenizer, folder)
            scored = scored if also is None else scored + also
        return scored

    @property
    def weights_scored(self) -> str:
        """Which weights the accuracy belongs to, in words."""
        return spell_scored(self.spec, self.loaded)

    def serve(self) -> None:
        """What one more variant needs on disk."""
        if not self.ok:
            return
        self.watch.show("serving")
        with self.meter.stage("serve"):
            footprint = measure_footprint(self.loaded.model, self.spec.method, self.trained_folder)
        self.serve_block = ServeBlock(measure=self.session.stages()["serve"], **footprint)

    def finish(self) -> Path:
        """Write the tables, put weights where they stay, write the record, clear what is left."""
        self.watch.show("writing")
        self.meter.__exit__(None, None, None)
        files = self._write_tables()
        kept = None
        if self.ok and self.spec.method.kind.trains:
            kept = leave_weights(self.spec, self.loaded, self.trained_folder, self.folder)
        else:
            clear_weights(self.folder)
        record = Record(
            run_id=self.spec.run_id,
            status=self.status,  # type: ignore[arg-type]
            reason=self.reason,
            run=self.spec,
            load=self.load_block,
            train=self.train_block,
            evaluate=self.evaluate_block,
            serve=self.serve_block,
            kept=kept,
            environment=describe_environment(
                self.session.started_at or now(),
                now(),
                most_concurrent(self.work, self.concurrent_runs),
                self.session.number,
            ),
            fingerprint=fingerprint(self),
            files=files,
        )
        path = write_record(self.folder, record)
        shutil.rmtree(self.work, ignore_errors=True)
        self.watch.end()
        return path

    def _write_tables(self) -> dict[str, str]:
        tables = {"trace.parquet": self.session.samples()}
        if self.log.rows:
            tables["steps.parquet"] = pd.DataFrame(self.log.rows)
        tables |= self.scored.tables() if self.scored is not None else {}
        for name, table in tables.items():
            table.to_parquet(self.folder / name, index=False, compression="zstd")
        return {name: file_sha256(self.folder / name) for name in sorted(tables)}

    def give_up(self, status: str, reason: str) -> None:
        self.status, self.reason = status, reason
        print(f"{status}: {reason}")


def peak_flops(spec: RunSpec) -> float | None:
    """The datasheet's arithmetic of the run's cards by second; None for a device not in it."""
    gpu = match_gpu(device_name()) if torch.cuda.is_available() else None
    dtype: Any = spec.train.dtype
    return gpu.flops_per_second(dtype) * max(spec.gpus, 1) if gpu else None


def import_stage_libraries() -> None:
    """What the stages need, so that the load stage measures loading and not Python's imports."""
    for name in ("peft", "transformers.trainer", "lm_eval.evaluator", "studylib.scoring.prefix_lm"):
        importlib.import_module(name)

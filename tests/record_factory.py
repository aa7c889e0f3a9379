"""Builds schema-valid records with items and steps on disk, for tests of what reads them.

Answers follow a seeded model: each method knows each item with a stated probability, items of a
subject rise and fall together, so that intervals look as they do in a real study.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from studylib.core.measure import StageMeasure
from studylib.inputs.almanac import ladder_folder, ladder_names
from studylib.inputs.sources import folder_sha256
from studylib.schema.profile import (
    DataSettings,
    EvaluateSettings,
    Hardware,
    LoraSettings,
    ModelRef,
    RunSpec,
    TrainSettings,
    parse_method,
)
from studylib.schema.records import (
    Environment,
    EvaluateBlock,
    LoadBlock,
    Record,
    Score,
    ServeBlock,
    TrainBlock,
    file_sha256,
    write_record,
)
from studylib.schema.tuning import TunePoint, TuneRecord, sweep_name, write_sweep

SUBJECTS = 16
PARAMS = {"ladder:0.4m": 430_000, "ladder:1.4m": 1_420_000}
KNOWS = {"base": 0.26, "full": 0.72, "lora": 0.66, "qlora": 0.60, "lora-embed": 0.68}
KEEPS = {"base": 0.99, "full": 0.45, "lora": 0.38, "qlora": 0.36, "lora-embed": 0.36}
STEP_SECONDS = {"full": 0.080, "lora": 0.074, "qlora": 0.141, "lora-embed": 0.076}
GPU = "NVIDIA A100-SXM4-80GB"
MERGED = "4-bit base and adapter merged into bf16"


def scored_on(spec: RunSpec) -> list[str]:
    """The weights that a run is scored on: a quantized one also on merged weights."""
    if spec.method.kind.quantized:
        return ["4-bit base with adapter", MERGED]
    return ["fp32 weights with adapter" if spec.method.kind.adapter else "fp32 weights"]


def digest(*words: object) -> str:
    return hashlib.sha256("|".join(map(str, words)).encode()).hexdigest()


@lru_cache(maxsize=8)
def model_digest(model: str) -> str:
    """A plan compares a bundled model's hash with its folder's: that one is the real one."""
    kind, _, name = model.partition(":")
    whole = kind == "ladder" and name in ladder_names()
    return folder_sha256(ladder_folder(name)) if whole else digest(model)


def make_spec(
    method: str = "full",
    model: str = "ladder:0.4m",
    seed: int = 0,
    track: str = "main",
    profile: str = "cpu",
    retention: bool = True,
    facts: int | None = None,
    usd_per_hour: float | None = None,
    gpus: int = 0,
) -> RunSpec:
    settings = parse_method(method, LoraSettings())
    trains = settings.kind.trains
    return RunSpec(
        profile=profile,
        track=track,
        model=model,
        method=settings,
        seed=seed if trains else 0,
        learning_rate=1e-3 if trains else 0.0,
        learning_rate_source=f"profile ({settings.name})" if trains else "not trained",
        data=DataSettings(source="almanac:new", template="plain", facts=facts),
        train=TrainSettings(steps=40, seq_len=256, accumulation=4),
        evaluate=EvaluateSettings(
            questions="almanac:new",
            retention="almanac:old" if retention else None,
            facts=facts,
            scoring="text",
            shots=0,
        ),
        hardware=Hardware(jobs=2, threads=1, gpus=gpus, usd_per_hour=usd_per_hour,
                          usd_note="a rented 2-core machine" if usd_per_hour else ""),
    )  # fmt: skip


@dataclass
class Factory:
    """Writes runs into one results folder; `fingerprint` and `knows` change what is written."""

    folder: Path
    items: int = 320
    device: str = "CPU AMD EPYC"

    def add(
        self,
        spec: RunSpec,
        status: str = "complete",
        reason: str | None = None,
        fingerprint: dict[str, Any] | None = None,
        knows: float | None = None,
        keeps: float | None = None,
    ) -> Record:
        """Write one run's tables and its record, sealed as the study seals it."""
        folder = self.folder / "runs" / spec.run_id
        folder.mkdir(parents=True)
        name, complete = spec.method.name, status == "complete"
        started = status != "does not fit, forecast"
        frames = []
        if complete:
            level = KNOWS[name] if knows is None else knows
            kept = KEEPS[name] if keeps is None else keeps
            for weights in scored_on(spec):
                frames.append(self.answer(spec, "questions", level, weights))
                if spec.evaluate.retention:
                    frames.append(self.answer(spec, "retention", kept, weights))
        tables = {}
        if frames:
            tables["items.parquet"] = pd.concat(frames, ignore_index=True)
        if spec.method.kind.trains and started:
            tables["steps.parquet"] = self.steps(spec)
        for file, table in tables.items():
            table.to_parquet(folder / file, index=False)
        record = Record(
            run_id=spec.run_id,
            status=status,  # type: ignore[arg-type]
            reason=reason,
            run=spec,
            load=self.load(spec) if started else None,
            train=self.train(spec) if spec.method.kind.trains and started else None,
            evaluate=self.evaluate(frames) if complete else None,
            serve=self.serve(spec) if complete else None,
            environment=self.environment(),
            fingerprint=self.marks(spec, complete, started) | (fingerprint or {}),
            files={file: file_sha256(folder / file) for file in sorted(tables)},
        )
        write_record(folder, record)
        return record

    def study(
        self,
        models: tuple[str, ...] = ("ladder:0.4m", "ladder:1.4m"),
        methods: tuple[str, ...] = ("base", "full", "lora", "qlora"),
        seeds: tuple[int, ...] = (0, 1, 2),
        **spec: Any,
    ) -> Path:
        """A whole study; returns its results folder."""
        for model in models:
            for method in methods:
                for seed in seeds if method != "base" else (0,):
                    self.add(make_spec(method, model, seed, **spec))
        return self.folder

    def capacity(self, known: dict[str, dict[int, float]]) -> Path:
        """A capacity study: method -> number of facts -> share known; the base guesses."""
        for facts in next(iter(known.values())):
            track = f"facts-{facts}"
            shared = {"track": track, "profile": "capacity", "retention": False, "facts": facts}
            self.add(make_spec("base", **shared), knows=0.25)
            for method, shares in known.items():
                self.add(make_spec(method, **shared), knows=shares[facts])
        return self.folder

    def sweep(
        self,
        method: str,
        rates: dict[float, int | None],
        model: str = "ladder:0.4m",
        track: str = "main",
    ) -> None:
        """Write a search for learning rates: rate -> right answers of 200, None where diverged."""
        points = tuple(
            TunePoint(learning_rate=rate, questions=200, correct=right, last_loss=1.0, seconds=9.0)
            for rate, right in rates.items()
        )
        record = TuneRecord(
            sweep_id=sweep_name(ModelRef.parse(model).slug, method, track),
            profile="cpu", track=track, model=model, method=method, seed=0,
            validation="almanac:new, validation", overlap_dropped=3, points=points,
            extended=False, environment=self.environment(), fingerprint={},
        )  # fmt: skip
        write_sweep(self.folder / "tune", record)

    def answer(self, spec: RunSpec, task: str, share: float, weights: str) -> pd.DataFrame:
        """Answers on other weights differ a little from those on the first ones."""
        share -= 0.02 * (weights == MERGED)
        shared = np.random.default_rng(int(digest(task, spec.model)[:8], 16))
        own = np.random.default_rng(int(digest(task, spec.run_id)[:8], 16))
        subjects = np.repeat(np.arange(SUBJECTS), self.items // SUBJECTS)
        lift = 0.08 * shared.standard_normal(SUBJECTS)[subjects]
        ease = shared.random(self.items)
        luck = 0.7 * ease + 0.3 * own.random(self.items)
        level = np.clip(share + lift + 0.01 * own.standard_normal(), 0, 1)
        # the mixed draw's quantile, so that the share asked for is about the share got
        correct = luck < np.quantile(luck, np.clip(level, 0.001, 0.999))
        return pd.DataFrame({
            "task": task,
            "weights": weights,
            "subject": [f"subject_{s:02d}" for s in subjects],
            "item": [digest(task, i)[:12] for i in range(self.items)],
            "correct": correct.astype(bool),
        })  # fmt: skip

    def steps(self, spec: RunSpec) -> pd.DataFrame:
        rng = np.random.default_rng(int(digest("loss", spec.run_id)[:8], 16))
        step = np.arange(1, spec.train.steps + 1)
        loss = 0.6 + 3 * np.exp(-step / 12) + 0.1 * rng.standard_normal(len(step))
        return pd.DataFrame({"step": step, "loss": loss, "step_seconds": 0.1, "tokens": 900})

    def measure(self, wall_seconds: float, peak_bytes: int) -> StageMeasure:
        gpu = self.device == GPU
        why = {} if gpu else {"nvml_peak_bytes": "no NVML device"}
        return StageMeasure(
            wall_seconds=wall_seconds,
            host_peak_bytes=1_100_000_000 if gpu else peak_bytes,
            host_peak_source="kernel",
            nvml_peak_bytes=peak_bytes + 500_000_000 if gpu else None,
            torch_peak_allocated_bytes=peak_bytes - 100_000_000 if gpu else None,
            torch_peak_reserved_bytes=peak_bytes if gpu else None,
            energy_joules=250.0 * wall_seconds if gpu else None,
            unavailable=why,
        )

    def load(self, spec: RunSpec) -> LoadBlock:
        total = PARAMS.get(spec.model, 1_000_000)
        trainable = {"base": 0, "full": total}.get(spec.method.name, total // 15)
        extra = trainable if spec.method.kind.adapter else 0
        return LoadBlock(
            measure=self.measure(2.0, 900_000_000),
            total_params=total + extra,
            trainable_params=trainable,
            model_sha256=model_digest(spec.model),
            weights_dtype="nf4" if spec.method.kind.quantized else "fp32",
        )

    def train(self, spec: RunSpec) -> TrainBlock:
        step = STEP_SECONDS.get(spec.method.name, 0.08) * PARAMS.get(spec.model, 10**6) / 430_000
        step *= 1 + 0.01 * spec.seed
        peak = int(1_050_000_000 + 40_000_000 * (spec.method.name == "full") + 1e6 * spec.seed)
        return TrainBlock(
            measure=self.measure(step * spec.train.steps + 1, peak),
            steps=spec.train.steps,
            examples_seen=800,
            tokens_seen=36_000,
            answer_tokens_seen=9_000,
            epochs=1.0,
            clean_step_seconds=step,
            clean_steps=spec.train.steps - 3,
            tokens_per_second=900 / step,
            optimizer_share=0.08,
            data_share=0.01,
            model_flops_per_token=6.0 * PARAMS.get(spec.model, 10**6),
            recomputed_flops_per_token=0.0,
            peak_flops_per_second=312e12 if self.device == GPU else None,
            first_loss=3.4,
            last_loss=0.7,
        )

    def evaluate(self, frames: list[pd.DataFrame]) -> EvaluateBlock:
        scores = []
        for frame in frames:
            groups = frame.groupby("subject")["correct"].agg(["size", "sum"])
            scores.append(
                Score(
                    task=frame["task"].iloc[0],
                    weights=frame["weights"].iloc[0],
                    questions=len(frame),
                    correct=int(frame["correct"].sum()),
                    chance=0.25,
                    by_subject={str(n): (int(a), int(b)) for n, a, b in groups.itertuples()},
                )
            )
        return EvaluateBlock(measure=self.measure(5.0, 1_000_000_000), scores=tuple(scores))

    def serve(self, spec: RunSpec) -> ServeBlock:
        total, adapter = PARAMS.get(spec.model, 10**6), spec.method.kind.adapter
        return ServeBlock(
            measure=self.measure(0.1, 900_000_000),
            checkpoint_bytes=None if adapter else 4 * total,
            adapter_bytes=4 * total // 15 if adapter else None,
        )

    def environment(self) -> Environment:
        return Environment(
            started_at="2026-01-01T00:00:00+00:00",
            finished_at="2026-01-01T00:01:00+00:00",
            device=self.device,
            devices=({"name": GPU, "driver_version": "570.1"},) if self.device == GPU else (),
            devices_reason=None if self.device == GPU else "no NVML device",
            host={"cpu_model": "AMD EPYC", "cores_logical": 2, "memory_total_bytes": 8 * 10**9,
                  "system": "Linux 6.1", "python": "3.11.7"},
            threads=1,
            concurrent_runs=2,
            sessions=1,
            packages={"torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2"},
            git_commit="0123456789abcdef0123456789abcdef01234567",
            git_dirty=False,
        )  # fmt: skip

    def marks(self, spec: RunSpec, complete: bool, started: bool) -> dict[str, Any]:
        if not started:
            return {"device.name": self.device, "model.name": spec.model}
        marks = {
            "code.sha256": digest("code"),
            "device.name": self.device,
            "model.name": spec.model,
            "model.sha256": model_digest(spec.model),
            "evaluate.source": spec.evaluate.questions,
            "evaluate.scoring": spec.evaluate.scoring,
            "evaluate.shots": spec.evaluate.shots,
            "evaluate.precision": "float32 log-softmax",
            "evaluate.items_sha256": digest("items", self.items, spec.track),
            "evaluate.prompt": digest("prompt", self.items, spec.track),
        }
        if complete:
            marks["evaluate.weights"] = scored_on(spec)[0]
        if spec.method.kind.trains:
            marks |= {
                "data.source": spec.data.source,
                "data.template": spec.data.template,
                "data.sha256": digest("data", spec.track),
                "data.order_sha256": digest("order", spec.seed),
                "data.tokens_seen": 36_000 + spec.seed,
                "recipe.steps": spec.train.steps,
                "recipe.batch_tokens": 1024,
                "recipe.schedule": "cosine, warm-up 0.05",
                "recipe.dtype": "fp32",
            }
        return marks

"""One serving run: load, footprint, latency, mixed batches, hot-swap, then its record.

A notebook calls it stage by stage. Running out of memory, and answers that are not numbers, are
results: later stages are skipped and the record says so. What a method cannot do is one too: that
part alone is skipped. A killed run, being short, starts again.

Not covered: which serving runs there are (studylib.schema.serving), starting them (cli_serve).
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from studylib.core.errors import StudyError, first_line
from studylib.core.files import lock_folder, write_atomically
from studylib.core.sealed import canonical
from studylib.core.sharing import most_concurrent
from studylib.metering import code_files, environment
from studylib.metering.allocator import release_leftovers
from studylib.metering.devices import hold_cards, refuse_busy_devices
from studylib.metering.meter import Meter
from studylib.modelling.models import load_model
from studylib.modelling.serve import measure_variants
from studylib.modelling.variants import (
    adapter_names,
    add_adapters,
    merge_adapter,
    plain_copy,
    save_adapter,
    share_weights,
)
from studylib.schema.methods import Ability
from studylib.schema.profile import MethodSettings, read_profile
from studylib.schema.serve_records import SERVE_RECORD, ServeRecord, Status, write_serve_record
from studylib.schema.serving import (
    LatencyRow,
    ServeMeasures,
    ServeSpec,
    Skipped,
    find_spec,
    fitting_cases,
    summarise_seconds,
)
from studylib.schema.settings import BASE
from studylib.scoring.evaluate import NotANumber
from studylib.serving.abilities import NotPossible, attempt
from studylib.serving.engines import (
    lora_requests,
    measure_vllm,
    missing_reason,
    open_vllm,
    unfit_reason,
)
from studylib.serving.hot_swap import measure_swap, time_loads
from studylib.serving.latency import Served, make_prompt, time_case
from studylib.serving.mixed_batch import measure_mixed
from studylib.serving.pair_timings import TIMINGS
from studylib.training.train import is_out_of_memory

PROBE = (2, 24)  # rows and tokens of the prompt on which answers are compared
CPU_NOTE = (
    "4-bit layers on a CPU are dequantized at every pass: their time says nothing of a card's"
)


def open_serving(profile: str, run_id: str, results: str, concurrent_runs: int = 1) -> ServeRun:
    """The serving run of a profile, in results/PROFILE/serve/RUN_ID; refuses a finished one."""
    spec = find_spec(read_profile(profile), run_id)
    return ServeRun(spec, Path(results) / spec.profile / "serve" / run_id, concurrent_runs)


class ServeRun:
    """A serving run under way: its models, and what its stages have found so far."""

    def __init__(self, spec: ServeSpec, folder: Path, concurrent_runs: int = 1):
        if (folder / SERVE_RECORD).exists():
            raise StudyError(folder, "this run is finished", "Move its folder away to run it anew.")
        if missing := missing_reason(spec.engine):
            raise StudyError(spec.engine, missing, "Use --engine transformers.")
        self.spec, self.folder, self.concurrent_runs = spec, folder, concurrent_runs
        self.status: Status = "complete"
        self.reason: str | None = None
        self.model_sha256: str | None = None
        self.found: dict[str, Any] = {"engine": spec.engine}
        self.timings: list[dict[str, Any]] = []
        self.skipped: list[Skipped] = []
        self.notes: list[str] = []
        self.started_at = environment.now()
        self.work = folder / "work"
        self._lock = lock_folder(self.work)
        code_files.code_sha256(code_files.SERVING)  # as it runs, whatever is edited meanwhile
        hold_cards(min(spec.hardware.gpus, 1))
        devices: list[int] | None = None if torch.cuda.is_available() else []
        refuse_busy_devices(devices=devices)
        self.meter = Meter(devices=devices)
        self.meter.__enter__()

    @property
    def ok(self) -> bool:
        return self.status == "complete"

    @property
    def measures(self) -> ServeMeasures:
        return ServeMeasures(**self.found, skipped=tuple(self.skipped), notes=tuple(self.notes))

    def describe(self) -> str:
        return self.spec.describe()

    def summary(self) -> str:
        """How the run ended and what it says of the claims, as Markdown."""
        lines = [f"**{self.status}**" + (f": {self.reason}" if self.reason else "")]
        if (swap := self.measures.swap) is not None:
            equal = "are" if swap.proven else "are NOT"
            sooner = {True: "sooner than", False: "NOT sooner than", None: "without timing"}
            lines.append(
                f"after a swap the answers {equal} those of a fresh load, "
                f"{sooner[swap.sooner]} loading the model"
            )
        lines.append(f"record: {self.folder / SERVE_RECORD}")
        return "  \n".join(lines)

    def stage(self, name: str, work: Callable[[], None]) -> None:
        """Do one stage under the meter; a result of its own kind ends the run with a reason."""
        if not self.ok:
            return
        try:
            with self.meter.stage(name):
                work()
        except NotANumber as error:
            self.status, self.reason = "not a number", f"{name}: {error}"
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            self.status, self.reason = "out of memory", f"{name}: {first_line(error)}"

    def skip(self, what: str, reason: str) -> None:
        self.skipped.append(Skipped(what=what, reason=reason))

    def attempt(self, what: str, ability: Ability, work: Callable[[], Any]) -> Any:
        """What work gives; None where the method cannot do it, with the reason on record."""
        try:
            return attempt(self.spec.method.kind, ability, work)
        except NotPossible as error:
            self.skipped.append(Skipped(what=what, reason=f"not possible: {error}"))
            return None

    def load(self) -> None:
        """The base, and the variants of the method on top of it."""
        self.stage("load", self._load)

    def _load(self) -> None:
        spec = self.spec
        loaded = load_model(spec.model_ref, BASE, spec.dtype)
        self.model_sha256, self.tokenizer = loaded.sha256, loaded.tokenizer
        base: Any = loaded.model.requires_grad_(False).eval()
        self.base, self.config = base, base.config.get_text_config(decoder=True)
        self.four_bit: Any = None
        self.dynamic: Any = None
        self.merged: Any = None
        several = "switch" in spec.method.kind.serve
        self.names = adapter_names(spec.settings.adapters if several else 1)
        if not spec.method.kind.adapter:
            return
        if spec.method.kind.quantized:
            self.four_bit = self._load_own().eval()
            if next(self.base.parameters()).device.type == "cpu":
                self.notes.append(CPU_NOTE)
        self.dynamic = add_adapters(
            share_weights(self.base if self.four_bit is None else self.four_bit),
            spec.method,
            len(self.names),
            spec.adapter_dtype,
        )
        self.folders = {
            name: save_adapter(self.dynamic, name, self.work / "adapters") for name in self.names
        }
        first = self.folders["default"]
        merging = partial(merge_adapter, self.base, first, self.four_bit)
        self.merged = self.attempt("merged model", "merge", merging)

    def _load_own(self, method: MethodSettings | None = None) -> nn.Module:
        """The base anew, as the run's own method has it: 4-bit for a quantized one."""
        return load_model(self.spec.model_ref, method or self.spec.method, self.spec.dtype).model

    def footprint(self) -> None:
        """Bytes of everything that a variant needs, and of N variants."""
        self.stage("footprint", self._footprint)

    def _footprint(self) -> None:
        found, note = measure_variants(
            self.spec, self.base, self.four_bit, self.dynamic, self.merged
        )
        self.found |= found
        self.notes += [note] if note else []

    def latency(self) -> None:
        """Time to first token and between tokens, each variant in turn with its base."""
        self.stage("latency", self._latency if self.spec.engine == "transformers" else self._vllm)

    def pairs(self, decoding: Any) -> list[tuple[Served, Served]]:
        """(base, variant): what each variant is compared with."""
        base = Served("base", self.base, decoding)
        if self.dynamic is None:
            trains = self.spec.method.kind.trains
            other = plain_copy(self.base) if trains else share_weights(self.base)
            name = self.spec.method.name if trains else "again"
            return [(base, Served(name, other, decoding))]
        dynamic = Served("dynamic", self.dynamic, decoding)
        pairs = [(base, dynamic)]
        if self.merged is not None:
            pairs.append((base, Served("merged", self.merged, decoding)))
        if self.four_bit is not None:
            pairs.append((Served("4-bit base", self.four_bit, decoding), dynamic))
        return pairs

    @property
    def longest(self) -> int:
        return self.config.max_position_embeddings

    def _latency(self) -> None:
        asked = self.spec.settings
        cases, too_long = fitting_cases(asked, self.longest)
        self.skipped += too_long
        rows: list[LatencyRow] = []
        for decoding in asked.decoding:
            pairs = self.pairs(decoding)
            share = asked.budget_seconds / max(1, len(asked.decoding) * len(pairs) * len(cases))
            for case in cases:
                prompt = make_prompt(self.config.vocab_size, *case)
                try:
                    found, seconds = time_case(pairs, prompt, asked.new_tokens, asked.rounds, share)
                    rows += found
                    self.timings += seconds
                except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                    if not is_out_of_memory(error):
                        raise
                    self.skip("batch of {}, prompt of {} tokens".format(*case), "out of memory")
            del pairs
            release_leftovers()  # the next way of decoding makes its own copies
        self.found["latency"] = tuple(rows)

    def _vllm(self) -> None:
        if unfit := unfit_reason(self.spec):
            self.skip("latency", unfit)
            return
        vocabulary, longest = self.config.vocab_size, self.longest
        folders = self.folders if self.dynamic is not None else {}
        with tempfile.TemporaryDirectory(dir=self.work) as folder:
            self.base.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
            self.base = self.dynamic = self.merged = None
            release_leftovers()
            engine = open_vllm(Path(folder), self.spec, longest)
            requests = lora_requests(folders)
            rows, skipped = measure_vllm(engine, self.spec, requests, vocabulary, longest)
        self.found["latency"] = tuple(rows)
        self.skipped += skipped

    def mix(self) -> None:
        """One batch with rows of different adapters."""
        if self.spec.engine == "transformers" and self.spec.method.kind.adapter:
            self.stage("mixed batch", self._mix)

    def _mix(self) -> None:
        asked = self.spec.settings
        if asked.mixed_prompt_tokens + asked.mixed_new_tokens > self.longest:
            self.skip("mixed batch", f"the model has {self.longest} positions")
            return
        mixing = partial(
            measure_mixed, self.dynamic, self.merged, self.names,
            (asked.mixed_batch, asked.mixed_prompt_tokens), asked.mixed_new_tokens,
            asked.rounds, asked.budget_seconds / 4, self.spec.dtype,
        )  # fmt: skip
        row = self.attempt("mixed batch", "mix", mixing)
        self.found["mixed"] = () if row is None else (row,)

    def swap(self) -> None:
        """Switch, load, merge and unmerge, with proof of the answers; the last stage."""
        if self.spec.engine == "transformers":
            self.stage("swap", self._swap)

    def _swap(self) -> None:
        vocabulary, has_adapter = self.config.vocab_size, self.dynamic is not None
        plain = partial(self._load_own, BASE) if self.four_bit is not None else None
        self.base = self.four_bit = self.dynamic = self.merged = None  # room for fresh loads
        release_leftovers()
        from_disk = self.spec.model_ref.kind != "shape"
        if not from_disk:
            self.skip("seconds to load the model", "a shape's weights are drawn, not read")
        if not has_adapter:
            if from_disk:
                seconds = time_loads(self._load_own)
                self.found["load_model_seconds"] = summarise_seconds(seconds)
            return
        swapping = partial(
            measure_swap, self._load_own, self.folders, make_prompt(vocabulary, *PROBE),
            self.spec.dtype, self.spec.settings.switches, plain, from_disk, self.attempt,
        )  # fmt: skip
        swap = self.attempt("swap", "switch", swapping)
        if swap is not None:
            self.found |= {"swap": swap, "load_model_seconds": swap.load_model_seconds}

    def finish(self) -> Path:
        """Write the memory samples, the timings and the record, and clear the working files."""
        self.meter.__exit__(None, None, None)
        for name, table in (("trace.parquet", self.meter.samples()), (TIMINGS, self.timings)):
            write_atomically(self.folder / name, pd.DataFrame(table).to_parquet(index=False))
        shared_by = most_concurrent(self.work, self.concurrent_runs)
        made_by = environment.describe_environment(self.started_at, environment.now(), shared_by, 1)
        record = ServeRecord(
            serve_id=self.spec.serve_id,
            status=self.status,
            reason=self.reason,
            spec=self.spec,
            measures=self.measures,
            stages=self.meter.stages,
            environment=made_by,
            fingerprint=self._fingerprint(),
        )
        path = write_serve_record(self.folder, record)
        shutil.rmtree(self.work, ignore_errors=True)
        return path

    def _fingerprint(self) -> dict[str, Any]:
        asked = self.spec.settings.model_dump(mode="json")
        return {
            "code.sha256": code_files.code_sha256(code_files.SERVING),
            "device.name": environment.device_name(),
            "model.name": self.spec.model,
            "method.row": self.spec.method.kind.mark,
            "model.sha256": self.model_sha256,
            "serve.dtype": self.spec.dtype,
            "serve.engine": self.spec.engine,
            "serve.settings": hashlib.sha256(canonical(asked)).hexdigest(),
        }

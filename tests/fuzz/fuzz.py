"""Feed the study's readers with what hypothesis makes up: no traceback, no hang, no end of memory.

    tools/python tests/fuzz/fuzz.py [TARGET …] --minutes 2 [--seed 7]

A reader answers, or refuses with its own one message; anything else is a finding, and is shown as
small as hypothesis can make it. Each target stops at its minutes. What was found once stands as a
test (tests/test_strangers.py and the readers' own).
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import json
import os
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as with_seed
from hypothesis import strategies as st

from studylib.core.errors import StudyError
from studylib.core.places import PACKAGE, REFERENCE

MOST_GROWTH_BYTES = 3 << 30  # of memory beyond what is there at the start
SLOW_SECONDS = 10.0  # for one input of some kilobytes
PLACE = Path(tempfile.mkdtemp(prefix="fuzz-"))

texts = st.text(max_size=40)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts | st.dates().map(str)
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


def mutated(content: bytes) -> st.SearchStrategy[bytes]:
    """A file as it is, with a few of its bytes changed, cut, doubled or put elsewhere."""
    place = st.integers(0, len(content))
    edit = st.tuples(place, st.integers(0, 8), st.binary(max_size=8))

    def change(edits: list[tuple[int, int, bytes]]) -> bytes:
        made = content
        for at, cut, new in edits:
            made = made[:at] + new + made[at + cut :]
        return made

    return st.lists(edit, min_size=1, max_size=4).map(change)


def put(name: str, content: bytes | str) -> Path:
    path = PLACE / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "replace"))
    return path


def profile_texts() -> st.SearchStrategy[bytes]:
    shipped = [path.read_bytes() for path in sorted((PACKAGE / "profiles").glob("*.yaml"))]
    keys = sorted({key for text in shipped for key in yaml.safe_load(text)})
    built = st.dictionaries(st.sampled_from(keys) | texts, trees, max_size=6).map(
        lambda d: yaml.safe_dump(d, allow_unicode=True).encode("utf-8", "replace")
    )
    return st.one_of(*map(mutated, shipped), built, st.binary(max_size=200))


def read_a_profile(content: bytes) -> None:
    from studylib.schema.profile import read_profile

    read_profile(str(put("p.yaml", content)))


def data_files() -> st.SearchStrategy[tuple[str, bytes]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"instruction": "a", "input": "", "output": "b"}, {"instruction": "c", "output": "d"}]
    table = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), table)
    lines = "\n".join(map(json.dumps, rows)).encode()
    files = {
        ".parquet": table.getvalue().to_pybytes(), ".jsonl": lines,
        ".jsonl.gz": gzip.compress(lines), ".json": json.dumps(rows).encode(),
        ".csv": b"instruction,output\n\"a\",b\n", ".tsv": b"prompt\tcompletion\na\tb\n",
    }  # fmt: skip
    kinds = [st.tuples(st.just(end), mutated(content)) for end, content in files.items()]
    key = st.sampled_from(["messages", "conversations", "prompt", "completion", "text", "role",
                           "content", "from", "value", "instruction", "output", "system", "tools",
                           "weight", "question", "answer"])  # fmt: skip
    rowish = st.recursive(
        scalars, lambda part: st.lists(part, max_size=3) | st.dictionaries(key, part, max_size=4),
        max_leaves=10,
    )  # fmt: skip
    made = st.lists(rowish, max_size=6).map(
        lambda rows: (".jsonl", "\n".join(map(json.dumps, rows)).encode())
    )
    return st.one_of(*kinds, made, made)


def read_a_data_file(file: tuple[str, bytes]) -> None:
    from studylib.inputs.examples import read_source
    from studylib.schema.settings import DataSettings

    path = put(f"d{file[0]}", file[1])
    read_source(str(path), DataSettings(source=str(path)))


def records() -> st.SearchStrategy[bytes]:
    from studylib.core.sealed import digest_of

    shipped = [p.read_bytes() for p in sorted(REFERENCE.glob("*/runs/*/record.json"))[::40]]
    keys = sorted({key for text in shipped for key in json.loads(text)})

    def reseal(content: dict) -> bytes:
        with contextlib.suppress(ValueError):
            content["digest"] = digest_of(content)
        return json.dumps(content).encode()

    swapped = st.builds(
        lambda text, key, value: reseal(json.loads(text) | {key: value}),
        st.sampled_from(shipped), st.sampled_from(keys), trees,
    )  # fmt: skip
    return st.one_of(*map(mutated, shipped), swapped, trees.map(lambda t: json.dumps(t).encode()))


def read_a_record(content: bytes) -> None:
    from studylib.schema.records import read_record

    read_record(put("record.json", content))


def gguf_headers() -> st.SearchStrategy[bytes]:
    from gguf import GGUFWriter

    path = PLACE / "seed.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "b", "c"])
    writer.add_array("k", [1, 2, 3])
    import numpy as np

    writer.add_tensor("token_embd.weight", np.zeros((3, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return mutated(path.read_bytes()) | st.binary(max_size=100).map(lambda b: b"GGUF" + b)


def read_a_gguf_header(content: bytes) -> None:
    """What passes our own look goes to the library; it may fail (in a process of its own, whose
    last line is then told), but not hang or take all memory."""
    from studylib.inputs.converted import check_gguf
    from studylib.modelling.convert_gguf import summarise_gguf_header
    from studylib.schema.settings import ModelRef

    path = check_gguf(put("m.gguf", content), ModelRef.parse("gguf:m.gguf"))
    with contextlib.suppress(Exception):
        summarise_gguf_header(path)


def templates() -> st.SearchStrategy[str]:
    spell_by_a_template("{{ messages }}")  # imports take seconds, and are no template's
    words = [
        "{{ messages }}", "{% for m in messages %}", "{% endfor %}", "{{ m['role'] }}",
        "{{ m.content }}", "{% if add_generation_prompt %}", "{% endif %}", "<|im_start|>", "\n",
        "{{ eos_token }}", "{% set x = 1 %}", "{{ raise_exception('no') }}", "{% generation %}",
        "{% endgeneration %}", "{{ x | trim }}", "{{ messages[0]['content'] }}",
        "{{ tools | tojson }}", "{{ strftime_now('%Y') }}", "{% else %}", "{{", "}}", "{%", "%}",
        "{#",
    ]  # fmt: skip
    return st.lists(st.sampled_from(words) | texts, max_size=12).map("".join)


def spell_by_a_template(template: str) -> None:
    from studylib.inputs.templates import TemplateRefuses, spell_chat

    tokenizer = ladder_tokenizer()
    tokenizer.chat_template = template
    talk = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}
    with contextlib.suppress(TemplateRefuses):
        spell_chat(talk, tokenizer)


def ladder_tokenizer(held: list = []):  # noqa: B006
    from studylib.inputs.almanac import ladder_folder, ladder_names
    from studylib.modelling.models import load_tokenizer

    if not held:
        held.append(load_tokenizer(ladder_folder(ladder_names()[0])))
    return held[0]


def command_lines() -> st.SearchStrategy[list[str]]:
    options = ["--profile", "--model", "--data", "--columns", "--mmlu", "--methods", "--seeds",
               "--steps", "--limit", "--set", "--results", "--json", "--help", "--budget", "--gpu",
               "--method", "--change", "--tokens", "--variants", "--micro-batch"]  # fmt: skip
    values = st.sampled_from(
        ["smoke", "cpu", "ladder:0.4m", "path:.", "shape:llama-2-13b", "lora", "full,lora", "0,1",
         "train.steps=3", "evaluate.limit=x", "a.b.c=[1", "hub:a/b", "1", "-1", "1e999", "gguf:x",
         "rtx4090-24gb", "task", "text=body", "almanac:new"]
    ) | texts.filter(lambda text: not text.startswith("/"))  # fmt: skip
    verbs = st.sampled_from(
        ["plan", "forecast", "advise", "diff", "prices", "report", "try", "merge"]
    )
    part = st.tuples(st.sampled_from(options), values)
    return st.builds(
        lambda verb, parts, more: [verb, *(word for pair in parts for word in pair), *more],
        verbs, st.lists(part, max_size=4), st.lists(values, max_size=2),
    )  # fmt: skip


def give_a_command(words: list[str]) -> None:
    from studylib.commands import cli

    sys.argv = ["study", *words]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
    assert code in (0, 1, 2), code
    assert "Traceback" not in err.getvalue(), err.getvalue()
    if code == StudyError.exit_code:
        raise StudyError("the command", "refused", "")


TARGETS: dict[str, tuple[Callable[[], st.SearchStrategy], Callable]] = {
    "profiles": (profile_texts, read_a_profile),
    "data": (data_files, read_a_data_file),
    "records": (records, read_a_record),
    "gguf": (gguf_headers, read_a_gguf_header),
    "templates": (templates, spell_by_a_template),
    "commands": (command_lines, give_a_command),
}


class Over(Exception):
    """The target's minutes have passed."""


def fuzz(name: str, minutes: float, seed: int) -> tuple[Counter[str], str | None]:
    """(how inputs ended, the finding if there was one)."""
    make, use = TARGETS[name]
    tally: Counter[str] = Counter()
    end = time.monotonic() + 60 * minutes
    inputs = make()

    @with_seed(seed)
    @settings(
        max_examples=10**7, deadline=None, database=None, print_blob=False,
        phases=(Phase.generate, Phase.shrink), suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(inputs)
    def try_one(made: object) -> None:
        if time.monotonic() > end and not tally["found"]:
            raise Over
        began = time.monotonic()
        try:
            use(made)
            tally["taken"] += 1
        except StudyError:
            tally["refused"] += 1
        except Exception:
            tally["found"] += 1
            raise
        assert time.monotonic() - began < SLOW_SECONDS, "it took too long"

    try:
        try_one()
    except Over:
        return tally, None
    except BaseException as error:
        if any(isinstance(one, Over) for one in getattr(error, "exceptions", ())):
            return tally, None
        note = "\n".join(getattr(error, "__notes__", []))
        return tally, f"{type(error).__name__}: {error}\n{note}"
    return tally, None


def main() -> int:
    words = argparse.ArgumentParser(description="Fuzz the study's readers.")
    words.add_argument("targets", nargs="*", default=[], help=", ".join(TARGETS))
    words.add_argument("--minutes", type=float, default=2.0)
    words.add_argument("--seed", type=int, default=None)
    asked = words.parse_args()
    seed = random.randrange(10**6) if asked.seed is None else asked.seed
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MOST_GROWTH_BYTES, resource.RLIM_INFINITY))
    bad = 0
    for name in asked.targets or TARGETS:
        os.chdir(PLACE)
        tally, found = fuzz(name, asked.minutes, seed)
        told = ", ".join(f"{count:,} {word}" for word, count in sorted(tally.items()))
        print(f"{name}, seed {seed}: {told or 'nothing tried'}", flush=True)
        if found:
            bad += 1
            print(f"FOUND in {name}: {found}\n", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

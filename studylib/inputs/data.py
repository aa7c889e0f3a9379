"""Training examples: read, tokenise, pack. The same rows in the same order for every method.

An example is an Alpaca-style instruction, input and output. Only the output is learned. Examples
are packed into rows of seq_len tokens; positions restart at each example, so that none attends
across its neighbours. The order depends on the seed alone.

Not covered: questions for the evaluation (studylib.scoring.tasks).
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studylib.core.errors import StudyError
from studylib.core.files import read_text
from studylib.inputs.almanac import build_almanac, training_examples
from studylib.schema.profile import DataSettings, TrainSettings, nearest
from studylib.schema.records import canonical

IGNORED = -100  # the label that transformers' loss leaves out

# The prompt of Stanford Alpaca (2023), with and without an input.
ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately "
    "completes the request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
)
ALMANACS = {"new": ("new", "native"), "old": ("old", "native"), "shifted": ("old", "shifted")}

Example = dict[str, str]
Tokenised = dict[str, list[int]]
Row = list[Tokenised]


def row_multiple(on_card: bool) -> int:
    """What the lengths of rows are filled up to a multiple of, in tokens.

    cuDNN, PyTorch's first choice of attention on Hopper, makes a plan for every new length.
    """
    return 128 if on_card else 1


def read_examples(data: DataSettings) -> list[Example]:
    """The examples of a file, a hub data set or the almanac; every fault names its place."""
    if data.source.startswith("almanac:"):
        half, language = parse_almanac(data.source)
        return training_examples(build_almanac(), half, n_facts=data.facts, language=language)
    if data.source.startswith("hub:"):
        return fetch_examples(data.source)
    return read_example_file(Path(data.source).expanduser())


def parse_almanac(source: str) -> tuple[Any, Any]:
    """(half, language) of almanac:NAME."""
    name = source.partition(":")[2]
    if name not in ALMANACS:
        raise StudyError(source, "the almanac has no such part", nearest(name, list(ALMANACS)))
    return ALMANACS[name]


def read_example_file(path: Path) -> list[Example]:
    """Examples of an Alpaca-format .json (a list) or .jsonl (one object a line) file."""
    remedy = "DATA is an Alpaca-format .json or .jsonl file, or hub:ID."
    text = read_text(path, "the data file", remedy)
    if path.suffix == ".jsonl" or not text.strip():
        rows = [(f"line {i}", row) for i, row in parse_lines(text, path)]
    else:
        content = parse_json(text, path, 1)
        if not isinstance(content, list):
            raise StudyError(
                path,
                "the file is not a list of examples",
                "Write [{...}, ...], or one object a line in a .jsonl file.",
            )
        rows = [(f"entry {i}", row) for i, row in enumerate(content, 1)]
    return check_examples(rows, path)


def parse_lines(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    """(line number, content) of every line that is not blank."""
    for i, line in enumerate(text.split("\n"), 1):  # not at U+2028, as splitlines does
        if line.strip():
            yield i, parse_json(line, path, i)


def parse_json(text: str, path: Path, first_line: int) -> Any:
    """JSON text that starts at a line of a file; half a surrogate pair is no text either."""
    try:
        content = json.loads(text)
        if "\\ud" in text.lower():
            canonical(content)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        remedy = "Correct the line."
        if error.msg == "Extra data" and path.suffix != ".jsonl":
            remedy = "Correct the line; if each line is an object, name the file .jsonl."
        raise StudyError(
            f"{path}, line {line}", f"this is not JSON ({error.msg})", remedy
        ) from None
    except RecursionError:
        raise StudyError(
            f"{path}, line {first_line}", "this is nested too deep", "Write one object an example."
        ) from None
    except UnicodeEncodeError:
        raise StudyError(
            f"{path}, from line {first_line}",
            "a text holds half of a surrogate pair (\\ud800 to \\udfff)",
            "Write the whole pair, or the character itself.",
        ) from None
    return content


def check_examples(rows: list[tuple[str, Any]], origin: object) -> list[Example]:
    """Examples with text in instruction and output; `input` may be missing or empty."""
    examples = []
    for place, row in rows:
        if not isinstance(row, dict):
            raise StudyError(
                f"{origin}, {place}",
                "an example is an object",
                'Write {"instruction": …, "input": …, "output": …}.',
            )
        row = {**row, "input": "" if row.get("input") is None else row["input"]}
        for key in ("instruction", "input", "output"):
            if not isinstance(row.get(key), str) or (key != "input" and not row[key].strip()):
                raise StudyError(
                    f"{origin}, {place}",
                    f"the example has no text in {key!r}",
                    "Every example needs an instruction and an output.",
                )
        examples.append({key: row[key] for key in ("instruction", "input", "output")})
    if not examples:
        raise StudyError(origin, "there are no examples in it", "Add at least one.")
    return examples


def fetch_examples(source: str) -> list[Example]:
    """The train split of a hub data set with the columns instruction, input, output."""
    from studylib.inputs.hub import hub_errors

    with hub_errors(source, "give DATA as a file"):
        rows = download_rows(source)
    # A column that only some rows of a file have is null in the others.
    given = ({key: row[key] for key in row if row[key] is not None} for row in rows)
    return check_examples([(f"row {i}", row) for i, row in enumerate(given, 1)], source)


def download_rows(source: str) -> Any:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    from studylib.inputs.hub import ask_again, resolve_dataset

    name, _, revision = source.removeprefix("hub:").partition("@")
    commit = resolve_dataset(name, revision or None)
    try:
        return ask_again(lambda: load_dataset(name, split="train", revision=commit))
    except (ValueError, RuntimeError, DatasetsError) as error:
        why = str(error).strip().partition("\n")[0]
        raise StudyError(
            source, f"it gives no split `train` ({why})", "Save its examples to a .jsonl file."
        ) from error


def prompt_of(example: Example, template: str) -> tuple[str, str]:
    """(prompt, answer) as the model sees them; `plain` is the bare text of both."""
    if template == "plain":
        prompt = " ".join(part for part in (example["instruction"], example["input"]) if part)
        return prompt, " " + example["output"]
    form = ALPACA_INPUT if example["input"] else ALPACA
    return form.format(**example), example["output"]


def tokenise(examples: list[Example], template: str, tokenizer: Any, seq_len: int) -> list[Row]:
    """Token ids and labels of each example, at most seq_len long, the prompt's labels ignored.

    Prompt and answer are spelled together and cut where the prompt alone ends, as lm-eval does,
    so that training and scoring see the same tokens. An example whose prompt alone fills the
    row teaches nothing and is left out.
    """
    pairs = [prompt_of(example, template) for example in examples]
    prompts = tokenizer([prompt for prompt, _ in pairs])["input_ids"]
    wholes = tokenizer([prompt + answer for prompt, answer in pairs])["input_ids"]
    eos = tokenizer.eos_token_id
    tokenised = []
    for prompt, whole in zip(prompts, wholes, strict=True):
        ids = whole if whole[-1] == eos else [*whole, eos]
        start = len(prompt) - 1 if prompt and prompt[-1] == eos else len(prompt)
        ids = ids[:seq_len]
        if start < len(ids):
            tokenised.append({"input_ids": ids, "labels": [IGNORED] * start + ids[start:]})
    if not tokenised:
        raise StudyError(
            f"train.seq_len = {seq_len}",
            "no example's answer begins within it",
            "Make it longer, or the prompts shorter.",
        )
    return tokenised  # type: ignore[return-value]


def pack(examples: list[Tokenised], seq_len: int, rows: int, seed: int) -> list[Row]:
    """`rows` rows of examples, each of at most seq_len tokens, shuffled anew for every epoch.

    First fit over a few open rows: a row is closed when nothing that comes soon fits into it.
    """
    rng = random.Random(f"order {seed}")
    packed: list[Row] = []
    open_rows: list[tuple[int, Row]] = []
    while len(packed) < rows:
        order = list(range(len(examples)))
        rng.shuffle(order)
        for i in order:
            place(examples[i], seq_len, open_rows, packed)
    return packed[:rows]


def place(
    example: Tokenised, seq_len: int, open_rows: list[tuple[int, Row]], packed: list[Row]
) -> None:
    """Put an example into the first open row with room; close the fullest when eight are open."""
    length = len(example["input_ids"])
    for i, (used, row) in enumerate(open_rows):
        if used + length <= seq_len:
            open_rows[i] = (used + length, [*row, example])
            return
    if len(open_rows) == 8:
        fullest = max(range(8), key=lambda i: open_rows[i][0])
        packed.append(open_rows.pop(fullest)[1])
    open_rows.append((length, [example]))


@dataclass(frozen=True)
class TrainingData:
    """Rows for one run and the counts that go into its record.

    left_out: examples whose prompt alone fills a row. cut: examples whose answer was cut short.
    """

    rows: list[Row]
    examples: int
    sha256: str
    order_sha256: str
    left_out: int = 0
    cut: int = 0

    @property
    def examples_seen(self) -> int:
        return sum(len(row) for row in self.rows)

    @property
    def tokens_seen(self) -> int:
        return sum(self.lengths())

    def lengths(self) -> list[int]:
        """Tokens of every packed example."""
        return [len(e["input_ids"]) for row in self.rows for e in row]

    @property
    def answer_tokens_seen(self) -> int:
        return sum(label != IGNORED for row in self.rows for e in row for label in e["labels"])


def hash_examples(examples: list[Example]) -> str:
    """One hash of all examples, in their order."""
    return hashlib.sha256(canonical(examples)).hexdigest()


def prepare_data(
    data: DataSettings, train: TrainSettings, tokenizer: Any, seed: int
) -> TrainingData:
    """Read, tokenise and pack what one run sees: steps × accumulation × micro_batch rows."""
    examples = read_examples(data)
    tokenised: Any = tokenise(examples, data.template, tokenizer, train.seq_len)
    rows = pack(
        tokenised, train.seq_len, train.steps * train.accumulation * train.micro_batch, seed
    )
    return TrainingData(
        rows=rows,
        examples=len(examples),
        sha256=hash_examples(examples),
        order_sha256=hashlib.sha256(canonical(rows)).hexdigest(),
        left_out=len(examples) - len(tokenised),
        cut=sum(example["input_ids"][-1] != tokenizer.eos_token_id for example in tokenised),
    )

"""What a processor's step makes of packed examples: which tokens are learned, where examples end.

There only learned tokens go through the output layer of a loss in pieces
(studylib.modelling.chunked_loss), and attention by example looks at no other example
(studylib.modelling.by_example): of short answers to short questions both are a part of a row. So a
run's examples are packed as it will pack them, and its fullest micro-batch is traced.

Not covered: which examples share a row (studylib.inputs.data).
"""

from __future__ import annotations

from functools import lru_cache

from studylib.core.errors import StudyError
from studylib.forecasting.job import Fullest
from studylib.inputs.almanac import ladder_folder
from studylib.inputs.packed import Row
from studylib.inputs.tokens import IGNORED
from studylib.schema.settings import DataSettings, ModelRef, TrainSettings
from studylib.schema.spec import RunSpec

MOST_STEPS = 200  # whose examples are tokenised: later ones are drawn from the same


def find_fullest(spec: RunSpec) -> Fullest:
    """The micro-batch with the most learned tokens among a run's first steps.

    Of seed 0, so that runs that differ in their seed alone are one forecast. StudyError: the
    model's tokenizer or the examples are not on this machine.
    """
    recipe = spec.train.model_copy(update={"steps": min(spec.train.steps, MOST_STEPS)})
    return find_in(spec.model, spec.data.model_dump_json(), recipe.model_dump_json())


@lru_cache(maxsize=64)
def find_in(model: str, asked: str, trained: str) -> Fullest:
    """The same of a model's name and the settings' JSON, which have hashes."""
    from studylib.inputs.data import prepare_data
    from studylib.modelling.models import load_tokenizer
    from studylib.modelling.preflight import folder_here

    ref, recipe = ModelRef.parse(model), TrainSettings.model_validate_json(trained)
    folder = ladder_folder(ref.name) if ref.kind == "ladder" else folder_here(ref)
    if folder is None:
        raise StudyError(ref, "its tokenizer is not on this machine", "Fetch the model first.")
    data = DataSettings.model_validate_json(asked)
    rows, size = prepare_data(data, recipe, load_tokenizer(folder), 0).rows, recipe.micro_batch
    batches = [rows[start : start + size] for start in range(0, len(rows), size)]
    fullest = max(batches, key=lambda batch: sum(map(count_learned, batch)))
    longest = max(sum(example_lengths(row)) for row in fullest)
    by_example = recipe.attention == "by_example"
    lengths = (length for row in fullest for length in with_filler(row, longest))
    return Fullest(
        row_tokens=longest,
        learned_tokens=sum(map(count_learned, fullest)),
        example_tokens=tuple(lengths) if by_example else (),
    )


def count_learned(row: Row) -> int:
    """A row's learned tokens; an example's first is nobody's next one."""
    return sum(label != IGNORED for example in row for label in example["labels"][1:])


def example_lengths(row: Row) -> list[int]:
    return [len(example["input_ids"]) for example in row]


def with_filler(row: Row, length: int) -> list[int]:
    """Tokens of a row's examples and of what fills it up, an example of its own."""
    lengths = example_lengths(row)
    missing = length - sum(lengths)
    return [*lengths, missing] if missing else lengths

"""Questions with four choices, read and checked: a folder in MMLU's form, the almanac.

A folder holds test.jsonl and dev.jsonl; each line has subject, question, choices (4) and answer
(0-3). No torch and no lm-eval here, so that a plan can check its inputs in a moment.

Not covered: asking them (studylib.scoring.tasks).
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from studylib.core.errors import StudyError
from studylib.core.files import read_text
from studylib.inputs.examples import parse_almanac
from studylib.inputs.rows import parse_lines
from studylib.inputs.sources import ask_dataset

Question = dict[str, Any]
MMLU_HUB = "cais/mmlu"  # where lm-eval's task `mmlu` takes its questions from
MMLU_REVISION = "c30699e8356da336a370243923dbaf21066bb9fe"
MMLU_SUBJECTS = """
    abstract_algebra anatomy astronomy business_ethics clinical_knowledge college_biology
    college_chemistry college_computer_science college_mathematics college_medicine
    college_physics computer_security conceptual_physics econometrics electrical_engineering
    elementary_mathematics formal_logic global_facts high_school_biology high_school_chemistry
    high_school_computer_science high_school_european_history high_school_geography
    high_school_government_and_politics high_school_macroeconomics high_school_mathematics
    high_school_microeconomics high_school_physics high_school_psychology high_school_statistics
    high_school_us_history high_school_world_history human_aging human_sexuality
    international_law jurisprudence logical_fallacies machine_learning management marketing
    medical_genetics miscellaneous moral_disputes moral_scenarios nutrition philosophy
    prehistory professional_accounting professional_law professional_medicine
    professional_psychology public_relations security_studies sociology us_foreign_policy
    virology world_religions
""".split()  # noqa: SIM905 - a list would be 57 lines
QUESTIONS_REMEDY = "MMLU is hub, or a folder with test.jsonl and dev.jsonl."


def check_questions(source: str, shots: int) -> None:
    """Read what a run would read of its questions; of the hub's, only whether they are there."""
    if source == "hub":
        ask_dataset(MMLU_HUB, MMLU_SUBJECTS[0], "MMLU=hub", "give MMLU as a folder", MMLU_REVISION)
    elif source.startswith("tasks:"):
        return  # lm-eval finds and reads them when the run begins
    elif source.startswith("almanac:"):
        parse_almanac(source)
    else:
        read_question_folder(Path(source).expanduser(), shots)


def read_question_folder(folder: Path, shots: int) -> tuple[list[Question], list[Question]]:
    """(test, dev) of a folder; every tested subject has at least `shots` dev questions."""
    remedy = QUESTIONS_REMEDY
    if not folder.is_dir():
        raise StudyError(folder, "there is no such folder of questions", remedy)
    if not (folder / "test.jsonl").is_file():
        raise StudyError(folder, "the folder has no test.jsonl", remedy)
    test = read_questions(folder / "test.jsonl")
    if not shots:
        return test, []
    if not (folder / "dev.jsonl").is_file():
        raise StudyError(folder, f"the folder has no dev.jsonl for {shots} shots", remedy)
    dev = read_questions(folder / "dev.jsonl")
    counts = {subject: len(docs) for subject, docs in group_by_subject(dev).items()}
    for subject in sorted(group_by_subject(test)):
        if counts.get(subject, 0) < shots:
            raise StudyError(
                f"{folder / 'dev.jsonl'}: {subject}",
                f"{shots} shots need {shots} dev questions a subject, it has "
                f"{counts.get(subject, 0)}",
                "Add them, or ask with fewer shots: SET=evaluate.shots=0 with make.",
            )
    return test, dev


def read_validation(folder: Path, test: list[Question]) -> tuple[list[Question], int]:
    """(val.jsonl without what the test asks as well, how many questions that left out)."""
    path = folder / "val.jsonl"
    if not path.is_file():
        raise StudyError(
            folder,
            "the folder has no val.jsonl to tune on",
            "Add one, of questions that test.jsonl does not ask.",
        )
    asked = {question_id(doc) for doc in test}
    validation = read_questions(path)
    kept = [doc for doc in validation if question_id(doc) not in asked]
    return kept, len(validation) - len(kept)


def hash_questions(folder: Path, shots: int, part: str) -> str:
    """One hash of the questions of a folder that are asked and shown, in their order."""
    test, dev = read_question_folder(folder, shots)
    parts = [test, dev, read_validation(folder, test)[0] if part == "validation" else []]
    asked = [[[doc["subject"], question_id(doc)] for doc in docs] for docs in parts]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def count_overlap(source: str) -> int:
    """Validation questions of a folder that its test asks too; the almanac has none by design."""
    if source == "hub" or source.startswith(("almanac:", "tasks:")):
        return 0
    folder = Path(source).expanduser()
    return read_validation(folder, read_questions(folder / "test.jsonl"))[1]


def read_questions(path: Path) -> list[Question]:
    """The questions of a jsonl file; a malformed one is named by its line."""
    found = []
    text = read_text(path, "the file of questions", QUESTIONS_REMEDY)
    for number, doc in parse_lines(text.encode().split(b"\n"), path):
        fault = find_fault(doc)
        if fault:
            raise StudyError(f"{path}, line {number}", fault, "Correct or remove the line.")
        found.append(doc)
    if not found:
        raise StudyError(path, "there are no questions in it", "Add at least one.")
    return found


def find_fault(doc: Any) -> str | None:
    """What a question lacks, in words, or None."""
    if not isinstance(doc, dict):
        return "a question is an object"
    for key in ("subject", "question"):
        if not isinstance(doc.get(key), str) or not doc[key].strip():
            return f"the question has no text in {key!r}"
    choices = doc.get("choices")
    if not isinstance(choices, list) or len(choices) != 4:
        return "choices must be a list of 4"
    if not all(isinstance(choice, str) for choice in choices):
        return "every choice must be text"
    if type(doc.get("answer")) is not int or not 0 <= doc["answer"] <= 3:
        return "answer must be 0, 1, 2 or 3"
    return None


def group_by_subject(docs: list[Question]) -> dict[str, list[Question]]:
    groups: dict[str, list[Question]] = defaultdict(list)
    for doc in docs:
        groups[doc["subject"]].append(doc)
    return dict(groups)


def question_id(doc: Question) -> str:
    """A short id of a question by its content, the same wherever it is asked."""
    text = json.dumps([doc["question"], list(doc["choices"]), doc["answer"]], ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]

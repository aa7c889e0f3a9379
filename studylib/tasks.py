"""Questions with four choices as lm-eval tasks: the hub's MMLU, a folder in its form, the almanac.

A folder holds test.jsonl and dev.jsonl; each line has subject, question, choices (4) and answer
(0-3). The tasks use lm-eval's own MMLU template, so that a folder with MMLU's questions gives
lm-eval's MMLU prompts, byte for byte.

Not covered: scoring (studylib.evaluate).
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from pathlib import Path
from typing import Any

from studylib.almanac import build_almanac, questions
from studylib.data import parse_almanac, parse_lines
from studylib.errors import StudyError
from studylib.files import read_text
from studylib.profile import EvaluateSettings

Question = dict[str, Any]
LETTERS = ["A", "B", "C", "D"]
MMLU_HUB = "cais/mmlu"  # where lm-eval's task `mmlu` takes its questions from
QUESTIONS_REMEDY = "MMLU is hub, or a folder with test.jsonl and dev.jsonl."

logging.getLogger("lm_eval").setLevel(logging.ERROR)


def build_tasks(source: str, settings: EvaluateSettings) -> dict[str, Any]:
    """lm-eval tasks, one a subject in alphabetical order, by name.

    source: hub, a folder, or almanac:NAME. Raises StudyError for what is missing or malformed.
    """
    if source == "hub":
        return hub_tasks(settings)
    if source.startswith("almanac:"):
        half, language = parse_almanac(source)
        test = questions(build_almanac(), half, language=language)
        dev: list[Question] = []
        form = {"doc_to_text": "{{question}}"}
    else:
        test, dev = read_question_folder(Path(source).expanduser(), settings.shots)
        form = {"doc_to_text": "Question: {{question.strip()}}\nAnswer:"}
    shots = group_by_subject(dev)
    return {
        f"{subject}": subject_task(subject, docs, shots.get(subject, []), form, settings)
        for subject, docs in sorted(group_by_subject(test).items())
    }


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


def read_questions(path: Path) -> list[Question]:
    """The questions of a jsonl file; a malformed one is named by its line."""
    found = []
    text = read_text(path, "the file of questions", QUESTIONS_REMEDY)
    for number, doc in parse_lines(text, path):
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


def subject_task(
    subject: str,
    docs: list[Question],
    shots: list[Question],
    form: dict[str, str],
    settings: EvaluateSettings,
) -> Any:
    """One subject as lm-eval's ConfigurableTask, nothing downloaded or cached."""
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    keys = ("question", "choices", "answer", "subject")
    splits = {"test": docs} | ({"dev": shots} if shots else {})
    # The list of documents is taken as it is: what a question lacks was found when it was read.
    dataset = {
        name: Dataset.from_list([{key: doc[key] for key in keys} for doc in rows])
        for name, rows in splits.items()
    }
    letters = settings.scoring == "letters"
    config: dict[str, Any] = {
        "task": subject,
        "custom_dataset": lambda **_: dataset,
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": MMLU_TEXT if letters else form["doc_to_text"],
        "doc_to_choice": LETTERS if letters else "{{choices}}",
        "doc_to_target": "answer",
        "num_fewshot": settings.shots,
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    if shots:
        config |= {"fewshot_split": "dev", "fewshot_config": {"sampler": "first_n"}}
    if letters:
        config["description"] = MMLU_DESCRIPTION.format(subject.replace("_", " "))
    return ConfigurableTask(config=config)


# lm-eval's own template of its task `mmlu` (version 1).
MMLU_TEXT = (
    "{{question.strip()}}\nA. {{choices[0]}}\nB. {{choices[1]}}\nC. {{choices[2]}}\n"
    "D. {{choices[3]}}\nAnswer:"
)
MMLU_DESCRIPTION = "The following are multiple choice questions (with answers) about {}.\n\n"


def hub_tasks(settings: EvaluateSettings) -> dict[str, Any]:
    """lm-eval's own `mmlu`, from the hub."""
    from lm_eval.tasks import TaskManager, get_task_dict

    from studylib.sources import hub_errors

    with hub_errors("MMLU=hub", "give MMLU as a folder"):
        nested = get_task_dict(["mmlu"], TaskManager())
    tasks = {}
    for name, task in flatten_tasks(nested).items():
        task.set_config(key="num_fewshot", value=settings.shots)
        tasks[name.removeprefix("mmlu_")] = task
    return dict(sorted(tasks.items()))


def flatten_tasks(nested: dict[Any, Any]) -> dict[str, Any]:
    """The leaf tasks of lm-eval's nested groups, by name."""
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        flat |= flatten_tasks(value) if isinstance(value, dict) else {str(name): value}
    return flat


def check_questions(source: str, shots: int) -> None:
    """Read what a run would read of its questions; of the hub's, only whether they are there."""
    if source == "hub":
        from studylib.sources import ask_dataset

        ask_dataset(MMLU_HUB, "abstract_algebra", "MMLU=hub", "give MMLU as a folder")
    elif source.startswith("almanac:"):
        parse_almanac(source)
    else:
        read_question_folder(Path(source).expanduser(), shots)


def question_id(doc: Question) -> str:
    """A short id of a question by its content, the same wherever it is asked."""
    import hashlib

    text = json.dumps([doc["question"], list(doc["choices"]), doc["answer"]], ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]

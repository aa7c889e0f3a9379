"""Questions are checked when read, and asked in lm-eval's own words."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml

from studylib.core.errors import StudyError
from studylib.inputs.questions import (
    MMLU_HUB,
    MMLU_REVISION,
    MMLU_SUBJECTS,
    check_questions,
    question_id,
    read_question_folder,
)
from studylib.schema.profile import EvaluateSettings
from studylib.scoring.tasks import build_tasks


def question(subject="anatomy", i=0, **other):
    doc = {
        "subject": subject,
        "question": f" What is {i}?\n",
        "choices": [f"{i}", "b", "c", "d"],
        "answer": i % 4,
    }
    return doc | other


def lines(docs):
    return "".join(json.dumps(doc) + "\n" for doc in docs)


@pytest.fixture
def folder(tmp_path):
    """Two subjects with three questions each and five dev questions."""
    subjects = ("world_religions", "anatomy")
    (tmp_path / "test.jsonl").write_text(lines(question(s, i) for i in range(3) for s in subjects))
    (tmp_path / "dev.jsonl").write_text(
        lines(question(s, 9 + i) for s in subjects for i in range(5))
    )
    return tmp_path


@pytest.mark.parametrize(
    ("other", "rule"),
    [
        ({"choices": ["a", "b", "c"]}, "a list of 4"),
        ({"choices": "abcd"}, "a list of 4"),
        ({"choices": ["a", "b", "c", 4]}, "every choice must be text"),
        ({"answer": 4}, "answer must be 0, 1, 2 or 3"),
        ({"answer": "A"}, "answer must be"),
        ({"answer": True}, "answer must be"),
        ({"answer": None}, "answer must be"),
        ({"question": " "}, "no text in 'question'"),
        ({"subject": None}, "no text in 'subject'"),
    ],
)
def test_malformed_question_is_named_by_its_line(folder, other, rule):
    with (folder / "test.jsonl").open("a") as file:
        file.write("\n" + lines([question(**other)]))
    with pytest.raises(StudyError, match=rule) as caught:
        read_question_folder(folder, 5)
    assert "test.jsonl, line 8" in caught.value.value


@pytest.mark.parametrize(
    ("file", "content", "place", "rule"),
    [
        ("test.jsonl", None, "", "has no test.jsonl"),
        ("dev.jsonl", None, "", "no dev.jsonl for 5 shots"),
        ("test.jsonl", b"", "test.jsonl", "no questions"),
        ("dev.jsonl", b"\n", "dev.jsonl", "no questions"),
        ("test.jsonl", b"\n{oops\n", "line 2", "not JSON"),
        ("test.jsonl", b"[]\n", "line 1", "a question is an object"),
        ("dev.jsonl", b"\n\n\xff\n", "line 3", "not UTF-8"),
    ],
)
def test_faults_of_a_folder_are_named(folder, file, content, place, rule):
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_bytes(content)
    with pytest.raises(StudyError, match=rule) as caught:
        check_questions(str(folder), 5)
    assert place in caught.value.value


def test_subject_without_dev_questions_is_named_and_needs_none_at_zero_shots(folder):
    (folder / "dev.jsonl").write_text(lines(question("anatomy", i) for i in range(5)))
    with pytest.raises(StudyError, match=r"world_religions: 5 shots need 5 .* it has 0"):
        read_question_folder(folder, 5)
    assert len(read_question_folder(folder, 0)[0]) == 6


def test_folder_that_is_not_there_and_unknown_almanac_part_are_named(tmp_path):
    with pytest.raises(StudyError, match="no such folder of questions"):
        check_questions(str(tmp_path / "none"), 0)
    with pytest.raises(StudyError, match="almanac:middle"):
        check_questions("almanac:middle", 0)
    check_questions("almanac:old", 0)


def test_hub_that_cannot_be_reached_is_named_before_anything_runs():
    with pytest.raises(StudyError, match=r"MMLU=hub: the hub cannot be reached.* as a folder"):
        check_questions("hub", 5)


def lm_eval_config(subject):
    """lm-eval's own configuration of one MMLU subject, as its YAML files state it."""
    import lm_eval

    tasks = Path(lm_eval.__file__).parent / "tasks" / "mmlu" / "default"
    own = yaml.safe_load((tasks / f"mmlu_{subject}.yaml").read_text())
    shared = yaml.safe_load((tasks / own["include"]).read_text())
    return shared | own


def test_prompts_are_byte_for_byte_those_of_lm_evals_mmlu(folder):
    """Rendered by lm-eval from its own YAML, and once by hand."""
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    test, dev = read_question_folder(folder, 5)
    settings = EvaluateSettings(questions=str(folder), shots=5)
    for subject, ours in build_tasks(str(folder), settings).items():
        splits = {
            name: Dataset.from_list([doc for doc in docs if doc["subject"] == subject])
            for name, docs in (("test", test), ("dev", dev))
        }
        config = lm_eval_config(subject)
        assert config.pop("dataset_path") == MMLU_HUB
        for key in ("dataset_name", "include", "tag", "task_alias"):
            config.pop(key, None)
        theirs = ConfigurableTask(
            config=config | {"custom_dataset": lambda splits=splits, **_: splits, "num_fewshot": 5}
        )
        for doc in splits["test"]:
            assert ours.fewshot_context(doc, 5) == theirs.fewshot_context(doc, 5)
            assert ours.doc_to_choice(doc) == theirs.doc_to_choice(doc) == ["A", "B", "C", "D"]
            assert ours.doc_to_target(doc) == theirs.doc_to_target(doc) == doc["answer"]
    anatomy = build_tasks(str(folder), settings)["anatomy"]
    shots = [
        f"What is {i}?\nA. {i}\nB. b\nC. c\nD. d\nAnswer: {'ABCD'[i % 4]}\n\n" for i in range(9, 14)
    ]
    assert anatomy.fewshot_context(question(i=2), 5) == (
        "The following are multiple choice questions (with answers) about anatomy.\n\n"
        + "".join(shots)
        + "What is 2?\nA. 2\nB. b\nC. c\nD. d\nAnswer:"
    )


def test_hubs_questions_are_lm_evals_subjects_at_one_commit(monkeypatch):
    import lm_eval
    from lm_eval.api import task as lm_eval_task

    from studylib.inputs import sources

    asked = []

    def load(path, name, revision):
        from datasets import Dataset

        asked.append((path, name, revision))
        docs = [question(name, i=i) for i in range(5)]
        return {part: Dataset.from_list(docs) for part in ("test", "dev", "validation")}

    monkeypatch.setattr(lm_eval_task.datasets, "load_dataset", load)
    monkeypatch.setattr(sources, "hub_errors", lambda *_: nullcontext())
    tasks = build_tasks("hub", EvaluateSettings(questions="hub", shots=5))
    folder = Path(lm_eval.__file__).parent / "tasks" / "mmlu" / "default"
    subjects = sorted(path.stem.removeprefix("mmlu_") for path in folder.glob("mmlu_*.yaml"))
    assert list(tasks) == subjects == sorted(MMLU_SUBJECTS) and len(subjects) == 57
    assert sorted(asked) == [(MMLU_HUB, subject, MMLU_REVISION) for subject in subjects]
    assert tasks["anatomy"].config.num_fewshot == 5
    assert tasks["anatomy"].fewshot_context(question("anatomy", i=7), 5).count("Answer:") == 6


def test_descriptions_of_all_subjects_are_lm_evals(shared):
    from studylib.scoring.tasks import MMLU_DESCRIPTION

    test, _ = read_question_folder(shared / "data" / "mmlu", 5)
    subjects = {doc["subject"] for doc in test}
    assert len(subjects) == 57
    for subject in subjects:
        ours = MMLU_DESCRIPTION.format(subject.replace("_", " "))
        assert lm_eval_config(subject)["description"] == ours


def test_text_scoring_asks_for_the_choices_and_the_almanac_needs_no_shots():
    settings = EvaluateSettings(questions="almanac:new", scoring="text", shots=0)
    tasks = build_tasks("almanac:new", settings)
    assert len(tasks) == 16 and list(tasks) == sorted(tasks)
    task = tasks["towns"]
    doc = task.test_docs()[0]
    assert task.fewshot_context(doc, 0) == doc["question"]
    assert task.doc_to_choice(doc) == doc["choices"]
    assert task.config.target_delimiter == " "


def test_question_id_is_its_contents_alone():
    assert question_id(question()) == question_id(question("other_subject"))
    assert len({question_id(question(i=i)) for i in range(50)}) == 50
    assert question_id(question()) == PINNED_ID


PINNED_ID = "121ac47a0cac"

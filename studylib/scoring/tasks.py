"""Questions with four choices as lm-eval tasks: the hub's MMLU, a folder in its form, the almanac.

The tasks use lm-eval's own MMLU template, so that a folder with MMLU's questions gives lm-eval's
MMLU prompts, byte for byte.

Not covered: reading and checking the questions (studylib.inputs.questions), scoring
(studylib.scoring.evaluate).
"""

from __future__ import annotations

import logging
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from studylib.core.errors import StudyError
from studylib.inputs.almanac import build_almanac, questions
from studylib.inputs.examples import parse_almanac
from studylib.inputs.questions import (
    MMLU_REVISION,
    MMLU_SUBJECTS,
    Question,
    group_by_subject,
    read_question_folder,
    read_validation,
)
from studylib.schema.profile import EvaluateSettings, nearest

LETTERS = ["A", "B", "C", "D"]

logging.getLogger("lm_eval").setLevel(logging.ERROR)


def build_tasks(source: str, settings: EvaluateSettings) -> dict[str, Any]:
    """lm-eval tasks, one a subject in alphabetical order, by name.

    source: hub, a folder, almanac:NAME, or tasks:A,B for any of lm-eval's tasks that are scored by
    log-likelihood (tasks:A,B@FOLDER with YAML files of one's own). Raises StudyError for what is
    missing or malformed.
    """
    if source == "hub":
        return hub_tasks(settings)
    if source.startswith("tasks:"):
        return named_tasks(source, settings)
    if source.startswith("almanac:"):
        half, language = parse_almanac(source)
        part = None if half == "old" and language == "native" else settings.part
        test = questions(build_almanac(), half, settings.facts, language, part)
        dev: list[Question] = []
        form = {"doc_to_text": "{{question}}"}
    else:
        folder = Path(source).expanduser()
        test, dev = read_question_folder(folder, settings.shots)
        if settings.part == "validation":
            test, _ = read_validation(folder, test)
        form = {"doc_to_text": "Question: {{question.strip()}}\nAnswer:"}
    shots = group_by_subject(dev)
    return {
        f"{subject}": subject_task(subject, docs, shots.get(subject, []), form, settings)
        for subject, docs in sorted(group_by_subject(test).items())
    }


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
    """The subjects of lm-eval's own `mmlu`, from one commit of the hub's questions."""
    from lm_eval.tasks import get_task_dict

    from studylib.inputs.sources import hub_errors

    # As members of a group: lm-eval lays a member's keys over the task of that name.
    members = [
        {"task": f"mmlu_{subject}", "dataset_kwargs": {"revision": MMLU_REVISION}}
        for subject in MMLU_SUBJECTS
    ]
    with hub_errors("MMLU=hub", "give MMLU as a folder"):
        nested = get_task_dict([{"group": "subjects", "task": members}], task_manager(None))
    tasks = {}
    for name, task in flatten_tasks(nested).items():
        task.set_config(key="num_fewshot", value=settings.shots)
        if settings.part == "validation":
            task.set_config(key="test_split", value="validation")
        tasks[name.rpartition("::")[2].removeprefix("mmlu_")] = task
    return dict(sorted(tasks.items()))


def named_tasks(source: str, settings: EvaluateSettings) -> dict[str, Any]:
    """lm-eval's tasks by name, groups as their members; only those scored by log-likelihood."""
    from lm_eval.tasks import get_task_dict

    from studylib.inputs.sources import hub_errors

    names, _, folder = source.removeprefix("tasks:").partition("@")
    manager = task_manager(folder or None)
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if name not in manager.all_tasks:
            raise StudyError(
                name,
                "lm-eval knows no such task or group",
                nearest(name, similar(name, manager.all_tasks)),
            )
    with hub_errors(source, "give tasks whose data lie on this disk"):
        tasks = flatten_tasks(get_task_dict(wanted, manager))
    for name, task in tasks.items():
        if task.OUTPUT_TYPE != "multiple_choice":
            raise StudyError(
                name,
                f"its answers are of the kind {task.OUTPUT_TYPE}, not choices",
                "Name tasks with choices, such as arc_easy, hellaswag or mmlu_continuation.",
            )
        task.set_config(key="num_fewshot", value=settings.shots)
    return dict(sorted(tasks.items()))


def fit_shots(tasks: dict[str, Any], lm: Any) -> None:
    """Let each prompt hold as many of its shots as fit the model's context, none cut in two.

    lm-eval cuts a prompt that is too long from the left, token by token: it then begins within a
    shot, each at another point. With this, whole shots go, the last ones first where a task draws
    them in order (MMLU does). A question too long by itself is still cut. tasks: of build_tasks,
    changed in place; lm: lm-eval's view of the model, whose tokens and context count.
    """
    for task in tasks.values():
        task.fewshot_context = partial(shorten_prompt, task, lm)


def shorten_prompt(task: Any, lm: Any, doc: dict[str, Any], num_fewshot: int, **form: Any) -> Any:
    """lm-eval's prompt of a document with the most shots up to num_fewshot that leave it whole."""
    build = type(task).fewshot_context
    for shots in range(num_fewshot, -1, -1):
        prompt = build(task, doc, num_fewshot=shots, **form)
        # A list: a task whose choices stand before the text, each with a prompt of its own.
        if isinstance(prompt, list) or fits(prompt, task, doc, lm):
            break
    return prompt


def fits(prompt: str, task: Any, doc: dict[str, Any], lm: Any) -> bool:
    """Whether a prompt with each of its choices is no longer than what lm-eval reads of it."""
    endings = [task.config.target_delimiter + choice for choice in task.doc_to_choice(doc)]
    longest = max(sum(map(len, lm._encode_pair(prompt, ending))) for ending in endings)
    return longest <= lm.max_length + 1  # the last token is predicted, not read


@lru_cache(maxsize=4)
def task_manager(folder: str | None) -> Any:
    """lm-eval's index of its thousands of tasks; reading it takes seconds, so once a folder."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=folder)


def similar(name: str, known: list[str]) -> list[str]:
    """A few known names that begin alike: lm-eval has thousands."""
    return [other for other in known if other[:3] == name[:3]][:20] or ["mmlu", "arc_easy"]


def flatten_tasks(nested: dict[Any, Any]) -> dict[str, Any]:
    """The leaf tasks of lm-eval's nested groups, by name."""
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        flat |= flatten_tasks(value) if isinstance(value, dict) else {str(name): value}
    return flat

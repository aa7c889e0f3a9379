"""The fingerprint of a run: what identifies it, and what it must share with others.

Not covered: comparing fingerprints (studylib.schema.records), code and machine
(studylib.metering).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from studylib.metering.code_files import code_sha256
from studylib.metering.environment import device_name
from studylib.planning.stale import hash_question_folder, held_out_sha256, question_sources
from studylib.schema.measures import held_out_part
from studylib.schema.records import LoadBlock, Scalar
from studylib.schema.settings import TrainSettings
from studylib.scoring.evaluate import hash_column
from studylib.scoring.held_out import hash_held_out

if TYPE_CHECKING:
    from studylib.training.run import Run


def spell_switches(recipe: TrainSettings, attention: str) -> str:
    """What a recipe chose for speed and memory, in one line; the attention that was used."""
    words = [attention, f"{recipe.loss} loss", recipe.optimizer]
    flags = ("master_weights", "compile", "tf32", "checkpointing")
    return ", ".join([*words, *(name for name in flags if getattr(recipe, name))])


def spell_packing(load: LoadBlock | None) -> str | None:
    """How the examples of one row were read."""
    if load is None:
        return None
    return "packed" if load.packing_reason is None else "one by one"


def fingerprint(run: Run) -> dict[str, Scalar]:
    """What identifies a run's data, questions, recipe, model, code and device, one level deep."""
    spec, data, items = run.spec, run.data, run.items
    recipe, asked = spec.train, spec.evaluate
    used = (run.load_block and run.load_block.attention) or recipe.attention
    marks: dict[str, Scalar] = {
        "code.sha256": code_sha256(),
        "device.name": device_name(),
        "model.name": spec.model,
        "method.row": spec.method.kind.mark,
        "model.sha256": run.load_block.model_sha256 if run.load_block else None,
        "evaluate.source": asked.questions,
        "evaluate.scoring": asked.scoring,
        "evaluate.shots": asked.shots,
        "evaluate.precision": "float32 log-softmax",
    }
    for key, source in question_sources(asked):
        marks[key] = hash_question_folder(source, asked)
    if items is not None:
        # A quantized run asks everything twice, of other weights: what was asked is the same.
        asked_once = items[items["weights"] == items["weights"].iloc[0]]
        marks["evaluate.items_sha256"] = hash_column(asked_once, ["task", "item"])
        marks["evaluate.prompt"] = hash_column(asked_once, ["task", "prompt_sha256"])
        marks["evaluate.weights"] = run.weights_scored
    if run.scored is not None and run.scored.held_out is not None:
        marks["held_out.part"] = held_out_part(asked)
        marks["held_out.sha256"] = held_out_sha256(spec.data, asked)
        marks["held_out.items_sha256"] = hash_held_out(run.scored.held_out.items)
        marks["evaluate.weights"] = run.weights_scored
    if data is not None:
        marks |= {
            "data.source": spec.data.source,
            "data.template": data.template,
            "data.sha256": data.sha256,
            "data.order_sha256": data.order_sha256,
            "data.tokens_seen": data.tokens_seen,
            "data.packing": spell_packing(run.load_block),
            "recipe.steps": recipe.steps,
            "recipe.seq_len": recipe.seq_len,
            "recipe.batch_tokens": recipe.seq_len * recipe.micro_batch * recipe.accumulation,
            "recipe.schedule": f"{recipe.schedule}, warm-up {recipe.warmup_share:g}",
            "recipe.weight_decay": recipe.weight_decay,
            "recipe.max_grad_norm": recipe.max_grad_norm,
            "recipe.dtype": recipe.dtype,
            "recipe.switches": spell_switches(recipe, used),
            "recipe.cards": spec.gpus,
            "recipe.sharding": spec.hardware.sharding if spec.gpus > 1 else "none",
        }
    return marks

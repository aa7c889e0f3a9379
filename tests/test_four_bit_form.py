"""A record says how its base is stored, and a merge that fails costs only the merged score."""

from __future__ import annotations

import pytest
from families import save_family
from small_runs import small_run

from studylib.modelling import models
from studylib.modelling.merging import MergeFailed
from studylib.training import four_bit_form
from studylib.training.four_bit_form import MERGED
from studylib.training.run import Run


def spec_of(family, folder):
    data = {"source": "almanac:new", "template": "plain", "facts": 20}
    asked = {"questions": "almanac:new", "scoring": "text", "shots": 0, "limit": 1}
    model = f"path:{save_family(family, folder / family)}"
    return small_run(model, "qlora", 5e-3, data=data, evaluate=asked, steps=2, seq_len=64,
                     accumulation=1)  # fmt: skip


def evaluated(family, tmp_path):
    run = Run(spec_of(family, tmp_path), tmp_path / "run")
    run.load()
    run.train()
    run.evaluate()
    run.meter.__exit__(None, None, None)
    return run


def test_a_gpt2_is_scored_merged_and_the_record_says_how_near_the_two_forms_are(tmp_path):
    run = evaluated("gpt2", tmp_path)
    assert run.load_block.weights_dtype == "nf4" and run.load_block.four_bit_share > 0.97
    assert 0.08 < run.load_block.four_bit_error < 0.1
    assert [row.layer for row in run.load_block.reached] == [
        "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"
    ]  # fmt: skip
    forms = [score.weights for score in run.evaluate_block.scores]
    assert forms == ["4-bit base with adapter", MERGED]
    assert 0 < run.evaluate_block.merge_difference < 0.2
    assert run.evaluate_block.reason is None


def test_a_base_of_experts_is_not_called_4_bit(tmp_path):
    run = evaluated("mixtral", tmp_path)
    assert run.load_block.weights_dtype == "nf4 (11 % of the weights outside embeddings)"
    assert run.weights_scored == run.evaluate_block.scores[0].weights
    assert run.weights_scored == "base 11 % in 4 bits with adapter"


@pytest.mark.parametrize("fault", ["not the same", "no room"])
def test_a_merge_that_fails_keeps_the_score_of_the_4_bit_form(tmp_path, monkeypatch, fault):
    if fault == "no room":

        def lay_over(plain, quantized):
            raise MemoryError("no room")
    else:

        def lay_over(plain, quantized):
            """Lays nothing over: the adapter lands on weights that it was not trained on."""

    monkeypatch.setattr(models, "overwrite_with_four_bit", lay_over)
    run = evaluated("gpt2", tmp_path)
    block = run.evaluate_block
    assert run.status == "complete"
    assert [score.weights for score in block.scores] == ["4-bit base with adapter"]
    assert block.reason.startswith("merged form not possible: ")
    assert ("no room" in block.reason) == (fault == "no room")
    assert block.merge_difference is None
    assert set(run.items["weights"]) == {"4-bit base with adapter"}


def test_what_peft_cannot_merge_is_a_failed_merge_and_a_bug_is_none(tmp_path, monkeypatch):
    spec = spec_of("gpt2", tmp_path)

    def fail(error):
        def merge(*_):
            raise error

        monkeypatch.setattr(four_bit_form, "merge_into_bf16", merge)
        return four_bit_form.score_merged(spec, None, None, tmp_path)

    answers, fields = fail(MergeFailed("x", "why"))
    assert answers is None and "x: why" in fields["reason"]
    with pytest.raises(RuntimeError, match="bug"):
        fail(RuntimeError("bug"))

"""What an adapter reaches is counted on the model, and what it cannot reach is refused with the
cause."""

from __future__ import annotations

import pytest
import torch
from families import family_config, save_family
from record_factory import Factory, make_spec
from transformers import AutoModelForCausalLM

from studylib.checking.zoo import tiny_config
from studylib.core.errors import StudyError, Unfit
from studylib.forecasting.extent import tell_extent, tell_extents
from studylib.forecasting.prospects import foresee_runs
from studylib.modelling.methods import attach, reach
from studylib.modelling.reach import untrained
from studylib.modelling.skeleton import build_meta
from studylib.reporting.appendices import track_details
from studylib.reporting.blocks import to_markdown
from studylib.reporting.cells import method_notes, name_method
from studylib.reporting.study import read_study
from studylib.reporting.summary import summarise_study
from studylib.reporting.tables import headline_table
from studylib.schema.extent_words import tell_reach
from studylib.schema.profile import LoraSettings, parse_method
from studylib.schema.records import Reached


def skeleton(family, method="lora", **lora):
    settings = parse_method(method, LoraSettings(rank=4, **lora))
    return build_meta(family_config(family), settings, "fp32", "sdpa")


def rows(model):
    return {row.layer: (row.params, row.adapted, row.rank) for row in reach(model)}


def test_all_linear_on_a_llama_reaches_every_matrix_but_embeddings_and_head():
    small, whole, mlp = 2 * 64 * 32, 2 * 64 * 64, 2 * 64 * 128
    sizes = {"q": whole, "k": small, "v": small, "o": whole, "gate": mlp, "up": mlp, "down": mlp}
    expected = {
        f"{'mlp' if name in ('gate', 'up', 'down') else 'self_attn'}.{name}_proj": (n, n, 4)
        for name, n in sizes.items()
    }
    assert rows(skeleton("llama")) == rows(skeleton("llama", "qlora")) == expected
    assert reach(skeleton("llama", "full")) == ()


def test_named_targets_reach_what_they_name_and_the_share_is_said():
    model = skeleton("llama", targets=("q_proj", "v_proj"))
    total, adapted = (sum(getattr(r, key) for r in reach(model)) for key in ("params", "adapted"))
    assert (total, adapted) == (73_728, 8_192 + 4_096)
    words = tell_reach("LoRA r=4", reach(model), 4)
    assert words == (
        "LoRA r=4 reaches 16 % of the linear weights: not self_attn.k_proj, self_attn.o_proj, "
        "mlp.gate_proj, mlp.up_proj and 1 more kinds"
    )
    assert tell_reach("LoRA r=4", reach(skeleton("llama")), 4) == ""


def test_all_linear_on_a_mixture_of_experts_is_what_peft_makes_of_it():
    """One tensor holds gate and up of every expert, at twice the rank; the router has an adapter,
    plain and shared MLPs have none."""
    experts = rows(skeleton("mixtral"))
    assert experts["mlp.experts.gate_up_proj"] == (2 * 4 * 2 * 64 * 128,) * 2 + (8,)
    assert experts["mlp.experts.down_proj"] == (2 * 4 * 64 * 128,) * 2 + (4,)
    assert experts["mlp.gate"] == (2 * 4 * 64,) * 2 + (4,)
    mixed = rows(skeleton("deepseek_v3", "qlora"))
    left = {layer for layer, (_, adapted, _) in mixed.items() if not adapted}
    assert left == {
        f"mlp.{part}{name}_proj" for part in ("", "shared_experts.") for name in ("gate", "up",
                                                                                  "down")
    }  # fmt: skip
    assert "rank 8 on mlp.experts.gate_up_proj" in tell_reach("LoRA", reach(skeleton("mixtral")), 4)


def test_what_is_reached_is_what_trains():
    """The adapters' own parameters, by hand from the rows: rank × (in + out) of each module."""
    model = skeleton("llama", targets=("q_proj", "down_proj"))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == 2 * 4 * (64 + 64) + 2 * 4 * (128 + 64)
    assert {name for name, row in rows(model).items() if row[1]} == {
        "self_attn.q_proj", "mlp.down_proj"
    }  # fmt: skip


# Refusals


@pytest.mark.parametrize("unknown", ["qproj", ".*q_proj", "mlp.q_proj", "roj"])
def test_a_target_that_matches_nothing_is_refused_though_others_match(unknown):
    for targets in ((unknown, "v_proj"), (unknown,)):
        with pytest.raises(Unfit, match="no module of this model is named ") as caught:
            skeleton("llama", targets=targets)
        assert unknown in caught.value.rule and "q_proj" in caught.value.remedy


def test_names_of_experts_that_peft_knows_by_their_old_names_are_no_mistake():
    reached = rows(skeleton("mixtral", targets=("q_proj", "w1", "w2", "w3")))
    assert reached["mlp.experts.gate_up_proj"][1] > 0 == reached["self_attn.k_proj"][1]


@pytest.mark.parametrize(("targets", "words"), [("q_proj", "patterns are not read"),
                                                (".*_proj", "patterns are not read"),
                                                ((), "names no module")])  # fmt: skip
def test_targets_that_are_no_list_of_names_are_refused_in_a_profile(targets, words):
    with pytest.raises(ValueError, match=words):
        LoraSettings(targets=targets)


def test_a_family_whose_adapter_peft_forbids_is_refused_with_pefts_cause():
    with pytest.raises(Unfit) as caught:
        skeleton("falcon_h1")
    assert "lora.targets =" not in caught.value.value
    assert "incompatible with Mamba-based models" in caught.value.rule
    assert "in_proj" in caught.value.remedy and "out_proj" not in caught.value.remedy
    assert reach(skeleton("falcon_h1", targets=("q_proj", "in_proj")))


def test_a_router_that_gives_two_tensors_is_refused_before_its_first_step():
    with pytest.raises(Unfit, match=r"router .* does not map one row to one row") as caught:
        skeleton("llama4_text")
    assert "router" not in caught.value.remedy
    model = skeleton("llama4_text", targets=("q_proj", "gate_proj"))
    assert rows(model)["feed_forward.router"][1] == 0


def test_a_fault_from_elsewhere_is_not_blamed_on_the_adapter(monkeypatch):
    def fail(*_, **__):
        raise ValueError("no such absmax")

    monkeypatch.setattr("peft.tuners.lora.layer.LoraLayer.reset_lora_parameters", fail)
    with pytest.raises(ValueError, match="no such absmax") as caught:
        skeleton("llama")
    assert not isinstance(caught.value, StudyError)


# Plan and report


def spec_of(folder, method, **lora):
    spec = make_spec(method, f"path:{folder}")
    settings = parse_method(method, LoraSettings(rank=4, **lora))
    return spec.model_copy(update={"method": settings})


def test_a_plan_refuses_what_no_run_of_could_end(tmp_path):
    falcon = save_family("falcon", tmp_path / "falcon")
    with pytest.raises(Unfit, match="4-bit base of falcon"):
        tell_extents([spec_of(falcon, "lora"), spec_of(falcon, "qlora")])
    llama = save_family("llama", tmp_path / "llama")
    with pytest.raises(Unfit, match="no module of this model is named nothing"):
        foresee_runs([spec_of(llama, "lora", targets=("q_proj", "nothing"))])


def test_a_plan_says_what_a_methods_name_does_not(tmp_path):
    mixtral = save_family("mixtral", tmp_path / "mixtral")
    base, ranks = tell_extent(spec_of(mixtral, "qlora"))
    assert base.startswith("QLoRA r=4: 11 % of the base's weights outside embeddings are in 4 bits")
    assert ranks == "QLoRA r=4: rank 8 on mlp.experts.gate_up_proj"
    assert tell_extent(spec_of(save_family("llama", tmp_path / "llama"), "qlora")) == []
    assert tell_extents([spec_of(tmp_path / "nothing", "qlora")]) == [], "no skeleton, nothing said"


class MixedFactory(Factory):
    """Records of a base that is 11 % in 4 bits, an adapter that leaves MLPs out, no merged form."""

    share = 0.1107

    def load(self, spec):
        block = super().load(spec)
        if not spec.method.kind.adapter:
            return block
        reached = (
            Reached(layer="self_attn.q_proj", params=600, adapted=600, rank=16),
            Reached(layer="mlp.down_proj", params=400, adapted=0),
        )
        share = self.share if spec.method.kind.quantized else None
        return block.model_copy(update={"reached": reached, "four_bit_share": share})

    def evaluate(self, frames):
        block = super().evaluate(frames)
        if "4-bit" not in frames[0]["weights"].iloc[0]:
            return block
        return block.model_copy(update={"reason": "merged form not possible: x: why. Do that."})


def test_a_report_says_what_a_methods_name_does_not(tmp_path):
    folder = MixedFactory(tmp_path / "s").study(models=("ladder:0.4m",))
    summary = summarise_study(read_study(folder))
    comparisons = summary.comparisons
    assert method_notes(comparisons) == [
        "At ladder:0.4m LoRA r=16 reaches 60 % of the linear weights: not mlp.down_proj.",
        "At ladder:0.4m QLoRA r=16: 11 % of the base's weights outside embeddings are in 4 bits, "
        "the others stay in 16 or 32, so its memory is not that of a 4-bit model.",
        "At ladder:0.4m QLoRA r=16 reaches 60 % of the linear weights: not mlp.down_proj.",
        "At ladder:0.4m QLoRA r=16, merged form not possible: x: why. Do that.",
    ]
    methods = [row[1] for row in headline_table(comparisons).rows]
    assert methods == ["base", "full", "LoRA r=16", "QLoRA r=16 (11 % in 4 bits)"]
    report = to_markdown(track_details(summary, "main", "", []))
    assert all(note in report for note in method_notes(comparisons))
    assert "all linear" not in report


def test_a_report_of_whole_bases_and_adapters_says_nothing_more(tmp_path):
    comparisons = summarise_study(read_study(Factory(tmp_path / "s").study(seeds=(0,)))).comparisons
    assert method_notes(comparisons) == []
    assert {name_method(row) for row in comparisons[0].rows} == {
        "base", "full", "LoRA r=16", "QLoRA r=16"
    }  # fmt: skip


def test_an_adapter_that_no_gradient_reaches_is_named_and_a_trained_one_is_not():
    """Jamba multiplies by the weight of its dt_proj without calling the layer."""
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_config(tiny_config("jamba"))
    model = attach(plain, parse_method("lora", LoraSettings(rank=4)), 0)
    assert {"mamba.dt_proj", "mamba.in_proj"} <= set(untrained(model)), "before a training all are"
    ids = torch.arange(3, 15)[None]
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad
    assert untrained(model) == ("mamba.dt_proj",)

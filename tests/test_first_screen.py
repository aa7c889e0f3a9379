"""The first screen: advice and verdicts follow the records, pretrained models before toys, and no
toy refutes what the article says of a large model."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from record_factory import Factory, make_spec

from studylib.core.verdicts import Measured
from studylib.reporting.article_table import best_findings, claim_rows, join_verdicts, settle_part
from studylib.reporting.blocks import Items, Picture, Table, to_markdown
from studylib.reporting.claims import Finding, Place, evaluate_claims, read_claims
from studylib.reporting.compose import first_screen
from studylib.reporting.decision import draw_decision
from studylib.reporting.evidence_kinds import kind_of_model, model_words, rank_learning
from studylib.reporting.glossary import enough_rule, enough_words, read_article, word_link
from studylib.reporting.kept import best_evidence, read_kept
from studylib.reporting.study import read_study
from studylib.reporting.summary import Summary, summarise_study
from studylib.reporting.team_advice import advise_teams, grade_kept, tell_not_done

ROOT = Path(__file__).parents[1]
REAL = "path:models/real-135m"
MOST_BYTES = 36 * 1024


def made(folder: Path, model: str, items: int = 320, seeds: int = 3, **known: float) -> Summary:
    """A study of one model: each method's share of right answers; the base guesses."""
    factory = Factory(folder, items=items)
    factory.add(make_spec("base", model), knows=0.25)
    for method, share in known.items():
        for seed in range(seeds):
            factory.add(make_spec(method, model, seed), knows=share)
    return summarise_study(read_study(folder, planned=()))


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Summary:
    folder = tmp_path_factory.mktemp("t") / "toy"
    return made(folder, "ladder:1.4m", full=0.85, lora=0.45, qlora=0.45)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Summary:
    folder = tmp_path_factory.mktemp("r") / "real"
    return made(folder, REAL, full=0.75, lora=0.74, qlora=0.5)


# Which evidence speaks ---------------------------------------------------------------------------


def test_a_pretrained_model_outranks_a_larger_toy_and_random_weights_say_nothing() -> None:
    kinds = [
        kind_of_model(m)
        for m in ("hub:a/b", "path:x", "gguf:f", "pypi:a==1", "shape:x", "ladder:x")
    ]
    assert kinds == ["pretrained"] * 4 + ["random", "toy"]
    order = [("shape:Llama-2-13B", 13 * 10**9), ("ladder:60m", 6 * 10**7), ("hub:a/b", 10**6)]
    assert sorted(order, key=lambda model: rank_learning(*model)) == order


def test_the_best_evidence_is_the_pretrained_models_in_whatever_order(toy, real) -> None:
    for studies in ([toy, real], [real, toy]):
        assert [c.model for c in best_evidence(studies)] == [REAL]
        findings = evaluate_claims(studies)
        said = advise_teams(studies, findings)
        assert "real-135m" in said.small and "toy" not in said.small
        rows = {row.claim: row for row in claim_rows(findings)}
        assert "real-135m" in rows["C8"].how and "toy" not in rows["C8"].how
    assert [c.model for c in best_evidence([toy])] == ["ladder:1.4m"]


def test_shares_are_of_full_fine_tunings_gain(real) -> None:
    [comparison] = best_evidence([real])
    full, base = comparison.row("full"), comparison.row("base")
    kept = {one.method.name: one for one in read_kept(comparison)}
    assert list(kept) == ["full", "lora", "qlora"] and kept["full"].share == 1
    gained = comparison.row("lora").accuracy.value - base.accuracy.value
    assert kept["lora"].share == pytest.approx(gained / (full.accuracy.value - base.accuracy.value))
    assert kept["lora"].low < kept["lora"].share < kept["lora"].high
    assert 0.9 < kept["lora"].memory < 1


def test_nothing_is_kept_of_a_gain_that_is_not_clear(tmp_path: Path) -> None:
    study = made(tmp_path / "s", REAL, full=0.26, lora=0.26)
    assert best_evidence([study]) == [] and draw_decision([study]) is None
    assert "nothing was measured" in advise_teams([study], []).small


def test_the_picture_has_a_panel_a_track_and_a_point_a_method(real) -> None:
    [panel] = draw_decision([real]).axes
    names = {text.get_text() for text in panel.texts}
    assert {"full", "LoRA r=16", "QLoRA r=16"} <= names
    assert "real-135m" in panel.get_title(loc="left")


# Advice ------------------------------------------------------------------------------------------


def small(folder: Path, **known: float) -> str:
    study = made(folder, REAL, **known)
    return advise_teams([study], []).small


def test_advice_on_a_small_change_follows_what_was_kept(tmp_path: Path) -> None:
    alone = small(tmp_path / "a", full=0.6, lora=0.9)
    beside = small(tmp_path / "e", full=0.6, lora=0.9, qlora=0.3)
    assert "use LoRA." in alone and "use LoRA." in beside
    assert alone.split(" of full")[0] == beside.split(" of full")[0]  # QLoRA's share is not LoRA's
    assert "start with LoRA or QLoRA" in small(tmp_path / "b", full=0.9, lora=0.7, qlora=0.72)
    assert "use full fine-tuning." in small(tmp_path / "c", full=0.9, lora=0.3)
    once = advise_teams([made(tmp_path / "d", REAL, 32, full=0.75, lora=0.72)], []).small
    assert "too few to tell" in once


def test_advice_on_a_new_language_follows_what_was_kept(tmp_path: Path) -> None:
    def deep(name: str, lora: float) -> str:
        factory = Factory(tmp_path / name)
        factory.add(make_spec("base", track="language"), knows=0.25)
        for seed in range(3):
            factory.add(make_spec("full", seed=seed, track="language"), knows=0.7)
            factory.add(make_spec("lora", seed=seed, track="language"), knows=lora)
        return advise_teams([summarise_study(read_study(factory.folder, planned=()))], []).deep

    assert "plan for full fine-tuning" in deep("far", 0.3)
    assert "LoRA was [enough]" in deep("near", 0.95)
    assert "nothing was measured" in advise_teams([], []).deep


def test_enough_in_few_seeds_is_said_to_be_no_more_than_that(tmp_path: Path) -> None:
    rule = enough_rule()
    assert f"{100 * rule.share:g} %" in enough_words() and f"{rule.seeds} seeds" in enough_words()
    once = made(tmp_path / "one", REAL, seeds=1, full=0.6, lora=0.9)
    [kept] = [k for k in read_kept(once.comparisons[0]) if not k.is_full]
    assert kept.seeds == 1 and kept.low > rule.share
    assert (
        grade_kept([kept]) == "once" and grade_kept([replace(kept, seeds=rule.seeds)]) == "enough"
    )
    said = advise_teams([once], []).small
    assert "use LoRA" not in said and "one seed)" in said
    assert "seed" not in advise_teams([made(tmp_path / "all", REAL, full=0.6, lora=0.9)], []).small
    [panel] = draw_decision([once]).axes
    assert panel.get_title(loc="left").startswith("a small change (main), one seed")


def test_first_screen_says_why_a_claim_is_not_known_yet(tmp_path: Path) -> None:
    factory = Factory(tmp_path / "once")
    factory.add(make_spec("base", REAL), knows=0.25)
    for method in ("full", "lora", "qlora"):
        spec = make_spec(method, REAL)
        source = "tuned: best of 3, seed 1000, at the grid's edge (full.json)"
        edge = {"learning_rate_source": source} if method == "full" else {}
        factory.add(spec.model_copy(update=edge), knows=0.7)
    findings = evaluate_claims([summarise_study(read_study(factory.folder, planned=()))])
    rows = {row.claim: row for row in claim_rows(findings)}
    assert "one seed" in rows["C4"].found and "one seed" in rows["C8"].found
    for claim in ("C4", "C8"):
        assert rows[claim].verdict == "not known yet"
        assert rows[claim].reason.startswith("too few seeds, and the best learning rate of full ")
    cautions = [f.cautions for f in findings if f.claim == "C8" and f.measured]
    edge = "the best learning rate of full lies at its grid's edge"
    assert cautions and all(words == ["one seed", edge] for words in cautions)


def test_a_gap_that_full_fine_tuning_did_not_move_is_told_as_such(tmp_path: Path) -> None:
    study = made(tmp_path / "s", REAL, full=0.26, lora=0.26)
    row = {row.claim: row for row in claim_rows(evaluate_claims([study]))}["C4"]
    comparison = study.comparisons[0]
    ends = [f"{100 * comparison.row(m).accuracy.value:.1f} %" for m in ("base", "full")]
    assert f"did not clearly move it ({' to '.join(ends)})" in row.found


def test_what_was_not_done_is_said(toy, real) -> None:
    assert "1 toy model alone" in advise_teams([toy], []).not_done
    told = advise_teams([toy, real], []).not_done
    assert "no 13B model" in told and "real-135m" in told and "toy" not in told


def test_memory_advice_takes_what_was_measured_before_a_forecast() -> None:
    def found(part: str, size: float, got: str, at: Place | None) -> Finding:
        return Finding("C2", part, "", "", "", f"{got} x", "differs", "x", "",
                       Measured(size, "GB"), at)  # fmt: skip

    card = Place("shape:Llama-2-13B", 13 * 10**9, "NVIDIA X", "1 × 2,048")
    findings = [found("lora", 29.1, "measured", card), found("lora", 31, "forecast", None),
                found("qlora", 10.2, "forecast", None), found("qlora", 19, "forecast", None),
                ]  # fmt: skip
    told = advise_teams([], findings).memory
    assert "29 GB with LoRA" in told and "10 GB to 19 GB with QLoRA" in told
    assert "31" not in told
    assert "one NVIDIA X, or forecast" in told


# Verdicts ----------------------------------------------------------------------------------------

TOY = Place("ladder:1.4m", 1_400_000, "CPU")
SMALL = Place(REAL, 135_000_000, "CPU")
LARGE = Place("hub:a/llama-13b", 13_000_000_000, "GPU")


def finding(verdict: str, at: Place | None = None, got: str = "measured") -> Finding:
    return Finding("C4", "lora", "", "", "", got, verdict, "x", "", Measured(1.0, "pp"), at)


@pytest.mark.parametrize(
    ("findings", "verdict"),
    [
        ([finding("differs", TOY)], "not known yet"),
        ([finding("reproduced", TOY)], "not known yet"),
        ([finding("differs", SMALL)], "depends"),
        ([finding("reproduced", SMALL)], "holds"),
        ([finding("differs", LARGE)], "does not hold"),
        ([finding("inconclusive", LARGE)], "not known yet"),
        ([finding("differs", LARGE), finding("reproduced", LARGE)], "depends"),
        ([finding("differs", LARGE), finding("inconclusive", LARGE)], "depends"),
        ([finding("reproduced", LARGE), finding("inconclusive", LARGE)], "holds"),
        ([finding("inconclusive", None, "counted")], "depends"),
        ([finding("not comparable", LARGE)], "not known yet"),
        ([], "not known yet"),
    ],
)
def test_a_part_is_settled_by_its_findings_and_by_no_toy(findings, verdict) -> None:
    sized = next(part for part in read_claims()["C4"]["parts"] if part["key"] == "lora")
    assert sized["sized"] and settle_part(sized, findings) == verdict


def test_a_part_without_a_size_can_be_settled_by_a_toy() -> None:
    swap = next(part for part in read_claims()["C7"]["parts"] if part["key"] == "hot-swap")
    assert settle_part(swap, [finding("reproduced", TOY)]) == "holds"


def test_the_best_model_alone_speaks_of_what_is_learned() -> None:
    part = read_claims()["C4"]["parts"][0]
    found = [finding("differs", TOY), finding("reproduced", SMALL), finding("differs", LARGE)]
    assert best_findings(part, found) == found[2:]


@pytest.mark.parametrize(
    ("parts", "verdict"),
    [
        (["holds", "holds"], "holds"),
        (["holds", "not known yet"], "not known yet"),
        (["holds", "does not hold"], "depends"),
        (["does not hold", "not known yet"], "depends"),
        (["does not hold", "does not hold"], "does not hold"),
    ],
)
def test_a_claim_is_as_settled_as_its_parts(parts: list[str], verdict: str) -> None:
    assert join_verdicts(parts) == verdict


def test_every_claim_has_a_row_in_few_words_and_what_decides_it(toy) -> None:
    rows = claim_rows(evaluate_claims([toy]))
    assert [row.claim for row in rows] == list(read_claims())
    assert all(row.says and row.found and row.how for row in rows)
    assert [row.verdict for row in rows if row.reason] == ["depends"] * sum(
        row.verdict == "depends" for row in rows
    )
    learned = {row.claim: row for row in rows}
    for claim in ("C4", "C8"):
        assert learned[claim].verdict == "not known yet"
        assert learned[claim].found.startswith("a toy model: ")


# The screen --------------------------------------------------------------------------------------


def test_the_screen_names_the_article_and_tells_what_toys_are(toy, real) -> None:
    blocks = first_screen([toy], evaluate_claims([toy]), "p.svg")
    kinds = [type(block) for block in blocks]
    assert kinds.index(Items) < kinds.index(Table) < kinds.index(Picture)
    text, article = to_markdown(blocks), read_article()
    assert article["title"] in text and article["publisher"] in text
    assert "`ladder:1.4m` (1.42M parameters)" in text
    assert "seen in one [toy model](REPORT.md#toy-model) only" in text
    assert "Toy models" not in to_markdown(first_screen([real], [], None))


def test_the_shipped_report_and_its_answer_are_short() -> None:
    report = (ROOT / "REPORT.md").read_bytes()
    assert len(report) <= MOST_BYTES
    answer = report.decode().partition("## The answer\n")[2].partition("\n### ")[0]
    answer = re.sub(r"\]\([^)]*\)", "]", answer)
    assert len(answer.split()) <= 150
    assert len(re.findall(r"\d[\d,.]*", answer)) <= 20 + 3  # the numbers of the list besides


def test_every_link_to_a_word_leads_to_its_own_heading() -> None:
    """By GitHub's rule for a heading's name: lower case, no punctuation, hyphens for spaces."""
    report = (ROOT / "REPORT.md").read_text()
    heads = re.findall(r"^#+ (.*)$", report, re.M)
    names = {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}
    linked = set(re.findall(r"\(REPORT\.md#([^)]*)\)", report))
    assert {"enough", "random-weights"} <= linked <= names
    with pytest.raises(KeyError):
        word_link("no such word")


def test_models_are_told_in_words() -> None:
    assert model_words("ladder:1.4m", 1_414_464) == "a toy model of 1.41M parameters"
    assert model_words("shape:Llama-2-13B", None) == "Llama-2-13B, random weights"
    assert model_words("hub:meta/Llama-3-8B", 8 * 10**9) == "Llama-3-8B of 8.00B parameters"


def test_of_models_of_one_size_the_same_is_named_in_every_process() -> None:
    """Sets have another order in each process, and the same records give the same bytes."""
    models = [SimpleNamespace(model=f"hub:org/m{n}", total_params=10**8) for n in range(99)]
    told = tell_not_done([SimpleNamespace(comparisons=models)])  # type: ignore[list-item]
    assert "seen on m98 of 100M parameters" in told

"""Real weights, real instructions and real questions go through, QLoRA included."""

from __future__ import annotations

import json
from pathlib import Path

from studylib.schema.records import read_records

SUBJECTS = ("anatomy", "college_physics", "world_religions")


def cut_mmlu(source: Path, folder: Path) -> Path:
    """Three subjects of the real MMLU."""
    folder.mkdir()
    for name in ("test.jsonl", "dev.jsonl"):
        lines = (source / name).read_text(encoding="utf-8").split("\n")
        kept = [line for line in lines if line and json.loads(line)["subject"] in SUBJECTS]
        (folder / name).write_text("\n".join(kept), encoding="utf-8")
    return folder


def test_custom_study_of_a_real_checkpoint_reports_that_it_is_at_chance(shared, tmp_path, study):
    rows = json.loads((shared / "data" / "instruct" / "gsm8k_train.json").read_bytes())
    (tmp_path / "some.json").write_text(json.dumps(rows[:200]), encoding="utf-8")
    code, out, err = study(
        "reproduce", "--profile", "custom",
        "--model", f"path:{shared / 'models' / 'stories260k'}",
        "--data", tmp_path / "some.json",
        "--mmlu", cut_mmlu(shared / "data" / "mmlu", tmp_path / "mmlu"),
        "--steps", "2", "--limit", "2", "--methods", "qlora", "--results", tmp_path / "r",
        "--set", "train.accumulation=1",
    )  # fmt: skip
    assert code == 0, out + err
    [folder] = (tmp_path / "r").iterdir()
    base, qlora = read_records(folder / "runs")
    assert (base.run_id, qlora.run_id) == ("stories260k--base", "stories260k--qlora-r16--s0")
    assert base.load.total_params == 260_032
    assert qlora.load.weights_dtype == "nf4"
    for record in (base, qlora):
        score = record.evaluate.score("questions")
        assert (score.questions, set(score.by_subject)) == (6, set(SUBJECTS))
        assert record.evaluate.prompts_cut > 0, "5 shots do not fit its 512 positions"
    report = (folder / "REPORT.md").read_text(encoding="utf-8")
    assert "no accuracy is clearly better than guessing (25.0 %)" in report
    assert str(folder / "REPORT.md") in out

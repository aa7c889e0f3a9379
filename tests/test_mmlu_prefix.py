"""The benchmark of shared prefixes takes any model and several dtypes, one object each."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
benchmark = importlib.import_module("mmlu_prefix")
sys.path.pop(0)

SUBJECTS = ("sums", "birds", "towns")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Made-up questions in the form of the real ones."""
    folder = tmp_path_factory.mktemp("questions")
    for name, count in (("dev", 2), ("test", 4)):
        rows = [
            {"subject": subject, "question": f"In {subject} of {name}, what follows {i}?",
             "choices": [str(i + k) for k in range(1, 5)], "answer": i % 4}
            for subject in SUBJECTS for i in range(count)
        ]  # fmt: skip
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return folder


def run(data, capsys, *words):
    code = benchmark.main(["--data", str(data), "--shots", "2", "--rounds", "1",
                           "--batch-sizes", "1", "2", *words])  # fmt: skip
    return code, capsys.readouterr()


def objects(text):
    found, end, decoder = [], 0, json.JSONDecoder()
    while text[end:].strip():
        end += len(text[end:]) - len(text[end:].lstrip())
        value, end = decoder.raw_decode(text, end)
        found.append(value)
    return found


def test_each_dtype_gives_one_object_with_ratio_difference_and_changed_answers(data, capsys):
    code, said = run(data, capsys, "--model", "ladder:0.4m", "--dtype", "fp32", "bf16",
                     "--subjects", "3", "--limit", "3",
                     "--out", str(data / "out.json"))  # fmt: skip
    found = objects(said.out)
    assert json.loads((data / "out.json").read_text()) == found
    assert code == 0 and [one["dtype"] for one in found] == ["fp32", "bf16"]
    for one in found:
        assert one["items"] == 9 and one["time_ratio"] > 0 and one["fallback_reason"] is None
        assert one["stock_against_itself"]["items"] == 3
        assert f"{one['dtype']}: stock takes {one['time_ratio']:.2f} times" in said.err
    exact, rounded = found
    assert exact["answers_changed"] == 0
    assert exact["max_abs_loglikelihood_difference"] < 1e-4
    assert rounded["max_abs_loglikelihood_difference"] < 0.5


def test_without_options_the_models_are_as_they_were(data):
    model, tokenizer = benchmark.bring_in(benchmark.OWN_MODEL, "fp32", data, 8192, 4096)
    assert model.config.max_position_embeddings == 4096
    assert model.config.vocab_size == len(tokenizer)
    options = benchmark.read_options([])
    assert (options.dtype, options.subjects, options.rounds) == (["fp32"], 10, 2)


def test_random_weights_get_a_tokenizer_within_their_vocabulary(data):
    model, tokenizer = benchmark.bring_in("shape:Pythia-70M", "bf16", data, 400, 2048)
    assert len(tokenizer) <= 400 < model.config.vocab_size
    asked = tokenizer("In towns of test, what follows 3?\nA. 4\nAnswer: é")["input_ids"]
    assert min(asked) >= 0 and max(asked) < model.config.vocab_size
    assert {parameter.dtype for parameter in model.parameters()} == {benchmark.DTYPES["bf16"]}


@pytest.mark.parametrize(
    "words",
    [["--model", "ladder:9m"], ["--model", "shape:Pythia-70M", "--vocabulary", "258"]],
)
def test_bad_input_is_one_message_and_code_2(data, capsys, words):
    code, said = run(data, capsys, *words)
    assert code == 2 and said.out == "" and len(said.err.strip().splitlines()) == 1


def test_stock_takes_the_largest_batch_for_which_there_is_memory(monkeypatch, capsys):
    """A batch that was fastest on one subject may be too large for the longest prompts of all."""
    tried = []

    def compare(make_stock, *_):
        tried.append(make_stock())
        if tried[-1] > 8:
            raise benchmark.torch.OutOfMemoryError
        return "found"

    monkeypatch.setattr(benchmark, "compare_wrappers", compare)
    options = benchmark.read_options(["--batch-sizes", "1", "8", "16", "32"])
    found = benchmark.compare_where_it_fits(lambda size: lambda: size, None, {}, options, 16)
    assert found == (8, "found") and tried == [16, 8]
    assert "no memory for 16 prompts" in capsys.readouterr().err
    options.batch_sizes = [32]
    with pytest.raises(benchmark.torch.OutOfMemoryError):
        benchmark.compare_where_it_fits(lambda size: lambda: size, None, {}, options, 32)

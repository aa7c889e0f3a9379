"""What a hub may do to a study: pinned, broken off, refused, faulty, damaged, malicious, away.

A small hub on 127.0.0.1 (hub_server.py) stands in; no test asks any other.
"""

from __future__ import annotations

import json
import shutil
import socket

import pytest
from hub_server import HubServer
from test_notebooks import errors_and_noise

from studylib.core.errors import StudyError
from studylib.inputs import hub as hub_module
from studylib.inputs import sources
from studylib.inputs.almanac import ladder_folder
from studylib.inputs.examples import read_examples
from studylib.inputs.questions import MMLU_REVISION, check_questions
from studylib.inputs.sources import ask_model, fetch_model
from studylib.running.runner import run_notebook
from studylib.schema.profile import DataSettings, ModelRef

LADDER = {path.name: path.read_bytes() for path in ladder_folder("0.4m").iterdir()}
WEIGHTS = LADDER["model.safetensors"]
WAITS = hub_module.RETRY_WAITS_SECONDS
TOKEN = "hf_aSecretThatNoFileMayHold"
EXAMPLES = [{"instruction": f"What is {i} plus {i}?", "output": f"{2 * i}"} for i in range(24)]
EXAMPLES[3]["input"] = "Answer in digits."


def jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture
def hub():
    with HubServer() as server:
        server.add("study/ladder", LADDER, names={"main", "v1"})
        server.add("study/data", {"train.jsonl": jsonl(EXAMPLES)}, kind="datasets")
        yield server


def use_hub(monkeypatch, url, home):
    """Point this process to a hub at `url` and an empty cache. The variables are read at import."""
    from datasets import config
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(config, "HF_ENDPOINT", url)
    monkeypatch.setattr(config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", home / "datasets")
    monkeypatch.setattr(config, "HF_MODULES_CACHE", str(home / "modules"))
    monkeypatch.setattr(config, "DOWNLOADED_DATASETS_PATH", str(home / "downloads"))
    monkeypatch.setattr(hub_module, "RETRY_WAITS_SECONDS", (0.0, 0.0, 0.0))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def here(hub, monkeypatch, tmp_path):
    """This process uses the hub with an empty cache, in this folder."""
    use_hub(monkeypatch, hub.url, tmp_path)
    return tmp_path


def closed_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def refused(ref, rule, ask=fetch_model):
    with pytest.raises(StudyError, match=rule) as caught:
        ask(ModelRef.parse(ref))
    assert ref in caught.value.value
    assert caught.value.remedy
    return str(caught.value)


@pytest.mark.parametrize("named", [True, False])
def test_model_of_a_pinned_revision_has_the_served_weights_and_its_commit_is_known(
    hub, here, named
):
    import torch
    from safetensors.torch import load

    from studylib.modelling.models import load_model
    from studylib.schema.profile import MethodSettings

    pinned = hub.repositories["models", "study/ladder"]
    revision = "v1" if named else pinned.commit
    loaded = load_model(
        ModelRef.parse(f"hub:study/ladder@{revision}"), MethodSettings(name="base"), "fp32"
    )
    assert loaded.revision == pinned.commit and loaded.sha256 == f"commit {pinned.commit}"
    served, parameters = load(WEIGHTS), dict(loaded.model.named_parameters())
    for name, weight in served.items():
        torch.testing.assert_close(parameters[name].data, weight.float(), rtol=0, atol=0)
    assert len(served) == len(parameters)
    assert loaded.tokenizer.eos_token_id is not None
    assert not hub.asked(r"\.(bin|py|pt)")


def test_pinned_revision_stays_when_the_branch_moves_on(hub, here):
    old = hub.repositories["models", "study/ladder"]
    old.names = {"v1"}
    fetch_model(ModelRef.parse("hub:study/ladder@v1"))
    config = json.loads(LADDER["config.json"]) | {"bos_token_id": 1}
    moved = {**LADDER, "config.json": json.dumps(config).encode()}
    new = hub.add("study/ladder", moved)
    assert new.commit != old.commit
    assert fetch_model(ModelRef.parse("hub:study/ladder"))[1] == new.commit
    folder, commit = fetch_model(ModelRef.parse(f"hub:study/ladder@{old.commit}"))
    assert commit == old.commit
    assert (folder / "config.json").read_bytes() == LADDER["config.json"]


def test_download_that_breaks_off_goes_on_where_it_broke(hub, here, monkeypatch):
    from huggingface_hub import constants

    # A file of a real model is many chunks of 10 MB; the ladder's weights are not one.
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 50_000)
    hub.fail("GET /large/", break_after_bytes=500_123)
    folder, _ = fetch_model(ModelRef.parse("hub:study/ladder@v1"))
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert [had for _, had, _ in hub.asked("GET /large/")] == [None, "bytes=500000-"]


def test_download_that_breaks_off_again_and_again_is_one_message_and_the_rest_is_kept(
    hub, here, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    hub.fail("GET /large/", times=1000, break_after_bytes=10)
    refused("hub:study/ladder@v1", "the download broke off")
    hub.faults.clear()
    hub.requests.clear()
    assert fetch_model(ModelRef.parse("hub:study/ladder@v1"))
    assert len(hub.asked("GET .*/resolve/.*|GET /large/")) <= 2  # the redirect and the weights


@pytest.mark.parametrize("ask", [ask_model, fetch_model])
def test_gated_model_asks_for_its_licence_and_a_token(hub, here, monkeypatch, ask):
    hub.add("study/gated", LADDER, token=TOKEN, gated=True)
    for token in (None, "hf_ofSomebodyElse"):  # answered by 401 and by 403
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        said = refused("hub:study/gated", "registered readers only", ask)
        assert "licence" in said and "HF_TOKEN" in said
        assert token is None or token not in said
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    ask(ModelRef.parse("hub:study/gated"))


def test_token_that_the_hub_does_not_know_is_named_as_the_cause(hub, here, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.fail("/api/models/", status=401, message="Invalid credentials in Authorization header")
    said = refused("hub:study/ladder", r"the hub refuses it \(HTTP 401\)")
    assert "HF_TOKEN" in said and TOKEN not in said


@pytest.mark.parametrize("ask", [ask_model, fetch_model])
@pytest.mark.parametrize(
    "ref", ["hub:study/none", "hub:study/ladder@v9", "hub:study/ladder@" + "0" * 40]
)
def test_unknown_repository_or_revision_is_one_message(hub, here, ask, ref):
    refused(ref, "no such repository or revision", ask)


@pytest.mark.parametrize(
    ("place", "status"),
    [
        ("GET /api/models/study/ladder/rev", 500),
        ("GET /api/models/study/ladder/rev", 429),
        ("HEAD .*config.json", 503),
        ("GET /large/", 429),
        ("GET /large/", 500),
    ],
)
def test_fault_that_passes_is_asked_again(hub, here, place, status):
    fault = hub.fail(place, status=status)
    folder, _ = fetch_model(ModelRef.parse("hub:study/ladder@v1"))
    assert fault.times == 0
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize("place", ["/api/models/", "GET /large/"])
def test_fault_that_stays_is_one_message_and_its_number(hub, here, place):
    hub.fail(place, times=1000, status=500)
    refused("hub:study/ladder@v1", r"the hub has a fault \(HTTP 500\)")
    assert len(hub.asked(place)) <= 8


def test_hub_that_stalls_is_one_message(hub, here, monkeypatch):
    """It takes every question about a model and answers none."""
    monkeypatch.setattr(sources, "HUB_TIMEOUT_SECONDS", 0.2)
    fault = hub.fail("GET /api/models/", times=1000, stall=True)
    refused("hub:study/ladder@v1", "the hub cannot be reached|did not answer|timed out")
    assert 1 <= 1000 - fault.times <= 8


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_content_with_another_checksum_is_refused_and_does_not_stay(hub, here, name):
    hub.fail("GET /large/" if name == "model.safetensors" else "GET .*config.json", damage=True)
    said = refused("hub:study/ladder@v1", "another checksum than the hub announced")
    assert name in said
    folder, _ = fetch_model(ModelRef.parse("hub:study/ladder@v1"))
    assert (folder / name).read_bytes() == LADDER[name]


@pytest.mark.parametrize("extra", [b"more", b"x" * 100_000])
def test_content_of_another_length_is_refused_and_does_not_stay(hub, here, extra):
    hub.fail("GET /large/", extra=extra)
    refused("hub:study/ladder@v1", "longer or shorter than the hub announced")
    assert (
        fetch_model(ModelRef.parse("hub:study/ladder@v1"))[0] / "model.safetensors"
    ).stat().st_size == len(WEIGHTS)


def test_contents_are_checked_once_and_not_at_every_run(hub, here, monkeypatch):
    fetch_model(ModelRef.parse("hub:study/ladder@v1"))
    monkeypatch.setattr(hub_module, "has_hash", lambda *_: pytest.fail("it was read again"))
    fetch_model(ModelRef.parse("hub:study/ladder@v1"))


@pytest.mark.parametrize("ask", [ask_model, fetch_model])
def test_repository_of_pickles_alone_is_refused_and_no_pickle_is_downloaded(hub, here, ask):
    files = {name: c for name, c in LADDER.items() if name != "model.safetensors"}
    hub.add("study/pickled", {**files, "pytorch_model.bin": b"\x80\x04" + bytes(200_000)})
    assert "pickles" in refused("hub:study/pickled", "the repository has no safetensors", ask)
    assert not hub.asked("pytorch_model|/large/")


def test_pickles_and_copies_for_other_programs_stay_on_the_hub(hub, here):
    others = ("pytorch_model.bin", "consolidated.safetensors", "original/model.safetensors")
    hub.add("study/full", {**LADDER, **dict.fromkeys(others, b"not read")})
    folder, _ = fetch_model(ModelRef.parse("hub:study/full"))
    assert sorted(path.name for path in folder.iterdir()) == sorted(LADDER)
    assert not hub.asked("pytorch_model|consolidated|original")


def test_chat_template_in_a_file_of_its_own_comes_along(hub, here):
    from studylib.modelling.models import load_tokenizer

    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    hub.add("study/talks", {**LADDER, "chat_template.jinja": template.encode()})
    folder, _ = fetch_model(ModelRef.parse("hub:study/talks"))
    assert load_tokenizer(folder).chat_template == template


def test_checkpoint_without_its_shards_or_tokenizer_is_named(hub, here):
    bare = {name: c for name, c in LADDER.items() if not name.startswith("tokenizer")}
    hub.add("study/mute", bare)
    refused("hub:study/mute", "no tokenizer")
    index = {"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}
    half = {**LADDER, "model.safetensors.index.json": json.dumps(index).encode()}
    half["model-1-of-2.safetensors"] = half.pop("model.safetensors")
    hub.add("study/half", half)
    refused("hub:study/half", r"lack model-2-of-2\.safetensors")


@pytest.mark.parametrize("model_type", ["llama", "ladder-of-its-own"])
def test_code_that_comes_with_a_model_is_never_run(hub, here, model_type):
    from studylib.modelling.models import load_model
    from studylib.schema.profile import MethodSettings

    marker = here / "code-was-run"
    code = f"open({str(marker)!r}, 'w').close()\n"
    auto_map = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    config = json.loads(LADDER["config.json"]) | {"auto_map": auto_map, "model_type": model_type}
    files = {**LADDER, "config.json": json.dumps(config).encode(), "evil.py": code.encode()}
    hub.add("study/evil", files)
    ref, base = ModelRef.parse("hub:study/evil"), MethodSettings(name="base")
    if model_type == "llama":  # transformers' own code serves
        assert type(load_model(ref, base, "fp32").model).__module__.startswith("transformers.")
    else:
        with pytest.raises(StudyError, match="the configuration cannot be read"):
            load_model(ref, base, "fp32")
    assert not marker.exists()
    assert not hub.asked("evil.py")


def test_model_in_the_cache_serves_when_the_hub_is_away_and_a_pin_still_holds(
    hub, here, monkeypatch
):
    _, commit = fetch_model(ModelRef.parse("hub:study/ladder@v1"))
    hub.fail("/api/", times=1000, status=503)
    assert fetch_model(ModelRef.parse("hub:study/ladder@v1"))[1] == commit
    use_hub(monkeypatch, closed_port(), here)
    for revision in ("v1", commit):
        assert fetch_model(ModelRef.parse(f"hub:study/ladder@{revision}"))[1] == commit
        ask_model(ModelRef.parse(f"hub:study/ladder@{revision}"))
    refused("hub:study/ladder@v2", "the hub cannot be reached")


def test_configuration_alone_is_fetched_and_not_waited_for_when_the_hub_is_away(
    hub, here, monkeypatch
):
    from studylib.modelling.skeleton import config_folder

    ref = ModelRef.parse("hub:study/ladder@v1")
    assert (config_folder(ref) / "config.json").read_bytes() == LADDER["config.json"]
    assert not hub.asked("/large/")
    use_hub(monkeypatch, closed_port(), here)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: pytest.fail("it waits"))
    assert (config_folder(ref) / "config.json").read_bytes() == LADDER["config.json"]
    refused("hub:study/ladder@v2", "the hub cannot be reached", config_folder)


def read_all(*sources):
    """What read_examples gives for each source: examples or a message."""
    found = {}
    for source in sources:
        try:
            found[source] = list(read_examples(DataSettings(source=source)))
        except StudyError as error:
            found[source] = str(error)
    return found


def test_data_set_of_a_hub_gives_the_examples_of_its_file_or_one_message(
    hub, here, monkeypatch, capfd
):
    monkeypatch.setenv("HF_TOKEN", "hf_ofSomebodyElse")
    data = hub.repositories["datasets", "study/data"]
    hub.add("study/gated", data.files, kind="datasets", token=TOKEN, gated=True)
    hub.add("study/script", {"script.py": b"open('ran', 'w')"}, kind="datasets")
    hub.add("study/broken", {"train.jsonl": b'{"instruction": "a", "output": "b"}\n{"ins'},
            kind="datasets")  # fmt: skip
    # The types of columns are taken from the first 10 MB.
    wide = [{"instruction": "a", "output": i, "pad": "x" * 12_000} for i in range(900)]
    late = jsonl([*wide, {"instruction": "a", "output": "b"}])
    hub.add("study/changes", {"train.jsonl": late}, kind="datasets")
    more = jsonl([*wide, {"instruction": "a", "more": "b"}])
    hub.add("study/more", {"train.jsonl": more}, kind="datasets")
    hub.add("study/gaps", {"train.jsonl": jsonl([*EXAMPLES, {"instruction": "a"}])},
            kind="datasets")  # fmt: skip
    hub.add("study/columns", {"train.jsonl": jsonl([{"words": "a"}])}, kind="datasets")
    hub.add("study/tested", {"test.jsonl": jsonl(EXAMPLES)}, kind="datasets")
    hub.fail("/api/datasets/study/data", status=500)
    names = ("data", f"data@{data.commit}", "data@v9", "none", "gated", "script", "broken",
             "changes", "more", "gaps", "columns", "tested",
             "tested#test")  # fmt: skip
    found = read_all(*(f"hub:study/{name}" for name in names))
    expected = [{"input": "", **example} for example in EXAMPLES]
    assert found["hub:study/data"] == found[f"hub:study/data@{data.commit}"] == expected
    assert found["hub:study/gaps"] == found["hub:study/tested#test"] == expected
    for name, rule in (
        ("data@v9", "no such repository or revision"),
        ("none", "no such repository or revision"),
        ("gated", "registered readers only"),
        ("script", "gives no split `train`"),
        ("broken", "its rows cannot be read (JSON parse error"),
        ("changes", "its rows cannot be read (Failed to parse string"),
        ("changes", "as a scalar of type int64)"),
        ("more", "its rows cannot be read (Couldn't cast instruction: string output: int64"),
        ("more", "because column names don't match)"),
        ("columns", "no form is known with the keys words"),
        ("tested", "gives no split `train`"),
    ):
        assert rule in found[f"hub:study/{name}"], name
    assert "hf_ofSomebodyElse" not in "".join(capfd.readouterr()) + json.dumps(found)

    use_hub(monkeypatch, closed_port(), here)
    away = read_all("hub:study/data", "hub:study/other")
    assert away["hub:study/data"] == expected
    assert "the hub cannot be reached" in away["hub:study/other"]


def test_questions_of_a_hub_are_found_without_their_rows(hub, here, monkeypatch):
    hub.add("cais/mmlu", {"test.jsonl": b"{}"}, kind="datasets", names={MMLU_REVISION})
    check_questions("hub", shots=5)
    assert not hub.asked("GET .*/resolve/")
    hub.repositories.clear()
    with pytest.raises(StudyError, match="MMLU=hub: the hub has no such repository"):
        check_questions("hub", shots=5)
    use_hub(monkeypatch, closed_port(), here)
    with pytest.raises(StudyError, match="MMLU=hub: the hub cannot be reached"):
        check_questions("hub", shots=5)


@pytest.mark.parametrize("address", ["foo", "http://[", "http://127.0.0.1:99999", "file:///tmp"])
def test_address_that_is_none_is_one_message(monkeypatch, address):
    monkeypatch.setenv("HF_ENDPOINT", address)
    with pytest.raises(StudyError, match="no address of a hub") as caught:
        fetch_model(ModelRef.parse("hub:study/ladder"))
    assert caught.value.value == f"HF_ENDPOINT={address}"


def write_questions(folder):
    folder.mkdir()
    for name, count in (("dev", 2), ("test", 3)):
        rows = [
            {"subject": subject, "question": f"{name} {i} of {subject}?",
             "choices": ["one", "two", "three", "four"], "answer": i % 4}
            for subject in ("anatomy", "virology") for i in range(count)
        ]  # fmt: skip
        (folder / f"{name}.jsonl").write_bytes(jsonl(rows))
    return folder


def custom(tmp_path):
    words = ["--profile", "custom", "--model", "hub:study/ladder@v1", "--data", "hub:study/data"]
    words += ["--steps", "2", "--limit", "1", "--methods", "lora"]
    return [*words, "--mmlu", str(write_questions(tmp_path / "questions"))]


def test_hub_that_is_away_is_one_message_without_waiting_for_it(call, monkeypatch, tmp_path):
    use_hub(monkeypatch, closed_port(), tmp_path / "home")
    monkeypatch.setattr(hub_module, "RETRY_WAITS_SECONDS", WAITS)
    waits = []  # one retry of the hub's clients alone takes half a minute
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", waits.append)
    code, _, errors = call("reproduce", *custom(tmp_path))
    assert code == 2 and sum(waits) < 1
    assert errors.count("study: ") == 1 and "Traceback" not in errors
    assert "the hub cannot be reached" in errors
    assert not (tmp_path / "results").exists()


def test_notebook_on_ones_own_data_goes_from_a_hub_to_the_answer_and_keeps_no_token(
    hub, tmp_path, monkeypatch
):
    """The examples, the runs, the answer, the adapters; the commit on record, the token nowhere."""
    turns = (
        {"role": "user", "content": "{0} and {0}?"},
        {"role": "assistant", "content": "<i>{0}"},
    )
    talks = [[{**t, "content": t["content"].format(n)} for t in turns] for n in range(30)]
    rows = jsonl([{"messages": talk} for talk in talks])
    data = hub.add("study/talks", {"train.jsonl": rows}, kind="datasets")
    repository = hub.repositories["models", "study/ladder"]
    repository.token, repository.gated = TOKEN, True
    for name, value in (("HF_ENDPOINT", hub.url), ("HF_HOME", str(tmp_path / "home")),
                        ("HF_HUB_OFFLINE", "0"), ("HF_TOKEN", TOKEN)):  # fmt: skip
        monkeypatch.setenv(name, value)
    changes = ["train.seq_len=128", "train.accumulation=1", "data.held_out=4"]
    results, executed = tmp_path / "r", tmp_path / "out.ipynb"
    parameters = {"MODEL": "hub:study/ladder", "DATA": "hub:study/talks", "RESULTS": str(results),
                  "CHANGES": changes, "STEPS": 2, "METHODS": "full,lora",
                  "TUNE": False}  # fmt: skip
    run_notebook("05_my_data.ipynb", executed, parameters)
    assert errors_and_noise(executed) == []
    text = executed.read_text(encoding="utf-8")
    assert "chat messages, 22 conversations" in text
    assert "Examples are shown once hub:study/ladder is here" in text
    assert "3 runs finished, 0 failed" in text and "image/png" in text
    assert "Learning rates are not tuned" in text and "On your task LoRA r=16" in text
    assert len(list(results.glob("*/runs/*lora*/adapter/adapter_config.json"))) == 1
    assert len(list(results.glob("*/REPORT.md"))) == 1

    records = [json.loads(path.read_bytes()) for path in results.rglob("record.json")]
    assert len(records) == 3
    for record in records:
        assert record["status"] == "complete"
        assert record["load"]["model_revision"] == repository.commit
        assert record["run"]["model"] == f"hub:study/ladder@{repository.commit}"
        assert record["run"]["data"]["source"] == f"hub:study/talks@{data.commit}"
        assert record["fingerprint"]["model.sha256"] == f"commit {repository.commit}"
    assert all(had for _, _, had in hub.asked("study/ladder/resolve/"))
    assert not any(had for _, _, had in hub.asked("/large/"))
    assert TOKEN not in text
    for path in results.rglob("*"):
        assert path.is_dir() or TOKEN.encode() not in path.read_bytes(), path


def test_model_without_a_revision_keeps_its_first_commit_when_the_branch_moves_on(
    hub, here, monkeypatch
):
    from studylib.running import runner
    from studylib.running.progress import Progress
    from studylib.schema.tuning import open_profile

    asked = {"models": ["hub:study/ladder"], "methods": ["base"], "data": {"source": "almanac:new"},
             "evaluate": {"questions": "almanac:new", "shots": 0, "scoring": "text"}}  # fmt: skip
    first = hub.repositories["models", "study/ladder"]
    monkeypatch.setattr(runner, "run_batch", lambda *_, **__: None)

    def start():
        """The study as a command opens it, started without its runs; the models that they get."""
        profile = open_profile("custom", here / "results", asked)
        folder = here / "results" / profile.name
        runner.reproduce(profile, folder, Progress(), executor=runner.run_batch)
        file = str(folder / "profile.yaml")
        return {run.model for name in (file, "custom") for run in open_profile(
            name, here / "results", None if name == file else asked).runs()}  # fmt: skip

    assert start() == {f"hub:study/ladder@{first.commit}"}
    config = json.loads(LADDER["config.json"]) | {"bos_token_id": 1}
    moved = hub.add("study/ladder", {**LADDER, "config.json": json.dumps(config).encode()})
    assert moved.commit != first.commit
    assert start() == {f"hub:study/ladder@{first.commit}"}
    use_hub(monkeypatch, closed_port(), here)
    assert start() == {f"hub:study/ladder@{first.commit}"}
    shutil.rmtree(here / "results")  # another study begins where the branch is now
    use_hub(monkeypatch, hub.url, here)
    assert start() == {f"hub:study/ladder@{moved.commit}"}


def test_plan_of_a_gated_model_says_what_to_do_and_starts_nothing(hub, here, call):
    hub.add("study/gated", LADDER, token=TOKEN, gated=True)
    words = custom(here)
    words[words.index("hub:study/ladder@v1")] = "hub:study/gated"
    for command in ("plan", "reproduce"):
        code, out, err = call(command, *words, "--set", "evaluate.shots=1")
        assert code == 2
        # The questions have no validation part, which may be said before.
        told = out.splitlines()
        assert told == [line for line in told if line.startswith("learning rates of hub:study/")]
        assert err.count("study: ") == 1 and "Traceback" not in err
        assert err.startswith("study: hub:study/gated")
        assert "the hub gives this to registered readers only" in err
        assert "licence" in err and "HF_TOKEN" in err
    assert not (here / "results").exists()

"""Data that the study does not ship: the same files from a folder and from their origins, or none.

A server on 127.0.0.1 stands in for the origins.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest

from studylib.core.errors import StudyError
from studylib.inputs import origins, recipes
from studylib.inputs.questions import MMLU_SUBJECTS
from studylib.schema.profile import read_profile

REAL = origins.read_lists()["real"]
TRAIN, TEST = b"text,category\nWhere is it?,card_arrival\n", b"text,category\n"


@pytest.fixture
def server(monkeypatch, tmp_path):
    """Files by path; faults: path -> what is done to the next answers, in their order."""
    files: dict[str, bytes] = {}
    faults: dict[str, list] = {}
    asked: Counter = Counter()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            path = unquote(self.path)
            asked[path] += 1
            fault = faults[path].pop(0) if faults.get(path) else None
            content = files.get(path)
            self.send_response(fault if isinstance(fault, int) else 200 if content else 404)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write((content or b"")[: 4 if fault == "cut" else None])

    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=made.serve_forever, args=(0.05,), daemon=True).start()
    monkeypatch.setenv("STUDY_ORIGINS", f"http://127.0.0.1:{made.server_address[1]}/")
    monkeypatch.setenv("STUDY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(origins, "RETRY_WAITS_SECONDS", (0.0, 0.0))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    made.files, made.faults, made.asked = files, faults, asked
    yield made
    made.shutdown()
    made.server_close()


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def url_of(name, listed=REAL):
    origin, rest = listed.find(name)
    return f"/{origin.repository}/{origin.commit}/{origin.folder}/{rest}"


@pytest.fixture
def two_files(monkeypatch, server):
    """A list of two small files, and the server that has them."""
    made = [
        {"path": f"data/banking77/{part}.csv", "sha256": sha256(content), "recipe": "copy",
         "sources": [f"banking77/{part}.csv"]}
        for part, content in (("train", TRAIN), ("test", TEST))
    ]  # fmt: skip
    listed = origins.DataList.model_validate(REAL.model_dump() | {"files": made})
    monkeypatch.setattr(origins, "read_lists", lambda: {"real": listed})
    server.files.update({url_of("banking77/train.csv"): TRAIN, url_of("banking77/test.csv"): TEST})
    return server


def bring(folder=None):
    lines = []
    origins.bring_data(read_profile("real"), folder, lines.append)
    return lines


def test_files_are_fetched_once_and_stay(two_files):
    origin = "PolyAI-LDN/task-specific-datasets@57ec275"
    assert bring() == [f"data/banking77/{part}.csv: made of {origin}" for part in ("train", "test")]
    assert Path("data/banking77/train.csv").read_bytes() == TRAIN
    assert bring() == [f"data/banking77/{part}.csv: is here" for part in ("train", "test")]
    assert set(two_files.asked.values()) == {1}
    assert list(Path("../cache/origins").iterdir()) == []


@pytest.mark.parametrize("faults", [[503], ["cut"], [429, "cut"]])
def test_a_passing_fault_is_asked_again(two_files, faults):
    two_files.faults[url_of("banking77/train.csv")] = list(faults)
    bring()
    assert Path("data/banking77/train.csv").read_bytes() == TRAIN
    assert two_files.asked[url_of("banking77/train.csv")] == len(faults) + 1


@pytest.mark.parametrize(
    ("fault", "words", "times"),
    [(404, "HTTP 404", 1), (500, "HTTP 500", 3), ("cut", "4 of 14 bytes came", 3)],
)
def test_a_lasting_fault_is_one_message_and_what_was_whole_stays(two_files, fault, words, times):
    url = url_of("banking77/test.csv")
    two_files.faults[url] = [fault] * 3
    with pytest.raises(StudyError, match=words):
        bring()
    assert two_files.asked[url] == times
    assert sorted(p.name for p in Path("data/banking77").iterdir()) == ["train.csv"]
    two_files.faults.clear()
    bring()
    assert two_files.asked[url_of("banking77/train.csv")] == 1


def test_another_content_is_refused_and_asked_for_again(two_files):
    url = url_of("banking77/train.csv")
    two_files.files[url] = TRAIN + b"one more,card_arrival\n"
    with pytest.raises(StudyError, match="SHA-256"):
        bring()
    assert not Path("data/banking77/train.csv").exists()
    two_files.files[url] = TRAIN
    bring()


def test_a_file_that_is_too_long_is_not_read_to_its_end(two_files, monkeypatch):
    monkeypatch.setattr(origins, "LARGEST_SOURCE_BYTES", len(TRAIN) - 1)
    with pytest.raises(StudyError, match=f"longer than the {len(TRAIN) - 1} bytes"):
        bring()


def test_a_file_of_the_users_is_never_written_over(two_files):
    Path("data/banking77").mkdir(parents=True)
    Path("data/banking77/train.csv").write_text("mine")
    with pytest.raises(StudyError, match="another content"):
        bring()
    assert Path("data/banking77/train.csv").read_text() == "mine"


@pytest.mark.parametrize("address", ["file:///etc", "ftp://host", "nonsense", "http://"])
def test_an_address_that_is_no_web_server_is_refused(two_files, monkeypatch, address):
    monkeypatch.setenv("STUDY_ORIGINS", address)
    with pytest.raises(StudyError, match="STUDY_ORIGINS"):
        bring()


def test_a_folder_serves_without_any_request(two_files, tmp_path):
    (tmp_path / "mine" / "banking77").mkdir(parents=True)
    for part, content in (("train", TRAIN), ("test", TEST)):
        (tmp_path / "mine" / "banking77" / f"{part}.csv").write_bytes(content)
    folder = tmp_path / "mine"
    assert bring(folder)[0] == f"data/banking77/train.csv: taken from {folder}"
    assert not two_files.asked
    with pytest.raises(StudyError, match="no such folder"):
        bring(tmp_path / "nowhere")


def test_a_profile_takes_what_it_lacks_from_the_folder_beside_or_names_the_command(server):
    profile = read_profile("real", {"seeds": [0]})
    with pytest.raises(StudyError, match="make data PROFILE=real"):
        origins.take_data(profile)
    assert not Path("data").exists() and not server.asked
    assert origins.take_data(read_profile("cpu")) == []


def test_a_profile_lacks_only_what_its_own_settings_read(server):
    profile = read_profile("real", {"data": {"source": "mine.csv", "columns": None},
                                    "evaluate": {"retention": None, "questions": None,
                                                 "measures": ["loss"]}})  # fmt: skip
    paths = [needed.file.path for needed in origins.needed_files(profile)]
    assert paths == ["data/instructions_1100.jsonl"]


@pytest.mark.parametrize("name", ["real-methods", "real-size"])
def test_profiles_that_read_the_same_data_are_served_alike(server, name):
    profile = read_profile(name)
    paths = [needed.file.path for needed in origins.needed_files(profile)]
    assert paths == ["data/banking77/train.csv", "data/banking77/test.csv"]
    with pytest.raises(StudyError, match="make data PROFILE=real"):
        origins.take_data(profile)


def spell_xml(rows):
    """Chapters as the corpus has them: divisions and segments, loose white space."""
    body = ""
    for row in rows:
        verses = row["text"].replace("&", "&amp;").replace("<", "&lt;").split(". ")
        texts = [v + "." for v in verses[:-1]] + verses[-1:]
        body += f'<div id="b.{row["id"]}" type="chapter">\n'
        body += "".join(f'<seg id="b.{row["id"]}.{i}" type="verse">\n\t {text}  \n</seg>\n'
                        for i, text in enumerate(texts)) + "</div>"  # fmt: skip
    return f'<?xml version="1.0" ?>\n<cesDoc><text>skipped<body>{body}</body></text></cesDoc>'


def spell_table(rows):
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(recipes.QUESTION_COLUMNS)
    table.writerows([row["question"], *row["choices"], row["answer"]] for row in rows)
    return text.getvalue().encode()


def read_rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def test_real_files_come_out_of_origins_and_of_a_folder_byte_for_byte(server, shared, monkeypatch):
    data = shared / "data"
    manx = [read_rows(data / "manx" / f"{part}.jsonl") for part in ("train", "validation", "test")]
    others = [{"id": "GEN.1", "text": "x"}, {"id": "JOH.22", "text": "x"}]
    chapters = [row for part in manx for row in part]
    wanted = {
        "banking77/train.csv": (data / "banking77" / "train.csv").read_bytes(),
        "banking77/test.csv": (data / "banking77" / "test.csv").read_bytes(),
        "gsm8k/gsm_8k_train.json": (data / "instruct" / "gsm8k_train.json").read_bytes(),
        "instructions/instruction-data.json":
            (data / "instruct" / "instructions_1100.json").read_bytes(),
        "bible/Manx-PART.xml": spell_xml([*chapters, *others]).encode(),
    }  # fmt: skip
    for part in ("test", "dev"):
        rows = read_rows(data / "mmlu" / f"{part}.jsonl")
        for subject in MMLU_SUBJECTS:
            table = spell_table([row for row in rows if row["subject"] == subject])
            wanted[f"mmlu/{part}/{subject}_{part}.csv"] = table
    server.files.update({url_of(name): content for name, content in wanted.items()})
    bring()
    assert set(server.asked) == set(server.files)
    fetched = {p: Path(p).read_bytes() for p in (file.path for file in REAL.files)}
    known = dict(line.split()[::-1] for line in
                 (data / "SHA256SUMS").read_text(encoding="utf-8").splitlines())  # fmt: skip
    for path, content in fetched.items():
        name = path.removeprefix("data/")
        assert sha256(content) == known.get(name, sha256(content)), path
    assert len({path.removeprefix("data/") for path in fetched} & known.keys()) == 7
    # The same from the folder beside, by the profile itself, and nothing is asked of anybody.
    server.asked.clear()
    Path("data").rename("fetched")
    monkeypatch.setattr(origins, "NEIGHBOUR", data)
    [line] = origins.take_data(read_profile("real"))
    assert "9 files" in line and not server.asked
    assert {p: Path(p).read_bytes() for p in fetched} == fetched


def test_verses_are_joined_and_only_the_chapters_asked_for_are_kept():
    rows = [{"id": "MAT.1", "text": "One  two. Three"}, {"id": "JOH.2", "text": "a & b"},
            {"id": "JOH.3", "text": "c"}]  # fmt: skip
    made = recipes.read_chapters({"x": spell_xml(rows).encode()}, ("MAT", "JOH.2-2"))
    assert made.decode() == (
        '{"id": "MAT.1", "text": "One two. Three"}\n{"id": "JOH.2", "text": "a & b"}\n'
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "document type"),
        (b'<!DOCTYPE a SYSTEM "http://127.0.0.1/x"><a/>', "document type"),
        (b"<a><b></a>", "this is not XML"),
        (b"<a>&nosuch;</a>", "this is not XML"),
        (b'<a><div type="chapter" id="1"/></a>', "no id"),
        (b"", "this is not XML"),
    ],
)
def test_xml_that_could_do_harm_or_is_none_is_refused(content, words):
    with pytest.raises(StudyError, match=words):
        recipes.read_chapters({"x.xml": content}, ("MAT",))


@pytest.mark.parametrize(
    ("recipe", "content"),
    [
        ("rows", b"{}"), ("rows", b"[" * 100_000), ("rows", b"no json"),
        ("questions", b""), ("questions", b"question,A\n1,2\n"),
        ("questions", b"question,choice0,choice1,choice2,choice3,answer\nq,a,b,c,d,E\n"),
        ("questions", b"question,choice0,choice1,choice2,choice3,answer\nq,a,b,c\n"),
    ],
)  # fmt: skip
def test_another_form_is_one_message(recipe, content):
    with pytest.raises(StudyError, match="this is no"):
        recipes.RECIPES[recipe]({"s_test.csv": content}, ())


def test_every_list_names_known_recipes_and_origins():
    for listed in origins.read_lists().values():
        for file in listed.files:
            assert file.recipe in recipes.RECIPES
            assert all(listed.find(name)[0].licence for name in file.names)
    assert len({name for file in REAL.files for name in file.names}) == 5 + 2 * 57


@pytest.mark.parametrize("path", ["/etc/x", "data/../../x"])
def test_a_list_writes_nothing_outside_the_working_folder(path):
    with pytest.raises(ValueError, match="below the working directory"):
        origins.MadeFile(path=path, sha256="0" * 64, recipe="copy", sources=("a/b",))


def test_the_command_says_each_file_and_bad_options_in_one_message(study, two_files):
    code, out, err = study("data", "--profile", "real")
    assert code == 0, err
    assert "data/banking77/test.csv: made of" in out
    assert study("data")[0] == 2

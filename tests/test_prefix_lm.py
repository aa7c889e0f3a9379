"""Promises of the shared-prefix scorer: the same figures as lm-eval's own for any requests."""

import copy
import importlib
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    BloomConfig,
    GPT2Config,
    GPTNeoConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from studylib.core.errors import StudyError
from studylib.scoring import prefix_lm, tree_attention
from studylib.scoring.compare_lm import compare_wrappers
from studylib.scoring.prefix_lm import PrefixLM
from studylib.scoring.tasks import fit_shots
from studylib.scoring.token_tree import build_token_tree, iterate_blocks, iterate_passes
from studylib.scoring.tree_attention import lay_out_blocks

VOCABULARY = 96
CONTEXT = 64
TOLERANCE = 1e-4
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = LlamaConfig(
    vocab_size=VOCABULARY,
    intermediate_size=64,
    num_key_value_heads=2,
    max_position_embeddings=CONTEXT,
    initializer_range=0.3,
    **SIZES,
)


def make_tokenizer(padding_side="right"):
    words = ["<s>", "</s>", *(f"w{i}" for i in range(VOCABULARY - 2))]
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="</s>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        padding_side=padding_side,
    )


def make_model(config=LLAMA, **options):
    torch.manual_seed(0)
    # A copy, because the options (dtype, attention) are written into the configuration.
    return AutoModelForCausalLM.from_config(copy.deepcopy(config), **options).eval()


def words(rng, count):
    return [int(token) for token in rng.integers(2, VOCABULARY, count)]


def few_shot_requests(seed=0, groups=3, questions=5, prefix=20, continuation_sizes=(1, 1, 1, 1)):
    """Groups that share a prefix, questions that share a context, one request a choice."""
    rng = np.random.default_rng(seed)
    requests = []
    for _ in range(groups):
        shared = words(rng, prefix)
        for _ in range(questions):
            context = shared + words(rng, int(rng.integers(3, 15)))
            requests += [((str(context), ""), context, words(rng, n)) for n in continuation_sizes]
    return requests


def text_requests(pairs):
    return [
        Instance("loglikelihood", {}, pair, i, metadata=("t", i, 1)) for i, pair in enumerate(pairs)
    ]


def assert_same(model, requests, batch_size=7, tokenizer=None, stock_options=None, **options):
    tokenizer = tokenizer or make_tokenizer()
    common = {"pretrained": model, "tokenizer": tokenizer, "batch_size": batch_size}
    stock, ours = HFLM(**common, **(stock_options or {})), PrefixLM(**common, **options)
    expected = stock._loglikelihood_tokens(requests, disable_tqdm=True)
    answers = ours._loglikelihood_tokens(requests, disable_tqdm=True)
    np.testing.assert_allclose(
        [answer[0] for answer in answers],
        [answer[0] for answer in expected],
        atol=TOLERANCE,
        rtol=0,
    )
    assert [answer[1] for answer in answers] == [answer[1] for answer in expected]
    return ours


@pytest.fixture(scope="module")
def llama():
    return make_model()


def greedy_token(model, context):
    with torch.no_grad():
        return int(model(torch.tensor([context])).logits[0, -1].argmax())


def test_tree_holds_each_shared_token_once():
    tree = build_token_tree([[1, 2, 3], [1, 2, 4, 5], [1, 2, 3], [9]], [1, 2, 1, 1])
    assert tree.tokens.tolist() == [1, 2, 3, 4, 5, 9]
    assert tree.depths.tolist() == [0, 1, 2, 2, 3, 0]
    assert tree.ends.tolist() == [5, 5, 3, 5, 5, 6]
    assert [nodes.tolist() for nodes in tree.asked] == [[2], [3, 4], [2], [5]]
    assert tree.row_ends.tolist() == [2, 4, 5]


def test_a_row_that_begins_another_adds_no_token():
    tree = build_token_tree([[1, 2, 3], [1, 2]], [1, 1])
    assert tree.tokens.tolist() == [1, 2, 3]
    assert [nodes.tolist() for nodes in tree.asked] == [[2], [1]]


def test_passes_respect_the_token_budget_and_the_row_cap():
    tree = build_token_tree([[1, 2, 3], [1, 2, 4, 5], [9, 8]], [1, 1, 1])
    assert list(iterate_passes(tree, 4, None)) == [(0, 4), (4, 7)]
    assert list(iterate_passes(tree, 100, 1)) == [(0, 3), (3, 5), (5, 7)]


def test_blocks_begin_at_branches_and_within_a_branch_only_where_it_is_longer():
    tree = build_token_tree([[1, 2, 3], [1, 2, 4, 5], [9, 8], [9, 7, 6, 5, 4, 3]], [1] * 4)
    assert tree.depths.tolist() == [0, 1, 2, 2, 3, 0, 1, 2, 3, 4, 5, 1]
    assert list(iterate_blocks(tree, 0, 12, 12)) == [(0, 12)]
    assert list(iterate_blocks(tree, 0, 12, 7)) == [(0, 5), (5, 12)]
    assert list(iterate_blocks(tree, 0, 12, 3)) == [(0, 3), (3, 5), (5, 8), (8, 11), (11, 12)]
    assert list(iterate_blocks(tree, 1, 5, 2)) == [(1, 3), (3, 5)]


def test_a_block_meets_the_keys_that_its_tokens_see_and_no_others():
    tree = build_token_tree([[1, 2, 3], [1, 2, 4, 5], [1, 8]], [1] * 3)
    keys = np.array([0, 1, 3, 4, 5])  # node 2 was read by an earlier pass and is not kept
    blocks = lay_out_blocks(tree, keys, 3, 2, torch.device("cpu")).blocks
    assert [(block.start, block.stop) for block in blocks] == [(0, 2), (2, 3)]
    assert [block.keys.tolist() for block in blocks] == [[0, 1, 2, 3], [0, 4]]
    assert blocks[0].mask.int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert blocks[1].mask.int().tolist() == [[1, 1]]


def test_blocks_of_any_size_score_as_stock(llama, monkeypatch):
    calls = []
    attend = tree_attention.attend_blocks
    monkeypatch.setattr(tree_attention, "attend_blocks", lambda *a: calls.append(1) or attend(*a))
    for size in (1, 3, 16, 400):
        monkeypatch.setattr(prefix_lm, "CPU_TOKENS_PER_BLOCK", size)
        assert_same(llama, few_shot_requests(continuation_sizes=(1, 3)), tokens_per_pass=50)
    assert calls  # the blocks were used, not the mask of the whole pass


@pytest.mark.parametrize(("batch_size", "tokens_per_pass"), [(1, 256), (7, 5), (32, 256)])
def test_few_shot_letters_score_as_stock_at_any_batch_size(llama, batch_size, tokens_per_pass):
    ours = assert_same(
        llama,
        few_shot_requests(),
        batch_size=batch_size,
        tokens_per_pass=tokens_per_pass,
        max_rows=batch_size,
    )
    assert ours.fallback_reason is None


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_padding_side_changes_nothing(llama, padding_side):
    tokenizer = make_tokenizer(padding_side)
    assert_same(llama, few_shot_requests(), tokenizer=tokenizer)


def test_zero_shot_without_any_shared_prefix_scores_as_stock(llama):
    rng = np.random.default_rng(1)
    requests = [(("", ""), [i + 2, *words(rng, 9)], words(rng, 1)) for i in range(20)]
    assert_same(llama, requests)


@pytest.mark.parametrize("tokens_per_pass", [16, 256])
def test_multi_token_endings_score_as_stock(llama, tokens_per_pass):
    requests = few_shot_requests(continuation_sizes=(6, 2, 9, 4))
    assert_same(llama, requests, tokens_per_pass=tokens_per_pass)


def test_prompts_longer_than_the_context_are_cut_from_the_left_as_stock_does(llama, caplog):
    requests = few_shot_requests(prefix=CONTEXT - 9, continuation_sizes=(1, 1, 3, 5))
    rng = np.random.default_rng(2)
    requests.append((("", ""), words(rng, 3 * CONTEXT), words(rng, CONTEXT)))
    with caplog.at_level(logging.WARNING, "studylib.scoring.prefix_lm"):
        ours = assert_same(llama, requests)
    assert ours.fallback_reason is None
    assert "cut from the left" in caplog.text


def test_duplicates_and_continuations_that_begin_alike_keep_their_order(llama):
    rng = np.random.default_rng(3)
    context, ending = words(rng, 10), words(rng, 5)
    requests = [(("", ""), context, ending[:n]) for n in (5, 1, 3, 5, 2, 1)]
    assert_same(llama, requests)


def test_the_same_tokens_cut_at_another_point_score_as_stock_without_its_logits_cache(llama):
    # With its logits cache, lm-eval 0.4.13 reads such a request's log-probabilities at the first of
    # the longest continuation's positions instead of the last ones.
    rng = np.random.default_rng(3)
    context, ending = words(rng, 10), words(rng, 5)
    requests = [(("", ""), context + ending[:n], ending[n:]) for n in (0, 2, 4)]
    assert_same(llama, requests, stock_options={"logits_cache": False})


def test_greedy_answers_are_marked_greedy(llama):
    rng = np.random.default_rng(4)
    context = words(rng, 12)
    first = greedy_token(llama, context)
    second = greedy_token(llama, [*context, first])
    requests = [
        (("", ""), context, [first]),
        (("", ""), context, [first, second]),
        (("", ""), context, [first, second ^ 1]),
    ]
    ours = assert_same(llama, requests)
    assert [flag for _, flag in ours._loglikelihood_tokens(requests)] == [True, True, False]


def test_texts_with_empty_contexts_and_trailing_spaces_score_as_stock(llama):
    pairs = [("", "w1 w2"), ("", "<s> w5"), ("w3 w4 ", " w5"), ("w3 w4", " w6 w7"), ("w3", " w4")]
    tokenizer = make_tokenizer()
    answers = [
        lm.loglikelihood(text_requests(pairs), disable_tqdm=True)
        for lm in (HFLM(llama, tokenizer=tokenizer), PrefixLM(llama, tokenizer=tokenizer))
    ]
    for expected, answer in zip(*answers, strict=True):
        assert answer[0] == pytest.approx(expected[0], abs=TOLERANCE)
        assert answer[1] == expected[1]


def test_rolling_loglikelihood_is_left_to_stock(llama):
    text = " ".join(f"w{i}" for i in np.random.default_rng(5).integers(0, 90, 3 * CONTEXT))
    requests = [Instance("loglikelihood_rolling", {}, (text,), 0, metadata=("t", 0, 1))]
    tokenizer = make_tokenizer()
    ours = PrefixLM(llama, tokenizer=tokenizer)
    assert ours.loglikelihood_rolling(requests, disable_tqdm=True) == HFLM(
        llama, tokenizer=tokenizer
    ).loglikelihood_rolling(requests, disable_tqdm=True)
    assert ours.fallback_reason is None


def test_lora_model_scores_as_stock():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    model = peft.get_peft_model(make_model(), config).eval()
    assert assert_same(model, few_shot_requests(continuation_sizes=(1, 2))).fallback_reason is None


def test_prompt_tuned_model_falls_back():
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = peft.get_peft_model(make_model(), config).eval()
    ours = assert_same(model, few_shot_requests())
    assert "virtual tokens" in ours.fallback_reason


def test_qlora_model_scores_as_stock(tmp_path):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    peft = pytest.importorskip("peft")
    config = LlamaConfig(**(LLAMA.to_dict() | {"hidden_size": 64, "intermediate_size": 128}))
    make_model(config).save_pretrained(tmp_path)
    four_bits = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=four_bits, dtype=torch.float32, device_map="cpu"
    )
    adapter = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    model = peft.get_peft_model(model, adapter).eval()
    layers = [m for m in model.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    assert layers
    for layer in layers:
        # The repacked CPU path computes in bfloat16: equality would be to its noise only.
        layer.support_avx512bf16_for_cpu = False
    assert assert_same(model, few_shot_requests(continuation_sizes=(1, 2))).fallback_reason is None


def test_bfloat16_scores_within_its_noise(llama):
    model = make_model(dtype=torch.bfloat16)
    tokenizer, requests = make_tokenizer(), few_shot_requests()
    lms = HFLM(model, tokenizer=tokenizer), PrefixLM(model, tokenizer=tokenizer)
    stock, ours = ([answer[0] for answer in lm._loglikelihood_tokens(requests)] for lm in lms)
    assert lms[1].fallback_reason is None
    assert np.abs(np.subtract(stock, ours)).max() < 0.25


@pytest.mark.parametrize(
    "config",
    [
        GPT2Config(
            vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=CONTEXT,
            initializer_range=0.3,
        ),
        GPTNeoXConfig(
            vocab_size=VOCABULARY, intermediate_size=64, max_position_embeddings=CONTEXT,
            initializer_range=0.3, **SIZES,
        ),
        OPTConfig(
            vocab_size=VOCABULARY, ffn_dim=64, word_embed_proj_dim=32,
            max_position_embeddings=CONTEXT, init_std=0.3, **SIZES,
        ),
        Qwen2Config(
            vocab_size=VOCABULARY, intermediate_size=64, num_key_value_heads=2,
            max_position_embeddings=CONTEXT, initializer_range=0.3, **SIZES,
        ),
    ],
    ids=lambda config: config.model_type,
)  # fmt: skip
def test_other_full_attention_architectures_share_prefixes(config):
    ours = assert_same(make_model(config), few_shot_requests(continuation_sizes=(1, 3)))
    assert ours.fallback_reason is None


def test_eager_attention_scores_as_stock():
    model = make_model(attn_implementation="eager")
    assert assert_same(model, few_shot_requests()).fallback_reason is None


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (
            MistralConfig(
                vocab_size=VOCABULARY, intermediate_size=64, num_key_value_heads=2,
                max_position_embeddings=CONTEXT, sliding_window=8, initializer_range=0.3, **SIZES,
            ),
            "sliding window",
        ),
        (
            Qwen2Config(
                vocab_size=VOCABULARY, intermediate_size=64, num_key_value_heads=2,
                max_position_embeddings=CONTEXT, use_sliding_window=True, sliding_window=8,
                max_window_layers=1, initializer_range=0.3, **SIZES,
            ),
            "sliding_attention",
        ),
        (
            MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2),
            "linear_attention",
        ),
        (
            LlamaConfig(
                **(LLAMA.to_dict() | {"rope_parameters": {
                    "rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}})
            ),
            "longest prompt",
        ),
        (
            GPTNeoConfig(
                vocab_size=VOCABULARY, hidden_size=32, num_layers=2, num_heads=4,
                attention_types=[[["global", "local"], 1]], max_position_embeddings=CONTEXT,
            ),
            "local",
        ),
        (
            BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4),
            "position_ids",
        ),
    ],
    ids=["mistral-window", "qwen2-window", "mamba", "llama-dynamic-rope", "gpt-neo-local", "bloom"],
)  # fmt: skip
def test_unsupported_models_fall_back_to_stock_with_a_notice(config, reason, caplog):
    with caplog.at_level(logging.WARNING, "studylib.scoring.prefix_lm"):
        ours = assert_same(make_model(config), few_shot_requests(questions=2))
    assert reason in ours.fallback_reason
    assert caplog.text.count("lm-eval's own slower path") == 1


def test_a_model_that_ignores_the_mask_is_found_by_the_probe(llama):
    class Deaf(type(llama)):
        def forward(self, input_ids=None, attention_mask=None, position_ids=None,
                    past_key_values=None, use_cache=None, **kwargs):  # fmt: skip
            return super().forward(
                input_ids, None, position_ids, past_key_values, use_cache=use_cache, **kwargs
            )

    model = Deaf(LLAMA).eval()
    model.load_state_dict(llama.state_dict())
    ours = assert_same(model, few_shot_requests())
    assert "changes its log-likelihoods" in ours.fallback_reason


def test_a_continuation_longer_than_the_context_is_refused_by_rule(llama):
    ours = PrefixLM(llama, tokenizer=make_tokenizer())
    ours._loglikelihood_tokens(few_shot_requests(groups=1, questions=1))
    with pytest.raises(StudyError, match="the model's context"):
        ours._loglikelihood_tokens([(("", ""), [1], [2] * (CONTEXT + 1))])


def test_budgets_below_one_are_refused(llama):
    with pytest.raises(StudyError, match="tokens_per_pass=0"):
        PrefixLM(llama, tokenizer=make_tokenizer(), tokens_per_pass=0)


@pytest.mark.parametrize("tokens", [[5], [5, 9], [5, 9, 7, 3]])
def test_requests_that_repeat_few_tokens_do_not_mislead_the_probe(llama, tokens):
    requests = [(("", ""), tokens, [token]) for token in tokens]
    assert assert_same(llama, requests).fallback_reason is None


class CountingHook:
    def __init__(self):
        self.calls = []

    def add_partial(self, *call):
        self.calls.append(call)


def test_every_answer_reaches_lm_evals_request_cache(llama):
    ours = PrefixLM(llama, tokenizer=make_tokenizer())
    ours.cache_hook = CountingHook()
    requests = few_shot_requests(groups=1)
    answers = ours._loglikelihood_tokens(requests)
    assert ours.cache_hook.calls == [
        ("loglikelihood", texts, answer)
        for (texts, _, _), answer in zip(requests, answers, strict=True)
    ]


def test_shared_tokens_go_through_the_model_once(llama):
    ours = PrefixLM(llama, tokenizer=make_tokenizer())
    requests = few_shot_requests()
    ours._loglikelihood_tokens(requests)
    seen = []
    hook = llama.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    ours._loglikelihood_tokens(requests)
    hook.remove()
    distinct = {tuple(a[: i + 1]) for _, a, _ in requests for i in range(len(a))}
    assert sum(seen) == len(distinct)


def make_mmlu_tasks(shots):
    import datasets
    from lm_eval.api.task import ConfigurableTask

    rng = np.random.default_rng(6)

    def rows(count):
        return datasets.Dataset.from_list(
            [
                {
                    "question": " ".join(f"w{i}" for i in rng.integers(0, 90, 5)),
                    "choices": [f"w{i}" for i in rng.integers(0, 90, 4)],
                    "answer": int(rng.integers(4)),
                }
                for _ in range(count)
            ]
        )

    def make_task(name, doc_to_choice):
        data = {"dev": rows(shots), "test": rows(6)}
        config = {
            "task": name,
            "custom_dataset": lambda **_: data,
            "test_split": "test",
            "fewshot_split": "dev",
            "fewshot_config": {"sampler": "first_n"},
            "num_fewshot": shots,
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}}\nAnswer:",
            "doc_to_choice": doc_to_choice,
            "doc_to_target": "answer",
        }
        return ConfigurableTask(config=config)

    return {
        "letters": make_task("letters", ["w1", "w2", "w3", "w4"]),
        "texts": make_task("texts", "{{choices}}"),
    }


def test_compare_finds_no_difference_through_lm_evals_evaluator(llama):
    tokenizer = make_tokenizer()
    result = compare_wrappers(
        lambda: HFLM(llama, tokenizer=tokenizer, batch_size=8),
        lambda: PrefixLM(llama, tokenizer=tokenizer),
        make_mmlu_tasks(shots=3),
        limit=4,
        rounds=2,
    )
    assert (result.items, result.requests, result.rounds) == (8, 32, 2)
    assert result.answers_changed == result.greedy_flags_changed == 0
    assert result.max_abs_loglikelihood_difference < TOLERANCE
    assert result.time_ratio == result.stock_model_seconds / result.our_model_seconds > 0


def test_prompts_lose_whole_shots_and_both_ways_read_the_same(llama):
    tokenizer = make_tokenizer()
    ours = PrefixLM(llama, tokenizer=tokenizer, max_length=22)
    tasks = {"letters": make_mmlu_tasks(shots=3)["letters"]}
    [task] = tasks.values()
    doc = task.test_docs()[0]
    prompts = [task.fewshot_context(doc, num_fewshot=n) for n in (3, 2)]
    fit_shots(tasks, ours)
    assert task.fewshot_context(doc, num_fewshot=3) == prompts[1] != prompts[0]
    assert len(tokenizer(prompts[1])["input_ids"]) <= 22 < len(tokenizer(prompts[0])["input_ids"])
    result = compare_wrappers(
        lambda: HFLM(llama, tokenizer=tokenizer, max_length=22, batch_size=8), lambda: ours, tasks
    )
    assert result.answers_changed == 0 and ours.prompts_cut == 0
    assert result.max_abs_loglikelihood_difference < TOLERANCE


def test_compare_counts_the_tokens_that_each_way_reads(llama):
    tokenizer = make_tokenizer()
    tasks = {"letters": make_mmlu_tasks(shots=3)["letters"]}
    stock = HFLM(llama, tokenizer=tokenizer, batch_size=1)
    ours = PrefixLM(llama, tokenizer=tokenizer)
    result = compare_wrappers(lambda: stock, lambda: ours, tasks)
    [task] = tasks.values()
    rows = {tuple(stock.tok_encode(i.args[0])) for i in task.instances}
    assert result.stock_tokens == sum(map(len, rows)) and result.stock_passes == len(rows)
    tree = build_token_tree([list(row) for row in rows], [1] * len(rows))
    probed = result.our_tokens - len(tree.tokens)  # once for each model: two ways, three rows
    assert 0 < probed <= 2 * 3 * 24
    assert result.token_ratio == result.stock_tokens / result.our_tokens


def test_compare_refuses_less_than_one_round(llama):
    with pytest.raises(StudyError, match="rounds=0"):
        compare_wrappers(lambda: None, lambda: None, {}, rounds=0)


def test_compare_counts_a_changed_answer(llama):
    class Wrong(PrefixLM):
        def _loglikelihood_tokens(self, requests, **kwargs):
            answers = super()._loglikelihood_tokens(requests, **kwargs)
            best = max(range(4), key=lambda i: answers[i][0])
            answers[best] = (answers[best][0] - 50, answers[best][1])
            return answers

    tokenizer = make_tokenizer()
    tasks = {"letters": make_mmlu_tasks(shots=1)["letters"]}
    result = compare_wrappers(
        lambda: HFLM(llama, tokenizer=tokenizer), lambda: Wrong(llama, tokenizer=tokenizer), tasks
    )
    assert result.answers_changed == 1
    assert result.max_abs_loglikelihood_difference == pytest.approx(50, abs=TOLERANCE)


def test_real_mmlu_questions_score_as_stock(monkeypatch):
    data = Path(__file__).parents[2] / "shared" / "data" / "mmlu"
    if not data.is_dir():
        pytest.skip(f"no MMLU questions at {data}")
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    benchmark = importlib.import_module("mmlu_prefix")
    tasks = benchmark.make_tasks(data, subject_count=2, shots=2)
    tokenizer = benchmark.train_tokenizer(data, vocabulary=600)
    config = LLAMA.to_dict() | {"vocab_size": len(tokenizer), "max_position_embeddings": 512}
    model = make_model(LlamaConfig(**config))
    result = compare_wrappers(
        lambda: HFLM(model, tokenizer=tokenizer, batch_size=4),
        lambda: PrefixLM(model, tokenizer=tokenizer),
        tasks,
        limit=3,
    )
    assert result.items == 6
    assert result.answers_changed == result.greedy_flags_changed == 0
    assert result.max_abs_loglikelihood_difference < TOLERANCE

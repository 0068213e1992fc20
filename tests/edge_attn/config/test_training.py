"""A configuration is read completely, or refused with a message that contains the file and the key."""

from __future__ import annotations

import dataclasses
import json

import pytest
from paths import PACKAGE

from edge_attn.config.models import Seq2SeqConfig
from edge_attn.config.runtime import RuntimeOptions
from edge_attn.config.training import Config, DataConfig, TextConfig, TrainingConfig, read_config
from edge_attn.config.validation import from_mapping
from edge_attn.decoding.options import SearchConfig
from edge_attn.errors import ConfigError, InputError, UsageError
from edge_attn.registry import ATTENTIONS, FAMILIES, TOKENIZERS

DATA = '[data]\ntrain = "train.tsv"\nvalid = "valid.tsv"\n'


@pytest.fixture
def read(tmp_path):
    def read(content: str | bytes) -> Config:
        path = tmp_path / "run.toml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_config(path)

    return read


def test_missing_key_has_its_default(read):
    config = read(DATA + "[training]\nseed = 7\n")
    assert config == Config(DataConfig("train.tsv", "valid.tsv"), training=TrainingConfig(seed=7))


def test_integer_is_read_as_float(read):
    clip = read(DATA + "[training]\nclip = 5\n").training.clip
    assert (clip, type(clip)) == (5.0, float)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[model]\ncells = 'gru'\n", "model: unknown key 'cells'; known: .*cell"),
        ("[moddel]\n", "unknown key 'moddel'; known: data, model, text, training"),
        ("[model]\nembedding = true\n", "model: embedding must be of type int, got True"),
        ("[model]\nembedding = 1.5\n", "model: embedding must be of type int, got 1.5"),
        ("[model]\ndropout = '0.1'\n", "model: dropout must be of type float, got '0.1'"),
        ("[model]\ndropout = true\n", "model: dropout must be of type float, got True"),
        ("[model]\ntied_output = 1\n", "model: tied_output must be of type bool, got 1"),
        ("[model.cell]\nname = 'gru'\n", "model: cell must be of type str, got {'name': 'gru'}"),
        ("[training]\nseed = [1]\n", r"training: seed must be of type int, got \[1\]"),
        ("[model]\ncell = 'rnn'\n", "model: cell must be one of gru, lstm, lstmn, got 'rnn'"),
        ("[model]\nencoder_cell = 'rnn'\n", "encoder_cell must be one of .*lstmn, got 'rnn'"),
        ("[model]\nattention = 'luong'\n", "attention must be one of additive, .*location.*, got 'luong'"),
        ("[model]\nnormalizer = 'entmax'\n", "normalizer must be one of softmax, sparsemax, got 'entmax'"),
        ("[model]\nfocus = 'local'\n", "focus must be one of global, local-m, local-p, hard, got 'local'"),
        ("[model]\nfocus = 'local-m'\n", "window must be at least 1, got 0"),
        ("[model]\nfocus = 'local-p'\nwindow = -2\n", "window must be at least 1, got -2"),
        (
            "[model]\nwindow = 3\n",
            "focus = 'global' has no window, got window = 3; use focus = 'local-m' or 'local-p'",
        ),
        ("[model]\nfocus = 'hard'\nwindow = 3\n", "focus = 'hard' has no window"),
        ("[model]\nfocus = 'hard'\nnormalizer = 'sparsemax'\n", "supports only normalizer = 'softmax'"),
        ("[model]\nfocus = 'hard'\nhard_training = 'gumbel'\n", "hard_training must be one of straight-through, reinf"),
        ("[model]\nhard_training = 'reinforce'\n", "'reinforce' needs focus = 'hard', got 'global'"),
        ("[model]\nfocus = 'hard'\ncoverage = true\n", "coverage needs focus = 'global', got 'hard'"),
        ("[model]\nheads = 0\n", "heads must be at least 1, got 0"),
        ("[model]\npositions = 0\n", "positions must be at least 1, got 0"),
        ("[model]\ntape = 0\n", "tape must be at least 1, got 0"),
        (
            "[model]\nattention = 'dot'\nencoder_hidden = 3\ndecoder_hidden = 5\n",
            "decoder_hidden = 2 \\* encoder_hidden",
        ),
        ("[model]\nembedding = 0\n", "embedding must be at least 1, got 0"),
        ("[model]\ndropout = 1.0\n", r"dropout must be in \[0, 1\), got 1.0"),
        ("[model]\ndropout = nan\n", "dropout must be in"),
        ("[text]\nkind = 'bytes'\n", "kind must be one of"),
        ("[text]\nsource_size = 4\n", "source_size must be at least 5, got 4"),
        ("[training]\nseed = -1\n", "seed must be at least 0, got -1"),
        ("[training]\nseed = 9223372036854775808\n", "seed must be less than"),
        ("[training]\nwarmup = -1\n", "warmup must be at least 0"),
        ("[training]\nupdates = 0\n", "updates must be at least 1"),
        ("[training]\nlearning_rate = nan\n", "learning_rate must be positive and finite, got nan"),
        ("[training]\nlearning_rate = inf\n", "learning_rate must be positive and finite, got inf"),
        ("[training]\nclip = 0\n", "clip must be positive and finite, got 0.0"),
        ("[training]\nlabel_smoothing = 1\n", "label_smoothing must be in"),
        ("[training]\nstorage = 'int8'\n", "storage must be one of fp32, fp16"),
    ],
)
def test_bad_value_is_refused_by_its_name(read, content, message):
    with pytest.raises(ConfigError, match=message) as caught:
        read(DATA + content)
    assert "run.toml" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 4


def test_former_name_of_a_key_is_read(read):
    config = read(DATA + "[model]\nnormaliser = 'sparsemax'\n")
    assert config.model == Seq2SeqConfig(normalizer="sparsemax")
    assert config == read(DATA + "[model]\nnormalizer = 'sparsemax'\n")


@pytest.mark.parametrize("names", [("normalizer", "normaliser"), ("normaliser", "normalizer")])
def test_key_with_its_former_name_is_refused(read, names):
    first, second = names
    with pytest.raises(ConfigError, match="'normaliser' is the former name of 'normalizer'; remove 'normaliser'"):
        read(DATA + f"[model]\n{first} = 'softmax'\n{second} = 'softmax'\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the key 'data' is missing"),
        ("data = 3\n", "data must be a table, got 3"),
        ("[data]\nvalid = 'v.tsv'\n", "the key 'train' is missing"),
        ("[data]\ntrain = 't.tsv'\n", "either valid or holdout"),
        ("[data]\ntrain = 't.tsv'\nvalid = 'v.tsv'\nholdout = 2\n", "either valid or holdout"),
        ("[data]\ntrain = 't.tsv'\nholdout = -1\n", "holdout must be at least 0, got -1"),
        ("[data]\ntrain = 't.tsv'\nholdout = 1\nseparator = ''\n", "separator must not be empty"),
        ("[data]\ntrain = 't.tsv'\nholdout = 1\nmax_tokens = 0\n", "max_tokens must be at least 1"),
        ("[data\n", "is not TOML"),
        ("a = " + "[" * 100_000, "is not TOML"),
        ("a = " + "9" * 5000, "is not TOML: .*digits"),
        (b"[data]\ntrain = '\xff'\n", "is not TOML: .*utf-8"),
    ],
)
def test_bad_file_is_refused(read, content, message):
    with pytest.raises(ConfigError, match=message):
        read(content)


def test_unreadable_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.toml cannot be read: No such file"):
        read_config(tmp_path / "none.toml")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam": 0}, "beam must be at least 1, got 0"),
        ({"n_best": 0}, r"n_best must lie between 1 and the beam \(4\), got 0"),
        ({"n_best": 5}, r"n_best must lie between 1 and the beam \(4\), got 5"),
        ({"max_length": 0}, "max_length must be at least 1, got 0"),
        ({"length_penalty": float("nan")}, "length_penalty must lie between 0 and 10, got nan"),
        ({"length_penalty": -1.0}, "length_penalty must lie between 0 and 10, got -1.0"),
        ({"length_penalty_kind": "gnmt"}, "length_penalty_kind must be one of none, avg, wu, got 'gnmt'"),
        ({"coverage_penalty": -0.1}, "coverage_penalty must lie between 0 and 10, got -0.1"),
        ({"repetition_penalty": 0.9}, "repetition_penalty must lie between 1 and 10, got 0.9"),
        ({"no_repeat_ngram": -1}, "no_repeat_ngram must be at least 0, got -1"),
        ({"min_length": -1}, "min_length must be at least 0, got -1"),
        ({"min_length": 9, "max_length": 8}, r"min_length must be at most max_length \(8\), got 9"),
        ({"groups": 0}, "groups must be at least 1, got 0"),
        ({"groups": 3, "diversity": 0.5}, r"groups must divide the beam \(4\), got 3"),
        ({"groups": 2}, "groups above 1 and a diversity above 0 need each other, got groups 2 and diversity 0"),
        ({"diversity": 0.5}, "need each other, got groups 1 and diversity 0.5"),
        ({"groups": 2, "diversity": float("inf")}, "diversity must lie between 0 and 100, got inf"),
        ({"alternatives": -1}, "alternatives must be at least 0, got -1"),
        (
            {"alternatives": 2, "n_best": 2},
            "alternatives exclude sample, groups and n_best: each is a separate search",
        ),
        ({"alternatives": 2, "beam": 1, "sample": True}, "alternatives exclude sample, groups and n_best"),
        ({"alternatives": 2, "groups": 2, "diversity": 0.5}, "alternatives exclude sample, groups and n_best"),
        ({"sample": True}, "sampling needs a beam of 1, got beam 4"),
        ({"sample": True, "beam": 1, "n_best": 0}, "n_best must be at least 1, got 0"),
        ({"sample": True, "beam": 1, "temperature": 0.0}, "temperature must lie between 0.01 and 100, got 0.0"),
        ({"sample": True, "beam": 1, "top_k": -1}, "top_k must be at least 0, got -1"),
        ({"sample": True, "beam": 1, "top_p": 0.0}, "top_p must lie between 1e-06 and 1, got 0.0"),
        ({"sample": True, "beam": 1, "top_p": 1.1}, "top_p must lie between 1e-06 and 1, got 1.1"),
        ({"sample": True, "beam": 1, "seed": -1}, "seed must be at least 0, got -1"),
        ({"temperature": 0.5}, "temperature is for sampling, and sample is off"),
        ({"top_k": 5}, "top_k is for sampling, and sample is off"),
        ({"top_p": 0.5}, "top_p is for sampling, and sample is off"),
        ({"seed": 7}, "seed is for sampling, and sample is off"),
    ],
)
def test_invalid_search_option_is_a_usage_error(options, message):
    with pytest.raises(UsageError, match=message):
        SearchConfig(**options)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (1, 4, 1)),
        ({"beam": 6, "groups": 3, "diversity": 0.5, "n_best": 5}, (3, 6, 5)),
        ({"beam": 1, "sample": True, "n_best": 7}, (7, 7, 7)),
        ({"beam": 2, "alternatives": 3}, (3, 6, 3)),
    ],
)
def test_search_width_and_number_of_results(options, expected):
    config = SearchConfig(**options)
    assert (config.searches, config.width, config.returned) == expected


def test_first_four_search_options_are_positional():
    assert SearchConfig(3, 2, 0.5, 9) == SearchConfig(beam=3, n_best=2, length_penalty=0.5, max_length=9)


def test_configuration_survives_json():
    config = Config(DataConfig("a.tsv", holdout=3), training=TrainingConfig(learning_rate=2.5e-3, clip=1e-7))
    content = json.loads(json.dumps(dataclasses.asdict(config)))
    assert from_mapping(Config, content, "config.json") == config


def test_every_choice_has_a_registry_row():
    """A configuration accepts exactly the names of the registry."""
    for attention in ATTENTIONS:
        Seq2SeqConfig(attention=attention)
    for family in FAMILIES:
        Seq2SeqConfig(family=family)
    for kind in TOKENIZERS:
        TextConfig(kind=kind)
    for unknown in ({"attention": "x"}, {"family": "x"}):
        with pytest.raises(ConfigError) as caught:
            Seq2SeqConfig(**unknown)
        names = str(caught.value).partition("one of ")[2].partition(", got")[0].split(", ")
        assert set(names) == set(ATTENTIONS if "attention" in unknown else FAMILIES)


@pytest.mark.parametrize("path", sorted((PACKAGE / "pretrained").glob("*.toml")), ids=lambda path: path.stem)
def test_pretrained_configurations_are_read(path):
    assert read_config(path).model.family == "seq2seq"


@pytest.mark.parametrize("threads", [0, -1])
def test_runtime_without_threads_is_refused(threads):
    with pytest.raises(UsageError, match=f"threads must be at least 1, got {threads}"):
        RuntimeOptions(threads)


def test_runtime_defaults_are_fp32_without_fallback():
    assert RuntimeOptions() == RuntimeOptions(None, "fp32", False, None)

"""A configuration is read completely, or refused with a message that contains the file and the key."""

from __future__ import annotations

import dataclasses
import json

import pytest
from paths import PACKAGE

from edge_attn.config.models import Seq2SeqConfig
from edge_attn.config.training import Config, DataConfig, TextConfig, TrainingConfig, read_config
from edge_attn.config.validation import from_mapping
from edge_attn.errors import ConfigError, InputError
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
        ("[model]\ncells = 'gru'\n", "model: unknown key 'cells'; did you mean cell"),
        ("[models]\n", "unknown key 'models'; did you mean model"),
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
        ("[model]\ndecoder_hidden = 1000000000\n", "decoder_hidden must be at most 1048576, got 1000000000"),
        ("[model]\nencoder_layers = 1000\n", "encoder_layers must be at most 64, got 1000"),
        ("[model]\ntape = 1000000000\n", "tape must be at most 4096, got 1000000000"),
        ("[model]\nfocus = 'local-m'\nwindow = 1000000000\n", "window must be at most 1048576, got 1000000000"),
        ("[text]\ntarget_size = 1000000000\n", "target_size must be at most 16777216, got 1000000000"),
        ("[training]\nupdates = 9223372036854775808\n", "updates must be less than"),
        (f"[training]\nlearning_rate = 1{'0' * 400}\n", "learning_rate must be of type float, got 1000"),
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


FORMER = "normaliser"  # codespell:ignore normaliser


def test_former_name_of_a_key_is_read(read):
    config = read(DATA + f"[model]\n{FORMER} = 'sparsemax'\n")
    assert config.model == Seq2SeqConfig(normalizer="sparsemax")
    assert config == read(DATA + "[model]\nnormalizer = 'sparsemax'\n")


@pytest.mark.parametrize("names", [("normalizer", FORMER), (FORMER, "normalizer")])
def test_key_with_its_former_name_is_refused(read, names):
    first, second = names
    with pytest.raises(ConfigError, match=f"'{FORMER}' is the former name of 'normalizer'; remove '{FORMER}'"):
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normalization": "nfc"}, "normalization must be one of nmt_nfkc, nfkc, nmt_nfkc_cf, nfkc_cf, identity"),
        ({"kind": "words", "normalization": "identity"}, "normalization must be one of nfc, nfkc, none"),
        ({"case": "upper"}, "case must be one of keep, lower"),
        ({"character_coverage": 0.0}, r"character_coverage must be in \(0, 1\], got 0.0"),
        ({"character_coverage": 1.01}, "character_coverage must be in"),
        ({"character_coverage": float("nan")}, "character_coverage must be in"),
        ({"kind": "words", "character_coverage": 0.9}, "character_coverage is an option of sentencepiece"),
        ({"kind": "characters", "byte_fallback": True}, "byte_fallback is an option of sentencepiece"),
        ({"kind": "words", "split_digits": True}, "split_digits is an option of sentencepiece"),
        ({"user_symbols": ("",)}, "user_symbols must be printable and without white space, got ''"),
        ({"user_symbols": ("a b",)}, "user_symbols must be printable and without white space"),
        ({"user_symbols": ("a\ud83d",)}, "user_symbols must be printable and without white space"),
        ({"user_symbols": ("</s>",)}, "user_symbols must not contain '</s>'"),
        ({"user_symbols": ("a", "a")}, "user_symbols must not contain an entry twice"),
        ({"kind": "characters", "user_symbols": ("ab",)}, "user_symbols must be single characters"),
        ({"source_size": 5, "user_symbols": ("a",)}, "1 user_symbols leave no room"),
    ],
)
def test_text_options_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        TextConfig(**options)


def test_byte_order_mark_is_removed(read):
    assert read("\ufeff[data]\ntrain = 't.tsv'\nholdout = 1\n") == Config(DataConfig("t.tsv", holdout=1))


def test_parallel_files_and_columns_survive_json(read):
    config = read("[data]\ntrain = ['t.de', 't.en']\nvalid = ['v.de', 'v.en']\ncolumns = [2, 1]\n")
    assert config.data == DataConfig(("t.de", "t.en"), ("v.de", "v.en"), columns=(2, 1))
    assert from_mapping(Config, json.loads(json.dumps(dataclasses.asdict(config))), "config.json") == config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": ("a",)}, "train must be one file of pairs or two parallel files, got 1"),
        ({"train": ("a", "b", "c")}, "train must be one file of pairs or two parallel files, got 3"),
        ({"train": ("a", "")}, "train must be one file of pairs or two parallel files"),
        ({"train": "a", "columns": (1,)}, r"columns must be two numbers of at least 1, got \[1\]"),
        ({"train": "a", "columns": (0, 1)}, "columns must be two numbers of at least 1"),
    ],
)
def test_data_options_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        DataConfig(holdout=1, **options)


def test_unreadable_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.toml cannot be read: No such file"):
        read_config(tmp_path / "none.toml")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read_config(tmp_path)


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

"""Tests of verify on right models that fp32 itself rounds by more than the ceilings, and on mutants of them."""

from __future__ import annotations

import copy
import dataclasses
import random

import pytest

pytest.importorskip("torch", reason="torch is not installed: a device needs none")

import numpy as np
import onnx
import torch

from edge_attn import checkpoint
from edge_attn.bundle.bundle import Bundle
from edge_attn.config.models import Seq2SeqConfig
from edge_attn.config.training import Config, DataConfig, TextConfig, TrainingConfig
from edge_attn.export.pipeline import export
from edge_attn.models.interface import EncoderDecoder
from edge_attn.models.seq2seq import Seq2Seq
from edge_attn.parity.golden import Golden
from edge_attn.parity.recorder import record_translation
from edge_attn.parity.results import LevelResult, Measurement
from edge_attn.parity.tolerances import BOUNDS, bounds
from edge_attn.reference import ModelReferences
from edge_attn.runtimes.tasks.decoder_levels import compare_graphs_and_steps, compare_sentences
from edge_attn.runtimes.verification.verify import verify
from edge_attn.text.pipeline import Text

torch.set_num_threads(1)

WORDS = [f"w{i}" for i in range(60)]
LONGEST = 40
SIZES = {"embedding": 16, "encoder_hidden": 16, "decoder_hidden": 32, "attention_size": 16}
SCALED_LSTM = Seq2SeqConfig(
    cell="lstm",
    attention="scaled",
    attend="after",
    input_feeding=True,
    encoder_layers=2,
    decoder_layers=2,
    **SIZES,
)
TEXT = Text.train(TextConfig("words", 100, 100), [(" ".join(WORDS),) * 2])


def lines(count: int) -> list[str]:
    """Return sentences of 1 to LONGEST random words."""
    choice = random.Random(1).choice
    lengths = [1 + i * (LONGEST - 1) // (count - 1) for i in range(count)]
    return [" ".join(choice(WORDS) for _ in range(length)) for length in lengths]


def moved(config: Seq2SeqConfig, seed: int, distance: float) -> Seq2Seq:
    """Return an untrained model with all weights moved by `distance` times N(0, 1): large, chaotic activations."""
    torch.manual_seed(seed)
    model = Seq2Seq(config, len(TEXT.source), len(TEXT.target)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight += distance * torch.randn_like(weight)
    return model


def levels(model: EncoderDecoder, golden: Golden) -> list[LevelResult]:
    """Compare the folded form of `model`, which rounds elsewhere than the reference, at L1, L2 and L3."""
    runtime, limits = ModelReferences(model).deployed, bounds("fp32", {}, {})
    return [
        *compare_graphs_and_steps(runtime, golden, TEXT, limits),
        compare_sentences(runtime, golden, TEXT, LONGEST + 2, limits),
    ]


def above_ceiling(results: list[LevelResult]) -> set[str]:
    """Return the names of the bounds whose ceilings are exceeded."""

    def name(measured: Measurement) -> str:
        return f"{measured.level}.{measured.name.partition(' ')[0]}"

    measurements = [measured for level in results for measured in level.measurements]
    return {name(measured) for measured in measurements if measured.value > BOUNDS["fp32"][name(measured)]}


@pytest.fixture(scope="module")
def noisy() -> tuple[Seq2Seq, Golden]:
    """Return a model whose fp32 differs from its fp64 by about 1e-4, and its golden data."""
    model = moved(SCALED_LSTM, 5, 0.33)
    return model, record_translation(ModelReferences(model), TEXT, lines(12), LONGEST + 2)


@pytest.mark.slow
def test_right_model_within_its_own_noise_holds(noisy):
    model, golden = noisy
    results = levels(model, golden)
    assert above_ceiling(results) >= {"L1.state", "L2.log_prob"}
    assert [level.status for level in results] == ["holds"] * 3
    without = dataclasses.replace(golden, noise={})  # bundles of earlier versions have the ceilings
    assert "fails" in [level.status for level in levels(model, without)]


def scale_weights(model: Seq2Seq) -> None:
    for weight in model.parameters():
        weight *= 1 + 1e-3 * torch.randn_like(weight)


def zero_row(model: Seq2Seq) -> None:
    model.output.weight[10] = 0


def set_nan(model: Seq2Seq) -> None:
    model.output.weight[10, 3] = torch.nan


def swap_rows(model: Seq2Seq) -> None:
    model.output.weight[[10, 11]] = model.output.weight[[11, 10]]


def round_to_fp16(model: Seq2Seq) -> None:
    for weight in model.parameters():
        weight.copy_(weight.half().float())


def scale_output(model: Seq2Seq) -> None:
    model.output.weight *= 1.001


@pytest.mark.slow
@pytest.mark.parametrize("mutate", [scale_weights, scale_output, zero_row, set_nan, swap_rows, round_to_fp16])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_mutant_of_a_noisy_model_fails(noisy, mutate):
    model, golden = noisy
    mutant = copy.deepcopy(model)
    torch.manual_seed(9)
    with torch.no_grad():
        mutate(mutant)
    assert levels(mutant, golden)[1].status == "fails"


@pytest.mark.slow
def test_reference_that_is_noise_alone_proves_nothing(noisy):
    """Noise above the limit excuses no difference."""
    model, golden = noisy
    mutant = copy.deepcopy(model)
    with torch.no_grad():
        scale_output(mutant)
    unlimited = dataclasses.replace(golden, noise=dict.fromkeys(golden.noise, 1e6))
    assert levels(mutant, unlimited)[1].status == "fails"


# ---- the same through export


def large_keys() -> Seq2Seq:
    """Return a model whose attention has keys of about a hundred."""
    model = moved(Seq2SeqConfig(attention="additive", **SIZES), 1, 0.0)
    with torch.no_grad():
        model.attention.keys.weight *= 500.0
    return model


def change_output_weight(bundle: Bundle) -> Bundle:
    """Return the bundle with the weights of the step's largest matrix multiplied by 1.001."""
    file = bundle.manifest.graphs["step"].file
    model = onnx.load_from_string(bundle.read(file))
    weight = max(
        (tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT),
        key=lambda tensor: len(tensor.raw_data),
    )
    values = onnx.numpy_helper.to_array(weight) * np.float32(1.001)
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    files = {name: bundle.read(name) for name in bundle.manifest.files}
    return Bundle(bundle.path, bundle.manifest, {**files, file: model.SerializeToString()})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "exceeded"),
    [(large_keys, "L1.p99"), (lambda: moved(SCALED_LSTM, 5, 0.33), "L1.state")],
    ids=["large keys", "noisy"],
)
def test_right_model_above_the_ceilings_exports(tmp_path, make, exceeded):
    model, folder = make(), tmp_path / "checkpoint"
    data = DataConfig("train.tsv", "valid.tsv", max_tokens=LONGEST + 2)
    config = Config(data, TextConfig("words"), model.config, TrainingConfig())
    folder.mkdir()
    checkpoint.save_config(folder, config, TEXT)
    checkpoint.save_model(folder, model, "fp32")
    checkpoint.save_samples(folder, lines(64))
    export(folder, tmp_path / "bundle")
    bundle = Bundle.open(tmp_path / "bundle")
    report = verify(bundle)
    assert report.verdict == "holds"
    assert exceeded in above_ceiling(report.levels)
    assert verify(change_output_weight(bundle)).verdict == "fails"

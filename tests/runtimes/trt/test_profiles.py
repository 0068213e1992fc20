"""Buckets, their profiles, and requests that no bucket covers."""

from __future__ import annotations

import pytest

from edge_attn.bundle.bundle import Bundle
from edge_attn.errors import BundleError, ConfigError, InputError
from edge_attn.runtimes.trt.profiles import Bucket, Buckets
from edge_attn.spec import GraphSpec, TensorSpec

STEP = GraphSpec(
    "graphs/step.onnx",
    (
        TensorSpec("tokens", "int64", ("batch", "beam")),
        TensorSpec("memory.keys", "float32", ("batch", "src", 8)),
        TensorSpec("state.hidden.0", "float32", ("batch", "previous_beam", 24)),
    ),
    (),
)


def test_profile_has_a_range_for_each_input():
    profile = Buckets((1, 8), (16, 48), 5).profiles(STEP, 20)[3]
    assert profile.shapes(STEP) == {
        "tokens": ((8, 1), (8, 5), (8, 5)),
        "memory.keys": ((8, 20, 8), (8, 20, 8), (8, 20, 8)),
        "state.hidden.0": ((8, 1, 24), (8, 5, 24), (8, 5, 24)),
    }
    assert str(profile) == "beam 1-5 (5), previous_beam 1-5 (5), batch 8, src 20"


def test_graphs_of_a_bundle_have_equal_buckets(toy_bundle):
    manifest = Bundle.open(toy_bundle).manifest
    profiles = {name: Buckets().profiles(spec, manifest.max_source) for name, spec in manifest.graphs.items()}
    for encoder, step in zip(profiles["encoder"], profiles["step"], strict=True):
        assert encoder.axes["batch"] == step.axes["batch"]
        assert encoder.axes["src"] == step.axes["src"]
    assert "beam" not in profiles["encoder"][0].axes
    assert profiles["step"][0].axes["previous_beam"] == (1, 5, 5)


@pytest.mark.parametrize(
    ("max_source", "src"), [(6, (6,)), (16, (16,)), (17, (16, 17)), (100, (16, 48, 100)), (200, (16, 48, 100, 200))]
)
def test_longest_source_is_always_covered(max_source, src):
    buckets = Buckets().up_to(max_source)
    assert buckets.src == src
    assert buckets.up_to(max_source) == buckets
    assert [bucket.index for bucket in buckets.all()] == list(range(2 * len(src)))


def test_axis_without_a_range_is_rejected():
    spec = GraphSpec("g.onnx", (TensorSpec("x", "float32", ("batch", "heads")),), ())
    with pytest.raises(BundleError, match=r"g.onnx: the axis 'heads' of x float32 \(batch, heads\) has no range"):
        Buckets().profiles(spec, 10)


@pytest.mark.parametrize(
    ("request_", "expected"),
    [((1, 1, 1), (0, 1, 16)), ((1, 17, 5), (2, 1, 48)), ((2, 16, 5), (1, 8, 16)), ((8, 60, 1), (5, 8, 60))],
)
def test_pick_returns_the_smallest_covering_bucket(request_, expected):
    index, batch, src = expected
    assert Buckets().up_to(60).pick(*request_) == Bucket(index, batch, src, 5)


@pytest.mark.parametrize("request_", [(9, 1, 1), (1, 61, 1), (1, 1, 6)])
def test_too_large_request_names_the_largest_bucket(request_):
    with pytest.raises(InputError, match=r"up to 8 sentences of up to 60 tokens with a beam of up to 5, got"):
        Buckets().up_to(60).pick(*request_)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": ()}, "batch must be increasing sizes"),
        ({"batch": (8, 1)}, "batch must be increasing sizes"),
        ({"src": (1, 1)}, "src must be increasing sizes"),
        ({"batch": (0, 1)}, "batch must be at least 1"),
        ({"beam": 0}, "beam must be at least 1"),
        ({"batch": (1, 10**26)}, "batch must be at most 2147483647"),
        ({"src": (2**31,)}, "src must be at most 2147483647"),
        ({"beam": 2**31}, "beam must be at most 2147483647"),
    ],
)
def test_invalid_buckets_are_rejected(options, message):
    with pytest.raises(ConfigError, match=message):
        Buckets(**options)


def test_max_bytes_is_the_size_in_the_largest_bucket():
    buckets = Buckets((1, 8), (16, 48), 5)
    assert [buckets.max_bytes(tensor) for tensor in STEP.inputs] == [8 * 5 * 8, 8 * 48 * 8 * 4, 8 * 5 * 24 * 4]

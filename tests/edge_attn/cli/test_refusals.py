"""Wrong paths, configurations and options are refused before torch, onnx or a runtime is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from paths import DATA

HEAVY = ("torch", "onnx", "onnxscript", "onnxruntime", "safetensors", "sacrebleu", "h5py")
BUNDLE, CHECKPOINT, PAIRS = DATA / "toy-bundle.zip", DATA / "toy-checkpoint", DATA / "toy.tsv"
TOML = {
    "key": "[network]\n",
    "type": "[data]\ntrain = 'pairs.tsv'\nholdout = 2\n[training]\nupdates = 'thirty'\n",
    "syntax": "[data\n",
    "data": "[data]\ntrain = 'absent.tsv'\nholdout = 2\n",
    "column": "[data]\ntrain = 'column.tsv'\nholdout = 2\n",
    "heads": "[data]\ntrain = 'pairs.tsv'\nholdout = 2\n[model]\nattention = 'multi-head'\nheads = 5\n",
    "keras": "[data]\ntrain = 'pairs.tsv'\nholdout = 2\n[model]\nattention = 'keras-dot'\ndecoder_hidden = 6\n",
    "bridge": "[data]\ntrain = 'pairs.tsv'\nholdout = 2\n[model]\ncell = 'lstm'\nencoder_cell = 'gru'\n",
    "good": "[data]\ntrain = 'pairs.tsv'\nholdout = 2\n",
}
TRAIN = [
    ("absent.toml", "absent.toml cannot be read"),
    ("key.toml", "unknown key 'network'"),
    ("type.toml", "updates must be of type int"),
    ("syntax.toml", "is not TOML"),
    ("data.toml", "absent.tsv cannot be read"),
    ("column.toml", "column.tsv, line 1: expected source and target"),
    ("heads.toml", "heads must divide attention_size"),
    ("keras.toml", "needs decoder_hidden = 2 * encoder_hidden"),
    ("bridge.toml", "encoder_cell = 'gru' does not have"),
    (CHECKPOINT, "is not a TOML file: it is a checkpoint of edge-attn; run: edge-attn export "),
]
CASES: list[tuple[list[object], int, str]] = [
    *((["train", config, "--out", "out"], 4, error) for config, error in TRAIN),
    (["train", "good.toml", "--out", BUNDLE], 4, "exists and is not a checkpoint; choose another --out"),
    (["train", "good.toml", "--out", "out", "--init", "absent"], 4, "absent is not a checkpoint: there is no such"),
    (["train", "good.toml", "--out", "out", "--threads", "0"], 2, "--threads"),
    (["export", "absent", "--out", "out"], 4, "absent is not a checkpoint: there is no such file or folder"),
    (["export", "model.pt", "--out", "out"], 4, "is not a checkpoint: it is a pickle"),
    (["export", BUNDLE, "--out", "out"], 4, "is not a checkpoint: it is a bundle; translate, score, "),
    (["export", CHECKPOINT, "--out", "taken"], 4, "exists; choose another --out, or add --force"),
    (["export", CHECKPOINT, "--out", "out.tar"], 4, "a bundle is a folder or a .zip, got --out out.tar"),
    (["export", CHECKPOINT, "--out", "out", "--candidates", "1"], 4, "--candidates must be at least 2"),
    (["export", CHECKPOINT, "--out", "out", "--input", "absent"], 4, "absent cannot be read"),
    (["export", CHECKPOINT, "--out", "out", "--input", "empty"], 4, "empty is empty"),
    (["verify", CHECKPOINT], 4, "is not a bundle: it is a checkpoint of edge-attn"),
    (["verify", BUNDLE, "--reference", "absent"], 4, "absent is not a checkpoint"),
    (["verify", BUNDLE, "--reference", BUNDLE], 4, "is not a checkpoint: it is a bundle"),
    (["verify", BUNDLE, "--reference", CHECKPOINT, "--input", "absent"], 4, "absent cannot be read"),
    (["verify", BUNDLE, "--input", PAIRS], 2, "--input needs --reference"),
    (["translate", BUNDLE, "--input", "absent"], 4, "absent cannot be read"),
    (["translate", BUNDLE, "--input", BUNDLE], 4, "is not a text file: it is a bundle"),
    (["translate", BUNDLE, "--prefix", "absent"], 4, "absent cannot be read"),
    (["translate", "graph.onnx"], 4, "graph.onnx is not a bundle: it is an ONNX graph; a bundle comes from: "),
    (["translate", BUNDLE, "--runtime", "tvm"], 2, "'tvm' is not one of "),
    (["translate", BUNDLE, "--n-best", "3", "--beam", "2"], 2, "--n-best must be between 1 and the beam (--beam 2)"),
    (["score", PAIRS, BUNDLE], 2, "the model comes first, then the file of pairs; exchange them"),
    (["align", BUNDLE, "absent"], 4, "absent cannot be read"),
    (["evaluate", PAIRS, BUNDLE], 2, "the model comes first, then the file of pairs; exchange them"),
    (["evaluate", PAIRS, CHECKPOINT], 2, "the model comes first, then the file of pairs; exchange them"),
    (["evaluate", BUNDLE, PAIRS, "--against", "absent"], 4, "absent is not a bundle: there is no such file"),
    (["evaluate", BUNDLE, PAIRS, "--against", "graph.onnx"], 4, "is not a bundle: it is an ONNX graph"),
    (["inspect", CHECKPOINT], 4, "is not a bundle: it is a checkpoint of edge-attn"),
    (["inspect", "absent"], 4, "is not a bundle: there is no such file or folder"),
]
PROCESS = """
import contextlib, io, json, sys
from edge_attn.cli import cli
results = []
for arguments in json.load(sys.stdin):
    with contextlib.redirect_stderr(io.StringIO()) as stderr:
        try:
            cli(arguments)
        except SystemExit as end:
            code = end.code
    results.append((code, stderr.getvalue(), [name for name in sys.argv[1:] if name in sys.modules]))
json.dump(results, sys.stdout)
"""


@pytest.fixture(scope="module")
def refusals(tmp_path_factory) -> list[tuple[int, str, list[str]]]:
    """Return the exit code, the error and the heavy modules loaded so far, of each case, all in one process."""
    folder: Path = tmp_path_factory.mktemp("refusals")
    for name, text in TOML.items():
        (folder / f"{name}.toml").write_text(text)
    (folder / "pairs.tsv").write_text("a\tb\n" * 9)
    (folder / "column.tsv").write_text("a\n")
    (folder / "empty").touch()
    (folder / "model.pt").write_bytes(b"\x80\x02}q\x00.")
    (folder / "graph.onnx").write_bytes(b"\x08\x0a\x12\x07pytorch")
    (folder / "taken").mkdir()
    (folder / "taken" / "bundle.json").write_text("{}")
    arguments = json.dumps([list(map(str, case[0])) for case in CASES])
    done = subprocess.run(
        [sys.executable, "-c", PROCESS, *HEAVY], input=arguments, capture_output=True, text=True, cwd=folder, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert not (folder / "out").exists()
    results: list[tuple[int, str, list[str]]] = json.loads(done.stdout)
    return results


@pytest.mark.parametrize("case", range(len(CASES)), ids=[" ".join(Path(str(w)).name for w in c[0]) for c in CASES])
def test_wrong_input_is_refused_before_a_framework_is_imported(refusals, case):
    (_, expected, error), (code, stderr, heavy) = CASES[case], refusals[case]
    assert code == expected, stderr
    assert stderr.startswith("edge-attn: ")
    assert stderr.count("\n") == 1
    assert error in stderr
    assert heavy == []

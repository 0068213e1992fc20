"""Write kinds/: a tiny trained bundle of every attention and cell, in some minutes.

    python tests/data/make_kinds.py [NAME ...]

The sentences are the shortest of the toy language, so that even a model without attention learns them. Each bundle has
golden data of a few sentences, enough to verify the graphs of a target for that kind.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from make_toy import pairs, write_pairs

from edge_attn.bundle.manifest import FORMAT, Manifest
from edge_attn.bundle.writer import write_bundle
from edge_attn.checkpoint import load
from edge_attn.export.pipeline import graph_model
from edge_attn.models.graphs import encoder_decoder_graphs
from edge_attn.parity.recorder import record_translation
from edge_attn.reference import ModelReferences
from edge_attn.registry import ATTENTIONS

HERE = Path(__file__).resolve().parent
CELL_OPTIONS = {
    "gru": "",
    "lstm": 'attend = "after"\ninput_feeding = true\nencoder_layers = 2\ndecoder_layers = 2\n',
    "lstmn": "tape = 12\n",
}
"""Model options of each cell; together they cover both values of `attend`."""
GENERAL = 'attention = "general"\n'
KINDS = {
    **{
        f"{attention}-{cell}": ""
        for attention in ("additive", "dot", "general", "scaled", "none")
        for cell in ("gru", "lstm")
    },
    "location-gru": "positions = 8\n",
    "multi-head-lstm": "",
    "pooling-gru": "",
    "keras-dot-gru": "",
    "keras-concat-lstm": "",
    "keras-additive-gru": "",
    "sparsemax-lstm": GENERAL + 'normalizer = "sparsemax"\n',
    "local-m-gru": GENERAL + 'focus = "local-m"\nwindow = 2\n',
    "local-p-lstm": GENERAL + 'focus = "local-p"\nwindow = 2\n',
    "hard-gru": 'focus = "hard"\n',
    "coverage-lstm": "coverage = true\n",
    "additive-lstmn": "",
}
"""Model options of each bundle, named `attention-cell`; an attention wrapper names its attention too."""
SENTENCES, CANDIDATES, MAX_TOKENS = 16, 6, 8
CONFIG = """
[data]
train = "train.tsv"
holdout = 60
max_tokens = {max_tokens}

[text]
kind = "words"
source_size = 100
target_size = 100

[model]
cell = "{cell}"
{options}embedding = 16
encoder_hidden = 16
decoder_hidden = 32
attention_size = 16

[training]
updates = 700
warmup = 70
batch_tokens = 512
learning_rate = 1e-2
label_smoothing = 0.0
validate_every = 700
checkpoint_every = 700
storage = "fp16"
"""


def main() -> None:
    short = [(source, target) for source, target in pairs(3200, seed=1) if len(source.split()) < MAX_TOKENS]
    (HERE / "kinds").mkdir(exist_ok=True)
    for name in sys.argv[1:] or KINDS:
        attention, _, cell = name.rpartition("-")
        options = KINDS[name] + CELL_OPTIONS[cell]
        if "attention =" not in options and attention in ATTENTIONS:
            options = f'attention = "{attention}"\n{options}'
        with tempfile.TemporaryDirectory() as folder:
            write_pairs(Path(folder, "train.tsv"), short)
            config = Path(folder, "kind.toml")
            config.write_text(CONFIG.format(cell=cell, options=options, max_tokens=MAX_TOKENS))
            run = [sys.executable, "-m", "edge_attn.cli", "train", str(config), "--out", f"{folder}/trained"]
            subprocess.run([*run, "--threads", "1"], check=True)
            write(Path(folder, "trained"), HERE / "kinds" / f"{name}.zip", [s for s, _ in short])


def write(checkpoint: Path, out: Path, sentences: list[str]) -> None:
    """Write the bundle `out` of a checkpoint, with golden data of some of the sentences."""
    model, text, config = load(checkpoint)
    files, specs = dict(text.files()), {}
    for name, graph in encoder_decoder_graphs(model, CANDIDATES).items():
        proto, _ = graph_model(name, graph, graph.spec, half=True)
        files[graph.spec.file], specs[name] = proto.SerializeToString(deterministic=True), graph.spec
    chosen = sorted(sentences, key=len)[:: len(sentences) // (SENTENCES - 1)]
    golden = record_translation(ModelReferences(model, CANDIDATES), text, chosen, MAX_TOKENS)
    files.update(golden.files())
    manifest = Manifest(
        FORMAT,
        config.model.family,
        "translation",
        "fp32",
        specs,
        MAX_TOKENS,
        golden=golden.contents(),
    )
    write_bundle(out, manifest, files, force=True)


if __name__ == "__main__":
    main()

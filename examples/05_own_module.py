"""Export a torch module of your own, which contains an attention of ours."""

import tempfile
from pathlib import Path

import torch

import edge_attn
from edge_attn.models.layers.attention import Additive
from edge_attn.models.layers.recurrent import RecurrentLayer


class Reader(torch.nn.Module):
    """Reads a sentence in both directions, then attends to it once."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(100, 32)
        self.layer = RecurrentLayer("gru", 32, 16)  # 16 in each direction: 32 outputs
        self.attention = Additive(query_size=32, value_size=32, attention_size=16)

    def forward(self, tokens, length):
        values, (last,) = self.layer(self.embedding(tokens), length)
        mask = torch.arange(tokens.shape[1]) < length[:, None]
        return self.attention(last[:, None], self.attention.prepare(values, mask, last))


with tempfile.TemporaryDirectory() as folder:
    spec = edge_attn.export_module(
        Reader(),
        Path(folder, "reader.onnx"),
        inputs={"tokens": ("int64", ["batch", "src"], [0, 99]), "length": ("int64", ["batch"], [1, "src"])},
        outputs={"context": ("float32", ["batch", 1, 32]), "weights": ("float32", ["batch", 1, "src"])},
    )
    print(*spec.inputs, "->", *spec.outputs)

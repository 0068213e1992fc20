"""Export a checkpoint to a bundle, and translate with it.

python examples/04_export_a_checkpoint.py CHECKPOINT
"""

import sys
import tempfile
from pathlib import Path

import edge_attn

toy = Path(__file__).parents[1] / "tests" / "data" / "toy-checkpoint"
checkpoint = Path(sys.argv[1]) if len(sys.argv) > 1 else toy
with tempfile.TemporaryDirectory() as folder:
    bundle = Path(folder, "bundle.zip")
    manifest = edge_attn.export(checkpoint, bundle)  # traced, checked, recorded and verified before it is written
    print("graphs:", *manifest.graphs)
    print("verified:", manifest.verification["levels"])
    print(edge_attn.load(bundle).translate(["the red king"])[0].text)

"""Verify a bundle against its golden data, and read the report."""

import sys
from pathlib import Path

import edge_attn

bundle = Path(edge_attn.__file__).parent / "pretrained" / "en-fr.zip"
report = edge_attn.verify(bundle, runtime="ort-cpu", threads=1)
print(report)
for level in report.levels:
    print(level.name, level.status)
sys.exit(report.exit_code)

"""Verify a bundle against its golden data, and read the report."""

import sys
from pathlib import Path

import edge_attn
from edge_attn.config.runtime import RuntimeOptions
from edge_attn.runtimes.verification.verify import verify

bundle = Path(edge_attn.__file__).parent / "pretrained" / "en-fr.zip"
report = verify(bundle, runtime="ort-cpu", options=RuntimeOptions(threads=1))
print(report)
for level in report.levels:
    print(level.name, level.status)
sys.exit(report.exit_code)

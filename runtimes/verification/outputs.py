"""`edge-attn verify` with its reports: text or JSON on standard output, and files for the machines that read them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edge_attn.bundle.output_file import check_output_file, write_output_file
from edge_attn.config.runtime import DEFAULT, RuntimeOptions
from edge_attn.runtimes.verification.junit import junit
from edge_attn.runtimes.verification.markdown import markdown
from edge_attn.runtimes.verification.report import FailedRun, Report
from edge_attn.runtimes.verification.verify import verify

FORMATS: dict[str, Callable[[Report | FailedRun], str]] = {"junit": junit, "summary": markdown}
"""Report formats of a file, by the name of their option."""
STANDARD_OUTPUT = Path("-")


def verify_and_report(
    bundle: Path,
    runtime: str = "ort-cpu",
    options: RuntimeOptions = DEFAULT,
    as_json: bool = False,
    verbose: bool = False,
    files: Mapping[str, Path | None] | None = None,
    log: Callable[[str], object] = print,
    **arguments: Any,
) -> int:
    """Verify a bundle, print and write the reports, and return the exit code.

    Reports are also written when nothing could be verified: their verdict is then `error`, with the reason.

    Args:
        bundle: folder or zip.
        runtime: name of the runtime.
        options: options of the runtime.
        as_json: print JSON instead of text.
        verbose: print every bound and every mismatch.
        files: path of each report, by a name of FORMATS; `-` is standard output.
        log: function that prints a text.
        arguments: further arguments of `verify`.

    Raises:
        EdgeAttnError: nothing could be verified, or a report cannot be written.
    """
    paths = {name: path for name, path in (files or {}).items() if path is not None}
    for path in paths.values():
        if path != STANDARD_OUTPUT:
            check_output_file(path)
    start = time.monotonic()
    try:
        report = verify(bundle, runtime, options=options, **arguments)
    except Exception as error:
        failure = FailedRun.of(error, bundle, runtime, options.precision, time.monotonic() - start)
        if as_json:
            log(failure.json().rstrip("\n"))
        _write(failure, paths, log)
        raise
    log(report.json().rstrip("\n") if as_json else report.details() if verbose else str(report))
    _write(report, paths, log)
    return report.exit_code


def _write(report: Report | FailedRun, paths: Mapping[str, Path], log: Callable[[str], object]) -> None:
    for name, path in paths.items():
        text = FORMATS[name](report)
        if path == STANDARD_OUTPUT:
            log(text.rstrip("\n"))
        else:
            write_output_file(path, text)

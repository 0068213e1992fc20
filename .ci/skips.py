"""Read pytest's JUnit report, and check the reason of every skipped test.

    python .ci/skips.py REPORT [REASON ...]

The exit code is 0 if at least one test ran and every skip (or expected failure) has one of the reasons. Otherwise it
is 1, and the tests are printed.
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path


def main(report: Path, reasons: list[str]) -> int:
    cases = ElementTree.parse(report).findall(".//testcase")
    skipped = {
        f"{case.get('classname')}::{case.get('name')}": f"{skip.get('message')} {skip.text or ''}".strip()
        for case in cases
        for skip in case.findall("skipped")
    }
    unexpected = {test: why for test, why in skipped.items() if not any(reason in why for reason in reasons)}
    print(
        f"{len(cases) - len(skipped)} tests ran, {len(skipped) - len(unexpected)} were skipped for a reason on the list"
    )
    for test, why in unexpected.items():
        print(f"skipped for a reason that is not on the list: {test}: {why}", file=sys.stderr)
    if len(cases) == len(skipped):
        print("no test ran", file=sys.stderr)
    return int(bool(unexpected) or len(cases) == len(skipped))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))

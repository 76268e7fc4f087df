"""Refuses words that docs/glossary.md and the field's terms have replaced; `make lint` runs it.

    python tests/retired_words.py

Prints every hit as file:line: word (use ...), and exits with 1 if there is one.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Files that are read. CHANGELOG.md tells of older versions in their own words.
READ = re.compile(
    r"^(tf_detectorgan|docs|configs|k8s|docker)/.*\.(py|md|flags|yaml|html|txt)$|^(README|CONTRIBUTING)\.md$"
)
# What is retired, as a regular expression, and what to write instead.
RETIRED = {
    r"doors?": "command line",
    r"house|rooms": "package, module",
    r"judg(e|es|ed|ing)|opinions?|wish(es)?": "loss, gradient, score",
    r"look(s|ing)? ahead|lookahead|L_real_ahead": "unrolled step, L_real_unrolled",
    r"(in|of|two|first|the) looks": "appearance, features, steps",
    r"auditors?|dealt": "held-out detectors, assign_folds",
    r"object layers?": "object residual",
    r"beside": "with, next to, in addition to",
    r"nobody|somebody": "say who or what, or use the passive",
    r"elsewhere": "evaluation set, or say where",
    r"of_chief|first words|last words": "run_on_chief; preflight checks; summary",
    r"is no error": "share of the residual's variance that is signal",
    r"--(exemplar|condition|compose|strength|gan_steps|final_steps|main_iou|match_top_k|audit_folds)": (
        "--object_source, --generator_input, --output, --residual_scale, --pretrain_gan_steps, "
        "--final_detector_steps, --primary_iou, --match_candidates, --crossfit_folds"
    ),
}
_PATTERN = re.compile(
    "|".join(f"(?P<w{n}>(?<![\\w-])(?:{words})(?!\\w))" for n, words in enumerate(RETIRED)), re.IGNORECASE
)


def hits(text: str) -> Iterator[tuple[int, str, str]]:
    """Yields (line number, retired word, what to write instead) of each retired word in `text`."""
    instead = list(RETIRED.values())
    for number, line in enumerate(text.splitlines(), 1):
        for match in _PATTERN.finditer(line):
            yield number, match.group(), instead[int(str(match.lastgroup)[1:])]


def main() -> int:
    """Checks every tracked file; returns the exit code."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    found = 0
    for name in filter(READ.search, listed.splitlines()):
        if not (ROOT / name).is_file():  # deleted, not yet committed
            continue
        for number, word, instead in hits((ROOT / name).read_text(encoding="utf-8")):
            print(f"{name}:{number}: {word!r}; write {instead}", file=sys.stderr)
            found += 1
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

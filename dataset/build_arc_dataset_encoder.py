"""Build an ARC data set for models that are shown demonstrations (`data_mode: encoder`).

    python -m dataset.build_arc_dataset_encoder --input-file-prefix arc-bundles/arc-agi \\
        --subsets training evaluation concept --test-set-name evaluation --compact \\
        --output-dir data/arc1concept-encoder-aug-1000
    python -m dataset.build_arc_dataset_encoder --generated --canvas 6 --families few --output-dir data/my-few

The tasks of the test set are held out entirely: neither their tests nor their demonstrations are trained on. A puzzle's
demonstrations come before its tests. Training tasks that share an id or a grid, turned or recoloured, with a held-out
task are left out and listed in leakage.json; `--overlap keep` keeps them, as the public builder does. Names, order and
random numbers are that builder's, byte for byte. All other flags are those of dataset.build_arc_dataset.
"""

from __future__ import annotations

from engine.io import begin, execute

if __name__ == "__main__":
    begin()

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # `python dataset/build_arc_dataset_encoder.py`: import from the repository, not from dataset/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from dataset import build_arc_dataset


def parser() -> argparse.ArgumentParser:
    """The command line; every flag is also accepted with underscores."""
    return build_arc_dataset.parser(__doc__)


def main(argv: Sequence[str] | None = None) -> int:
    """Build, print what was built, return the exit code (0 done, 1 failure, 2 unusable command or input)."""
    return build_arc_dataset.main(argv, encoder=__doc__)


if __name__ == "__main__":
    execute(main)

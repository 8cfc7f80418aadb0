"""Does every key have an effect? Changes each key of a recipe's tiny instance, and shows what differs.

    python scripts/dead_keys.py                                  # one recipe for each script and kind of model
    python scripts/dead_keys.py cfg_pretrain cfg_train_cpu --verbose
    python scripts/dead_keys.py --all

Compares shapes, data order, schedule, optimizer, outputs, gradient, weights after three steps, averages, evaluation. A
key without any difference is DEAD, and the exit code 1, unless its field declares when it has no effect or a reason is
listed in verification/flips.py; so is a key for which no other value could be built, or whose code fails with another
value. Results are cached until the code changes; the first time takes 5 to 10 s per recipe.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.cli.console import begin, execute

if __name__ == "__main__":
    begin(output_is_all=True)

from dataset.arguments import script_parser
from engine.errors import UsageError
from engine.io import did_you_mean
from engine.registry import ROOT


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; a bad one exits 2."""
    parser = script_parser(__file__, __doc__)
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help="names of recipes, such as cfg_pretrain")
    parser.add_argument("--all", action="store_true", help="every recipe")
    parser.add_argument("--verbose", action="store_true", help="a line for each key, not only where something is wrong")
    return parser.parse_args(argv)


def chosen(args: argparse.Namespace) -> list[Path]:
    """The files of the chosen recipes. Raises: UsageError for one that does not exist."""
    from verification.flips import first_recipes
    from verification.static import recipes

    known = {path.stem: path for path in recipes(ROOT)}
    if unknown := [name for name in args.recipes if name not in known]:
        raise UsageError(f"there is no recipe {unknown[0]}: {did_you_mean(unknown[0], known)}")
    named = [known[name] for name in args.recipes]
    return named or (list(known.values()) if args.all else first_recipes())


def main(args: argparse.Namespace) -> int:
    """Check the keys and print; return the exit code."""
    from verification.flips import as_table, counts, flips_of

    failed = False
    try:
        for recipe in chosen(args):
            with tempfile.TemporaryDirectory(prefix="flips-") as folder:
                try:
                    flips = flips_of(recipe, Path(folder) / "data")
                except ImportError as error:
                    print(f"{recipe.stem}: skipped ({error})")
                    continue
            print(f"{recipe.stem}: {counts(flips)}", flush=True)
            faulty = [flip for flip in flips if flip.faulty]
            if shown := flips if args.verbose else faulty:
                print(as_table(shown))
            failed |= bool(faulty)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return int(failed)


if __name__ == "__main__":
    arguments = parse()
    execute(lambda: main(arguments))

"""Makes the bundled classifiers again: ``python -m trueward.metrics.classifier [digits] [mnist]``."""

import sys

from trueward.metrics.classifier.network import BUNDLED
from trueward.metrics.classifier.training import make


def main(names: list[str]) -> int:
    """Trains each of `names` (all bundled ones if empty) and says how good it is. Returns the exit code."""
    for name in names or BUNDLED:
        try:
            made = make(name)
        except ValueError as error:
            print(error, file=sys.stderr)
            return 2
        print(f"{name}: right on {made['held_out_accuracy']:.2%} of {made['held_out_images']} held-out images")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

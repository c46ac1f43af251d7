"""A small convolutional classifier: its penultimate layer is the feature space that images are compared in.

Inception features say little about 8x8 digits; a classifier of the data themselves does. Two are bundled, made by

    python -m trueward.metrics.classifier digits
    python -m trueward.metrics.classifier mnist

and :func:`train_classifier` makes one for labelled images of your own. Weights are stored in half precision with a JSON record of
how they were made and how often the classifier is right on images it has not seen.
"""

from trueward.metrics.classifier.network import (
    BUNDLED,
    FOLDER,
    Classifier,
    classifier_record,
    load_classifier,
    save_classifier,
)
from trueward.metrics.classifier.training import make, train_classifier

__all__ = [
    "BUNDLED",
    "FOLDER",
    "Classifier",
    "classifier_record",
    "load_classifier",
    "make",
    "save_classifier",
    "train_classifier",
]

"""The models that come with the package, each a run folder: ``run.json`` (with the record of its training) and weights.

:func:`trueward.load` opens them by name. ``python -m trueward.zoo runs/mnist mnist`` makes one of a finished run.
"""

"""One trainer for every objective, on one process or many, that resumes where it was stopped.

:func:`train` does it in one call; :class:`Trainer` is the object behind it and :class:`TrainingConfig` its settings.
:func:`recipe` has settings that work for the data that come with the package.
"""

from trueward.training.config import TrainingConfig
from trueward.training.ema import EMA
from trueward.training.feed import TrainingData
from trueward.training.recipes import Recipe, recipe, recipe_names
from trueward.training.start import train
from trueward.training.trainer import Trainer

__all__ = ["EMA", "Recipe", "Trainer", "TrainingConfig", "TrainingData", "recipe", "recipe_names", "train"]

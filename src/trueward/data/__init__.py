"""Data to learn from and to measure against, whatever they come as: always in the same order, with a declared range.

:func:`load_data` takes a name, an image folder, a NumPy or parquet file, an array, a tensor or a Hugging Face dataset and
answers with a :class:`Dataset`; :func:`to_images` and :func:`save_grid` turn values back into pictures.
"""

from trueward.data.dataset import Dataset
from trueward.data.images import grid, save_grid, to_images
from trueward.data.load import load_data

__all__ = ["Dataset", "grid", "load_data", "save_grid", "to_images"]

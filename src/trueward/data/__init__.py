"""Data to learn from and to measure against, whatever they come as: always in the same order, with a declared range.

:func:`load_data` takes a name, an image folder, a NumPy or parquet file, an array, a tensor or a Hugging Face dataset and
answers with a :class:`Dataset`.
"""

from trueward.data.dataset import Dataset
from trueward.data.load import load_data

__all__ = ["Dataset", "load_data"]

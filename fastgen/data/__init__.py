"""Data: scikit-learn digits, folders of images or WAV files, ``.npz`` archives, CSV tables, 2-d toys."""

from fastgen.data.dataset import SPLITS, Dataset, Description, Split
from fastgen.data.sources import DataConfig, load
from fastgen.data.standardization import Standardization

__all__ = ["SPLITS", "DataConfig", "Dataset", "Description", "Split", "Standardization", "load"]

"""Real data: scikit-learn digits, folders of images, folders of WAV files, ``.npz`` archives."""

from fastgen.data.dataset import SPLITS, Dataset, Description, Split
from fastgen.data.sources import DataConfig, load

__all__ = ["SPLITS", "DataConfig", "Dataset", "Description", "Split", "load"]

"""AUROC of tensors, for the validation during training."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score


def auroc(labels: NDArray[np.bool_], scores: NDArray[np.float32]) -> float:
    """NaN where there are not both kinds."""
    if labels.all() or not labels.any():
        return float("nan")
    return float(roc_auc_score(labels, scores))

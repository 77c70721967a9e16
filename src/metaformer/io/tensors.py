"""PyTorch tensors as images, without importing PyTorch."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray


@runtime_checkable
class TensorLike(Protocol):
    """The part of ``torch.Tensor`` that is used."""

    shape: Any

    def detach(self) -> Any: ...

    def cpu(self) -> Any: ...

    def __iter__(self) -> Any: ...


def array_of_tensor(tensor: TensorLike) -> NDArray[Any]:
    """The values, channels last: (C, H, W) of 1, 3 or 4 channels becomes (H, W, C).

    An image is at least 8 pixels on each side, so that which axis holds the channels is never in
    doubt. Half precision becomes float32, which NumPy knows.
    """
    values = tensor.detach().cpu()
    if values.is_floating_point() and values.element_size() < 4:
        values = values.float()
    array = np.asarray(values.numpy())
    if array.ndim == 3 and array.shape[0] in (1, 3, 4):
        array = np.ascontiguousarray(array.transpose(1, 2, 0))
    return array

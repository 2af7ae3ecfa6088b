"""Arrays reach the device whole, in one copy, wherever they lie on the host."""

import numpy as np
import torch

from quire_worker.execution.staging import ALIGNMENT, Staging

CPU = torch.device("cpu")


def test_arrays_keep_shape_dtype_and_numbers() -> None:
    arrays = [
        np.arange(3),
        np.arange(6, dtype=np.float32).reshape(3, 2).T,
        np.zeros(0, np.int32),
        np.array([-1, 2**31 - 1], np.int32),
        np.array([[-(2**63)], [2**63 - 1]]),
    ]

    sent = Staging(CPU, 1024).send(arrays)

    assert [tensor.tolist() for tensor in sent] == [array.tolist() for array in arrays]
    assert [tensor.dtype for tensor in sent] == [
        torch.int64, torch.float32, torch.int32, torch.int32, torch.int64
    ]  # fmt: skip
    assert [(tensor.data_ptr() - sent[0].data_ptr()) % ALIGNMENT for tensor in sent if tensor.numel()] == [0] * 4


def test_what_is_sent_lands_where_the_last_did() -> None:
    staging = Staging(CPU, 1024)
    first = staging.first(2, torch.int64)

    staging.send([np.array([1, 2])])
    assert first.tolist() == [1, 2]
    for number in range(10):
        staging.send([np.array([number, -1]), np.arange(20)])
        assert first.tolist() == [number, -1]


def test_it_grows_with_what_it_is_given() -> None:
    staging = Staging(CPU, ALIGNMENT)

    for length in (1, 1000, 3, 2000):
        (sent,) = staging.send([np.arange(length)])
        assert sent.tolist() == list(range(length))

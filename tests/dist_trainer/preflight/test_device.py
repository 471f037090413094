from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dist_trainer.preflight.device import matrices, try_device

CPU = torch.device("cpu")


@pytest.mark.parametrize("side", [8, 128])
def test_the_known_product_is_that_of_the_matrices(side: int) -> None:
    left, right, product = matrices(side, CPU)
    assert torch.equal(left.double() @ right.double(), product.double())
    assert not torch.equal(product, product.T), "rows in the place of columns would be seen"


def test_a_device_that_computes_right_is_described() -> None:
    assert try_device(CPU) == {"kind": "cpu", "name": "CPU", "visible": 0, "speed": 0.0}


def test_one_wrong_bit_in_one_element_is_found() -> None:
    def wrong(left: Tensor, right: Tensor) -> Tensor:
        product = left @ right
        product[-1, -1] = product[-1, -1].view(torch.int32).bitwise_xor(1).view(torch.float32)
        return product

    with pytest.raises(RuntimeError, match="cpu computes wrong: 1 of 16384 elements"):
        try_device(CPU, wrong)

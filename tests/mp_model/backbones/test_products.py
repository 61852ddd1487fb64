"""Products in half precision: every row is multiplied once, as in one product, and few numbers of rows occur."""

from __future__ import annotations

import pytest
import torch

from mp_model.backbones.products import product, row_blocks

COUNTS = (0, 1, 15, 16, 17, 48, 49, 63, 64, 65, 80, 81, 127, 1023, 1024, 1025, 1088, 2047, 5000)


def test_blocks_cover_all_rows_and_their_sizes_recur() -> None:
    sizes = set()
    for count in range(20_001):
        blocks = row_blocks(count)
        places = [place for block in blocks for place in (block.begin, block.end)]
        assert places[1:-1:2] == places[2::2], count
        assert not places or (places[0], places[-1]) == (0, count), count
        assert all(0 <= block.rows - (block.end - block.begin) < 16 for block in blocks), count
        assert len(blocks) <= 3
        sizes |= {block.rows for block in blocks}
    assert len(sizes) == 3 + 15 + 19  # 16 to 48; 64 to 960; 1,024 to 19 x 1,024


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("count", COUNTS)
def test_product_is_exact_to_its_type(count: int, with_bias: bool, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(count)
    x, weight, bias = (torch.randn(shape, generator=generator).to(dtype) for shape in ((count, 40), (24, 40), (24,)))
    with torch.inference_mode():
        found = product(x, weight, bias if with_bias else None)
    wanted = x.double() @ weight.double().t() + (bias.double() if with_bias else 0)
    assert found.dtype == dtype
    assert found.shape == (count, 24)
    summands = x.double().abs() @ weight.double().abs().t() + bias.double().abs()
    assert ((found.double() - wanted).abs() <= 2 * torch.finfo(dtype).eps * summands).all()


def test_rows_of_a_wider_matrix_are_read_where_they_lie() -> None:
    rows = torch.randn(70, 96).bfloat16()
    with torch.inference_mode():
        found = product(rows[:, 32:64], torch.eye(32).bfloat16())
    assert torch.equal(found, rows[:, 32:64])


def test_gradients_go_through_one_product() -> None:
    x, weight = torch.randn(70, 8).bfloat16(), torch.randn(4, 8).bfloat16().requires_grad_()
    product(x, weight).sum().backward()
    torch.testing.assert_close(weight.grad, x.sum(0).expand(4, 8), rtol=0.02, atol=0.1)

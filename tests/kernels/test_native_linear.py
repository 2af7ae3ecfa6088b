"""Linear layers in C++: against float64 over odd shapes, instruction sets and team sizes; a row alone as in company; int8 exactly."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from quire_kernels.cpu.linear import NativeLinear, NativeLinears
from quire_kernels.cpu.native_library import NativeLibrary

DTYPES = (torch.float32, torch.bfloat16)
SHAPES = (
    (1, 64, 96), (1, 7, 33), (2, 1, 1), (3, 33, 40), (5, 200, 31), (6, 48, 200), (7, 100, 50), (12, 5, 64), (13, 31, 34),
    (24, 128, 17), (40, 2, 130), (70, 199, 200), (200, 77, 64),
    (7, 1030, 40), (26, 2085, 70), (110, 1500, 33), (30, 40, 5000), (205, 30, 2100),
)  # fmt: skip
FORMS: tuple[dict[str, Any], ...] = (
    {}, {"gate_up": True}, {"int8": "w8a8"}, {"int8": "weights"}, {"int8": "weights", "gate_up": True},
)  # fmt: skip
RELATIVE_ERROR = {torch.float32: 2e-6, torch.bfloat16: 3e-3}


@pytest.fixture
def linears(native_isa: NativeLibrary) -> NativeLinears:
    return NativeLinears(native_isa)


def make_layer(
    linears: NativeLinears, weight: Tensor, dtype: torch.dtype, bias: Tensor | None = None, **form: Any
) -> NativeLinear:
    packed = linears.empty(*weight.shape, dtype, has_bias=bias is not None, **form)
    packed.pack_rows(weight)
    if bias is not None:
        packed.pack_bias(bias)
    return NativeLinear(linears, packed)


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def gated(product: Tensor) -> Tensor:
    gate, up = product.chunk(2, dim=1)
    return gate * torch.sigmoid(gate) * up


def relative_error(out: Tensor, expected: Tensor) -> float:
    return float((out.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_products_are_float64s_up_to_rounding(native_isa, linears, dtype, num_threads):
    native_isa.set_num_threads(num_threads)
    for (rows, width, outputs), has_bias in itertools.product(SHAPES, (False, True)):
        x, weight = randn(rows, rows, width).to(dtype), randn(outputs, outputs, width)
        bias = randn(7, outputs).to(dtype)
        expected = x.double() @ weight.to(dtype).double().T + (bias.double() if has_bias else 0)

        layer = make_layer(linears, weight, dtype, bias if has_bias else None)

        assert relative_error(layer(x), expected) < RELATIVE_ERROR[dtype], (rows, width, outputs)
        assert relative_error(layer(x, f32_out=True), expected) < RELATIVE_ERROR[torch.float32]
    native_isa.set_num_threads(2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width", "size"), [(1, 9, 1), (2, 64, 15), (9, 33, 16), (30, 50, 70)])
def test_gate_and_up_come_out_as_their_activation(linears, dtype, rows, width, size):
    x, weight, bias = randn(1, rows, width).to(dtype), randn(2, 2 * size, width), randn(3, 2 * size).to(dtype)
    expected = gated(x.double() @ weight.to(dtype).double().T + bias.double())

    out = make_layer(linears, weight, dtype, bias, gate_up=True)(x)

    assert out.shape == (rows, size)
    assert relative_error(out, expected) < RELATIVE_ERROR[dtype]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [64, 101, 2085])
def test_a_rows_bits_do_not_depend_on_the_rows_beside_it(linears, form, dtype, width):
    x = randn(4, 40, width).to(dtype)
    layer = make_layer(linears, randn(5, 90, width), dtype, randn(6, 90), **form)
    alone = torch.cat([layer(row[None]) for row in x])

    for num_rows in range(1, 41):
        assert torch.equal(layer(x[:num_rows]), alone[:num_rows])
        assert torch.equal(layer(x[40 - num_rows :]), alone[40 - num_rows :])


def test_more_threads_than_cores_give_the_bits_of_one(native_isa, linears):
    x, weight = randn(7, 300, 96), randn(8, 200, 96)
    layer = make_layer(linears, weight, torch.float32)
    native_isa.set_num_threads(1)
    expected = layer(x)

    native_isa.set_num_threads(3)
    results = [layer(x) for _ in range(200)]

    native_isa.set_num_threads(2)
    assert all(torch.equal(result, expected) for result in results)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 5, 30])
def test_inputs_and_weights_are_read_where_they_lie(linears, dtype, rows):
    wide, tall = randn(9, rows, 90).to(dtype), randn(10, 60, 150).to(dtype)
    x, weight = wide[:, 11:60], tall[5:45, 20:69]

    found = make_layer(linears, weight, dtype)(x)

    assert torch.equal(found, make_layer(linears, weight.clone(), dtype)(x.clone()))
    assert torch.equal(found, make_layer(linears, weight.T.contiguous().T, dtype)(x.T.contiguous().T))


def test_rows_and_biases_may_arrive_in_parts_and_in_any_order(linears):
    weight, bias, x = randn(11, 70, 20), randn(12, 70), randn(13, 4, 20)
    packed = linears.empty(70, 20, torch.float32, has_bias=True, gate_up=True)

    for rows in (slice(35, 70), slice(0, 9), slice(9, 35)):
        packed.pack_bias(bias[rows], rows.start)
        packed.pack_rows(weight[rows], rows.start)

    assert torch.equal(
        NativeLinear(linears, packed)(x), make_layer(linears, weight, torch.float32, bias, gate_up=True)(x)
    )


@pytest.mark.parametrize("int8", [None, "w8a8", "weights"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("rows", [2, 20])
def test_what_is_not_finite_stays_in_its_row(linears, int8, bad, rows):
    x, weight = randn(14, rows, 50).to(torch.bfloat16), randn(15, 40, 50)
    layer = make_layer(linears, weight, torch.bfloat16, int8=int8)
    clean = layer(x)
    x[1, 30] = bad

    out = layer(x)

    assert not out[1].isfinite().any()
    assert torch.equal(out[0], clean[0])
    assert torch.equal(out[2:], clean[2:])


def test_no_rows_give_no_rows(linears):
    layer = make_layer(linears, randn(16, 5, 8), torch.float32)

    assert layer(torch.empty(0, 8)).shape == (0, 5)


def quantised(rows: Tensor) -> tuple[Tensor, Tensor]:
    """int8 values and scales, as the kernels define them: symmetric by row, halves to even."""
    largest = rows.float().abs().amax(dim=1, keepdim=True)
    # Not 127 / largest: torch makes a reciprocal of that, which rounds twice.
    inverse = torch.full_like(largest, 127) / largest
    return torch.round(rows.float() * inverse).to(torch.int64), largest / 127


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "width", "outputs"), [(1, 64, 40), (4, 3, 5), (11, 130, 33), (50, 257, 64), (25, 4099, 64)]
)
def test_int8_products_are_exact(linears, dtype, rows, width, outputs):
    # Extremes of one sign: every product of a quad is as large as can be, which 16-bit sums would not hold.
    x, weight = randn(17, rows, width).to(dtype), randn(18, outputs, width)
    x[0], weight[0] = 3.0, -2.0
    values, x_scales = quantised(x)
    weights, w_scales = quantised(weight)
    sums = (values @ weights.T).float()

    out = make_layer(linears, weight, dtype, int8="w8a8")(x, f32_out=True)

    assert torch.equal(out, (sums * x_scales) * w_scales.T)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gate_up", [False, True])
def test_int8_weights_give_the_bits_of_the_floats_that_they_stand_for(linears, dtype, gate_up):
    for rows, width, size in SHAPES:
        outputs = 2 * size if gate_up else size
        x, bias = randn(rows, rows, width).to(dtype), randn(7, outputs)
        # A largest value of 127 makes the scale 1.
        weight = torch.randint(-127, 128, (outputs, width), generator=torch.Generator().manual_seed(width)).float()
        weight[:, width // 2] = 127.0
        expected = make_layer(linears, weight, dtype, bias, gate_up=gate_up)(x)

        out = make_layer(linears, weight, dtype, bias, gate_up=gate_up, int8="weights")(x)

        assert torch.equal(out, expected), (rows, width, outputs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weight_dtype", DTYPES)
def test_products_with_int8_weights_are_float64s_up_to_rounding(linears, dtype, weight_dtype):
    for (rows, width, outputs), has_bias in itertools.product(SHAPES, (False, True)):
        x, weight = randn(rows, rows, width).to(dtype), randn(outputs, outputs, width).to(weight_dtype)
        bias = randn(7, outputs).to(dtype)
        values, scales = quantised(weight)
        expected = x.double() @ (values * scales.double()).T + (bias.double() if has_bias else 0)

        layer = make_layer(linears, weight, dtype, bias if has_bias else None, int8="weights")

        assert relative_error(layer(x), expected) < RELATIVE_ERROR[dtype], (rows, width, outputs)
        assert relative_error(layer(x, f32_out=True), expected) < RELATIVE_ERROR[torch.float32]


@pytest.mark.parametrize("int8", ["w8a8", "weights"])
def test_int8_takes_a_zero_row_and_a_zero_output(linears, int8):
    x, weight, bias = randn(19, 3, 20), randn(20, 6, 20), randn(21, 6)
    x[1], weight[2] = 0.0, 0.0

    out = make_layer(linears, weight, torch.float32, bias, int8=int8)(x)

    assert torch.equal(out[1], bias)
    assert torch.equal(out[:, 2], bias[2].expand(3))


@pytest.mark.parametrize(("int8", "most"), [("w8a8", 0.02), ("weights", 0.01)])
def test_int8_is_within_two_percent_of_the_float_product_and_weights_alone_within_one(linears, int8, most):
    x, weight = randn(22, 33, 768).to(torch.bfloat16), randn(23, 256, 768)

    out = make_layer(linears, weight, torch.bfloat16, int8=int8)(x)

    assert relative_error(out, x.double() @ weight.double().T) < most


@pytest.mark.parametrize("int8", ["w8a8", "weights"])
def test_an_int8_weight_of_which_a_row_is_not_finite_makes_that_output_nan_alone(linears, int8):
    x, weight = randn(24, 9, 30), randn(25, 6, 30)
    weight[2, 7] = float("inf")

    out = make_layer(linears, weight, torch.float32, int8=int8)(x)

    assert out[:, 2].isnan().all()
    assert out[:, [0, 1, 3, 4, 5]].isfinite().all()


@pytest.mark.parametrize(("int8", "column_bytes"), [("w8a8", 8), ("weights", 4)])
def test_an_int8_weight_takes_a_quarter_of_a_float32_one(linears, int8, column_bytes):
    sizes = [linears.empty(256, 512, torch.float32, int8=form).size_bytes for form in (None, int8)]

    assert sizes == [256 * 512 * 4, 256 * 512 + 256 * column_bytes]

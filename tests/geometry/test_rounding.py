"""The type that values were rounded to is found in any wider type, and exact values are taken for no type's."""

import pytest
import torch

from neuralcollapse.geometry.rounding import coarsest, rounding

TYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
EPS = {dtype: torch.finfo(dtype).eps for dtype in TYPES}


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("holder", TYPES)
@pytest.mark.parametrize("relu", [False, True])
def test_the_coarser_of_the_type_computed_in_and_the_type_held_in_is_found(dtype, holder, relu):
    torch.manual_seed(0)
    for shape in ((64, 64), (3, 4096), (500, 5), (8, 16)):
        values = torch.randn(shape, dtype=torch.float64)
        values = values.relu() if relu else values
        assert rounding(values.to(dtype).to(holder)) == max(EPS[dtype], EPS[holder])


@pytest.mark.parametrize("holder", TYPES)
def test_a_glance_at_a_few_values_finds_what_a_look_at_all_does(holder):
    torch.manual_seed(0)
    values = torch.randn(40, 96, dtype=torch.float64)
    late = values.clone()
    late[0, :80] = late[0, :80].to(torch.bfloat16)  # as if all were rounded to bfloat16, where one glances
    kinds = [values.to(dtype) for dtype in TYPES] + [late, values.relu(), values.sign(), torch.zeros(40, 96), values.T]
    kinds.append((1e-5 * values).to(torch.bfloat16))  # in float16 these are subnormal
    for features in (kind.to(holder) for kind in kinds):
        for known in (0.0, *EPS.values()):
            assert coarsest(features, known) == max(known, rounding(features))


@pytest.mark.parametrize("holder", TYPES)
def test_exact_values_owe_nothing_to_a_type(holder):
    torch.manual_seed(0)
    exact = {
        "one-hot": torch.eye(16),
        "digits": torch.randint(0, 10, (40, 12)),
        "bytes": torch.randint(0, 256, (40, 12)),
        "signs": torch.randn(40, 12).sign(),
        "halves": torch.randint(-20, 20, (40, 12)) / 2,
    }
    for name, values in exact.items():
        assert rounding(values.to(holder)) == 0, name


@pytest.mark.parametrize("holder", TYPES)
def test_too_few_values_are_taken_for_the_type_that_holds_them(holder):
    assert rounding(torch.tensor([[1.0, 0.0, 2.0]], dtype=holder)) == EPS[holder]
    assert rounding(torch.zeros(50, 4, dtype=holder)) == EPS[holder]


def test_small_sums_of_large_parts_count_as_rounded_though_their_last_bits_are_few():
    """Sums of 2,000 products, some of which all but cancel."""
    torch.manual_seed(0)
    sums = torch.randn(100, 2000) @ torch.randn(2000, 30)
    assert rounding(sums.double()) == EPS[torch.float32]

"""A number that two sides can compare."""

import torch
from lightrft_engines.fingerprint import fingerprint, spread_names


def test_equal_values_have_equal_bits_and_any_layout():
    tensor = torch.randn(300, 70)
    assert fingerprint("a", tensor) == fingerprint("a", tensor.clone())
    assert fingerprint("a", tensor.T.contiguous().T) == fingerprint("a", tensor)


def test_a_small_change_and_a_permutation_change_it():
    tensor = torch.randn(64, 64)
    assert fingerprint("a", tensor) != fingerprint("a", tensor + 1e-6)
    assert fingerprint("a", tensor) != fingerprint("a", tensor.flip(0))
    assert fingerprint("a", tensor) != fingerprint("a", tensor.T)


def test_scalars_and_low_precision_work():
    assert fingerprint("a", torch.tensor(2.0)) == 2.0
    assert fingerprint("a", torch.ones(3, dtype=torch.bfloat16)) == fingerprint("a", torch.ones(3))


def test_names_spread_from_first_to_last():
    names = [f"n{index}" for index in range(10)]
    assert spread_names(names, 4) == ("n0", "n3", "n6", "n9")
    assert spread_names(names, 99) == tuple(names)
    assert spread_names(names, 1) == ("n0",)

"""Counter-based noise: known answers, and the same bits from every path."""

import pytest
import torch

from quire_kernels.cpu.philox import CHUNK, gumbel_noise_cpu
from quire_kernels.philox import GUMBEL_MAX, GUMBEL_MIN, gumbel_noise, gumbel_of_words, philox4x32

# Published with the algorithm (Random123, kat_vectors, philox4x32 with 10 rounds): counter, key, words.
KNOWN_ANSWERS = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(counter: list[int], key: list[int], words: list[int]) -> None:
    counter_words = tuple(torch.tensor(word) for word in counter)

    found = philox4x32(counter_words, (torch.tensor(key[0]), torch.tensor(key[1])))

    assert [int(word) for word in found] == words


def test_noise_of_the_cpu_path_has_the_bits_of_the_reference() -> None:
    generator = torch.Generator().manual_seed(0)
    seeds = torch.randint(-(2**63), 2**63 - 1, (5,), generator=generator)
    positions = torch.randint(0, 2**31, (5,), generator=generator)
    rows = torch.randint(0, 5, (CHUNK + 17,), generator=generator)
    ids = torch.randint(0, 200_000, rows.shape, generator=generator)

    noise = gumbel_noise_cpu(seeds, positions, rows, ids, 1)

    assert torch.equal(noise, gumbel_noise(seeds[rows], positions[rows], ids, 1))


def test_noise_stays_within_its_stated_bounds_for_the_extreme_words() -> None:
    words = torch.tensor([0, 1, 2**31, 2**32 - 2, 2**32 - 1])

    noise = gumbel_of_words(words)

    assert noise.max() <= GUMBEL_MAX
    assert noise.min() >= GUMBEL_MIN
    assert noise.diff().max() <= 0


def test_noise_has_the_mean_and_variance_of_a_gumbel_variable() -> None:
    ids = torch.arange(400_000)

    noise = gumbel_noise(torch.tensor(7), torch.tensor(3), ids).double()

    assert abs(noise.mean() - 0.57722) < 0.01
    assert abs(noise.var() - torch.pi**2 / 6) < 0.02


@pytest.mark.parametrize("changed", ["seed", "high half of the seed", "position", "purpose"])
def test_noise_changes_with_each_of_its_inputs(changed: str) -> None:
    inputs = {"seed": 5, "position": 9, "purpose": 0}
    other = dict(inputs)
    if changed == "high half of the seed":
        other["seed"] += 1 << 40
    else:
        other[changed] += 1

    noise, moved = (
        gumbel_noise(torch.tensor(case["seed"]), torch.tensor(case["position"]), torch.arange(64), case["purpose"])
        for case in (inputs, other)
    )

    assert (noise == moved).sum() == 0

"""What the model is fed, of numbers that vary and of numbers that do not."""

import numpy as np

from vega_policy.data.chunks import ChunkDataset, DataSource
from vega_policy.policy import parse_statistics
from vega_policy.testing.demos import write_suite
from vega_policy.train.normalisation import normalised


def test_a_number_that_never_varied_is_zero_as_a_target_and_what_the_policy_will_see_as_an_input(
    tmp_path,
):
    data = write_suite(tmp_path / "data", n_demos=2, px=16)
    dataset = ChunkDataset.open(DataSource(dirs=(data,), suites=("libero_object",)), horizon=8)
    dataset.proprio[:, 3] = dataset.targets[:, 2] = 0.7
    statistics = parse_statistics(dataset.statistics())
    rows = normalised(dataset, statistics)
    assert (rows.targets[:, 2] == 0).all()
    seen = statistics["libero_object"].proprio.normalise(dataset.proprio)
    np.testing.assert_array_equal(rows.proprio, seen.astype(np.float32))

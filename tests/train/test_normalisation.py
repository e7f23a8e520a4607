"""What the model is fed, of numbers that vary and of numbers that do not."""

import numpy as np

from vega_policy.data.chunks import ChunkDataset, DataSource
from vega_policy.policy import parse_statistics
from vega_policy.testing.demos import write_suite
from vega_policy.train.normalisation import normalised


def test_a_number_that_never_varied_is_zero_in_proprioception_too(tmp_path):
    data = write_suite(tmp_path / "data", n_demos=2, px=16)
    source = DataSource(dirs=(data,), suites=("libero_object",))
    dataset = ChunkDataset.open(source, horizon=8)
    before = normalised(dataset, parse_statistics(dataset.statistics())).proprio
    assert (before.min(axis=0) < 0).all()  # all of them vary
    dataset.proprio[:, 3] = 0.7
    after = normalised(dataset, parse_statistics(dataset.statistics())).proprio
    assert (after[:, 3] == 0).all()
    others = np.arange(8) != 3
    np.testing.assert_array_equal(after[:, others], before[:, others])

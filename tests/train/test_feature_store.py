"""Training does not see whether features were there before, and a rollout finds them afterwards."""

import torch
from safetensors.torch import load_file

from vega_policy.data.chunks import ChunkDataset, DataSource
from vega_policy.policy import from_pretrained
from vega_policy.testing.demos import write_suite
from vega_policy.testing.tiny_policy import tiny_config
from vega_policy.train.config import TrainConfig
from vega_policy.train.imitation import train
from vega_policy.vision.prior.store import FeatureStore, PriorIdentity


def test_training_is_the_same_with_a_cold_and_a_warm_store_which_rollouts_share(tmp_path):
    torch.set_num_threads(1)
    data = write_suite(tmp_path / "data", n_demos=2, px=32)
    found = []
    for name in ("cold", "warm"):
        config = TrainConfig.from_dict(
            {
                "name": name,
                "run_root": str(tmp_path / "runs"),
                "steps": 3,
                "batch_size": 4,
                "prior_path": "random",
                "device": "cpu",
                "checkpoint_every": 3,
                "validate_every": 3,
                "data": {"dirs": [str(data)], "features": {"dtype": "float32"}},
                "policy": tiny_config().to_dict(),
            }
        )
        train(config)
        found.append(load_file(config.run_dir / "policy/model.safetensors"))
    cold, warm = found
    assert [name for name in cold if not torch.equal(cold[name], warm[name])] == []

    policy = from_pretrained(config.run_dir / "policy")
    store = FeatureStore(data / ".cache/features", PriorIdentity.of(policy.model.prior))
    source = DataSource(dirs=(data,), suites=("libero_object",))
    dataset = ChunkDataset.open(source, horizon=config.policy.action.horizon)
    rows = dataset.starts(held_out=False, fraction=0.0)
    for row in rows[[0, 7, -1]]:
        pixels = dataset.pixels(rows[rows == row])
        stored = store.read(pixels, keys=[0], compute=None)  # None: nothing may be computed
        assert torch.equal(stored, policy.model.prior_features(pixels, keys=[0]))

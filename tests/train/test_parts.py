"""The parts of a run, one by one."""

import json

import pytest
import torch

from vega_policy.data.augment import AugmentConfig, photometric, shifted
from vega_policy.spec import CheckpointError
from vega_policy.train import checkpoint
from vega_policy.train.ema import Average
from vega_policy.train.metrics import JsonLinesSink, TensorBoardSink, read_records
from vega_policy.train.schedule import ScheduleConfig, learning_rate


def test_the_rate_warms_up_and_ends_at_its_final_share():
    config = ScheduleConfig(peak=1.0, warmup_steps=10, final=0.1)
    rates = [learning_rate(s, total=110, config=config) for s in range(111)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == pytest.approx(1.0)
    assert rates[60] == pytest.approx(0.55)
    assert rates[110] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_a_constant_rate_falls_only_at_the_end():
    config = ScheduleConfig(peak=1.0, warmup_steps=0, kind="constant", decay_steps=10, final=0.0)
    rates = [learning_rate(s, total=100, config=config) for s in range(101)]
    assert rates[:90] == [1.0] * 90
    assert (rates[95], rates[100]) == (0.5, 0.0)


def test_a_dropping_rate_falls_at_once():
    config = ScheduleConfig(peak=1.0, warmup_steps=2, kind="drop", drop_step=5, final=0.1)
    rates = [learning_rate(s, total=8, config=config) for s in range(8)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 1.0, 1.0, 0.1, 0.1, 0.1])


def test_averages_follow_and_give_the_weights_back_bit_by_bit():
    weight = torch.nn.Parameter(torch.tensor([1.0, 0.1]))
    average = Average({"w": weight}, decay=0.5)
    with torch.no_grad():
        weight += 1
    average.update(100)
    before = weight.detach().clone()
    with average.applied():
        assert weight.tolist() == pytest.approx([1.5, 0.6])
    assert torch.equal(weight, before)


def state(step):
    return checkpoint.RunState(
        step=step, tensors={"w": torch.full((3,), step)}, info={"note": step}
    )


def test_the_last_two_checkpoints_are_kept_and_the_newest_is_read(tmp_path):
    for step in (5, 10, 100):
        checkpoint.save(tmp_path, state(step))
    assert [p.name for p in checkpoint.saved(tmp_path)] == ["step-000000010", "step-000000100"]
    loaded = checkpoint.load_latest(tmp_path)
    assert (loaded.step, loaded.info) == (100, {"note": 100})
    assert loaded.tensors["w"].tolist() == [100] * 3


def test_what_a_kill_left_half_written_is_never_read(tmp_path):
    checkpoint.save(tmp_path, state(5))
    half = tmp_path / ".step-000000010"
    half.mkdir()
    (half / "tensors.safetensors").write_bytes(b"half")
    assert checkpoint.load_latest(tmp_path).step == 5
    checkpoint.save(tmp_path, state(10))
    assert not half.exists()


def test_a_damaged_checkpoint_says_how_to_go_on(tmp_path):
    (checkpoint.save(tmp_path, state(5)) / "tensors.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="delete this folder"):
        checkpoint.load_latest(tmp_path)


def test_a_resumed_metrics_file_holds_no_step_twice(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = "".join(json.dumps({"step": s, "loss": 1.0}) + "\n" for s in (2, 4, 6))
    path.write_text(rows + '{"step": 8, "lo')
    sink = JsonLinesSink(path, resume_step=4)
    sink.write({"step": 6, "loss": 0.5})
    sink.close()
    assert [(r["step"], r["loss"]) for r in read_records(path)] == [(2, 1.0), (4, 1.0), (6, 0.5)]


def test_tensorboard_gets_every_number(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sink = TensorBoardSink(tmp_path, resume_step=0)
    sink.write({"step": 3, "loss": 0.25})
    sink.close()
    events = EventAccumulator(str(tmp_path)).Reload().Scalars("loss")
    assert [(e.step, e.value) for e in events] == [(3, 0.25)]


@pytest.fixture
def pixels():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, 2, 3, 16, 16), dtype=torch.uint8, generator=generator)


def test_augmentation_is_a_function_of_its_seed(pixels):
    config = AugmentConfig(brightness=0.2, contrast=0.2)
    one = photometric(pixels, config, seed=(0, 5))
    assert torch.equal(one, photometric(pixels, config, seed=(0, 5)))
    assert not torch.equal(one, photometric(pixels, config, seed=(0, 6)))
    assert one.min() >= 0
    assert one.max() <= 255


def test_no_strength_is_no_change(pixels):
    assert torch.equal(photometric(pixels, AugmentConfig(), seed=(0, 0)), pixels.float())


def test_a_shift_moves_whole_images_and_repeats_the_border(pixels):
    moved = shifted(pixels, shift_px=3, seed=(1, 2))
    assert moved.dtype == torch.uint8
    image, source = moved[0, 0].float(), pixels[0, 0].float()
    padded = torch.nn.functional.pad(source[None], (3, 3, 3, 3), mode="replicate")[0]
    windows = padded.unfold(1, 16, 1).unfold(2, 16, 1)
    assert (windows == image[:, None, None]).all(dim=0).all(dim=-1).all(dim=-1).any()

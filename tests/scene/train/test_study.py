"""From questions to verdicts: what nothing is worth, what is compared, and what the page says."""

import json

import pytest

from vega_policy.scene.annotations import VsiRow
from vega_policy.scene.train.clustered import Mean, clustered_mean
from vega_policy.scene.train.contrasts import CONTRASTS, Contrast, Finding, compare
from vega_policy.scene.train.corpus import corpus_of
from vega_policy.scene.train.scoring import chance
from vega_policy.scene.train.settings import SceneTrainConfig
from vega_policy.scene.train.study import _mean, train_scene
from vega_policy.spec import ContractError


def number(i, truth, kind="object_abs_distance"):
    return VsiRow(
        id=i, scene_name="a", dataset="rooms", question_type=kind, question="how far?",
        ground_truth=truth, options=None,
    )  # fmt: skip


def test_of_numbers_chance_says_the_one_that_scores_best_not_the_commonest():
    # 1.0 is the commonest and right twice of six; 3.0 is within a few percent of four.
    train = [number(i, t) for i, t in enumerate(["1.0", "1.0", "2.9", "3.0", "3.05", "3.1"])]
    found = chance("vsi_bench", [number(9, "3.0")], train, {})
    assert list(found.values()) == [1.0]


@pytest.mark.parametrize(
    ("expected", "interval", "says"),
    [
        ("up", (0.1, 0.2), "higher, as it must be"),
        ("up", (-0.1, 0.2), "not separated: expected higher"),
        ("up", (-0.2, -0.1), "lower: expected higher"),
        ("not up", (0.1, 0.2), "higher: expected not to be"),
        ("not up", (-0.1, 0.2), "not separated: no help, as expected"),
        ("not up", (-0.2, -0.1), "lower: no help, as expected"),
        ("open", (-0.1, 0.2), "not separated"),
    ],
)
def test_verdict(expected, interval, says):
    mean = Mean(value=sum(interval) / 2, interval=interval, n=9, n_scenes=3)
    assert Finding(Contrast("a", "b", "?", expected), mean).verdict == says


def test_every_declared_comparison_of_arms_that_are_there_is_made_in_pairs():
    scenes = {"q0": "a", "q1": "a", "q2": "b"}
    scores = {
        "no_prior": {"q0": 0.0, "q1": 1.0, "q2": 0.0},
        "oracle": {"q0": 1.0, "q1": 1.0, "q2": 1.0},
        "shuffled": {"q0": 0.0, "q1": 1.0, "q2": 0.0},
    }
    found = {(f.contrast.a, f.contrast.b): f.difference.value for f in compare(scores, scenes)}
    assert found == {
        ("oracle", "no_prior"): pytest.approx(2 / 3),
        ("shuffled", "no_prior"): 0.0,
    }
    assert len({(c.a, c.b) for c in CONTRASTS}) == len(CONTRASTS)


def test_a_study_ends_in_a_page_and_json_with_every_arm_and_what_nothing_is_worth(
    bare_rooms, tmp_path, monkeypatch
):
    rooms, rows = bare_rooms
    corpus = corpus_of(rooms[:6], rooms[6:8], rows)
    monkeypatch.setattr("vega_policy.scene.train.study.load_corpus", lambda _: corpus)
    config = SceneTrainConfig.from_dict(
        {
            "out": str(tmp_path),
            "workers": 1,
            "warmup_steps": 1,
            "feature_store": "",
            "eyes": {"steps": 0},
            "words_first": 1,
            "tasks": ["scanrefer", "multi3drefer", "scan2cap", "scanqa"],
            "scannet": {"arms": ["oracle", "no_prior"], "steps": 2, "texts_per_scene": 4},
            "vsi": {"arms": []},
        }
    )
    said = train_scene(config)
    kept = json.loads((tmp_path / "results.json").read_text())
    refer = kept["results"]["scanrefer acc@0.5"]
    assert refer.keys() == {"oracle", "no_prior", "chance", "any_of_class"}
    # Two boxes a room, both of the class that is meant.
    assert refer["chance"]["mean"] == refer["any_of_class"]["mean"] == 0.5
    assert refer["oracle"]["n"] == len(corpus.rows["scanrefer"])
    pairs = {(f["a"], f["b"]) for f in said["findings"] if f["measure"] == "scanrefer acc@0.5"}
    assert pairs == {("no_prior", "chance"), ("oracle", "no_prior")}
    page = (tmp_path / "page.md").read_text()
    assert all(f"| {arm} |" in page for arm in refer)
    assert (tmp_path / "arms.png").stat().st_size > 1000


def test_a_mean_over_one_scene_has_no_interval_that_json_could_hold():
    scenes = {"q0": "a", "q1": "a"}
    assert _mean(clustered_mean({"q0": 0.0, "q1": 1.0}, scenes))["interval"] == [None, None]


def test_texts_that_would_never_be_read_with_their_scene_are_refused():
    with pytest.raises(ContractError, match="words_first"):
        SceneTrainConfig.from_dict(
            {"words_first": 200, "scannet": {"arms": ["full"], "steps": 200}}
        )

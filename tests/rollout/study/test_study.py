"""A study finds what is there, at the rate it promises, and nothing that is not."""

import dataclasses
import importlib
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import hydra
import numpy as np
import pytest
from omegaconf import OmegaConf
from scipy import stats

from vega_policy.policy import PolicyConfig
from vega_policy.policy.pretrained import load_config, resolve
from vega_policy.rollout.ledger import Ledger, RunHeader
from vega_policy.rollout.study import Study, contrast, detectable
from vega_policy.rollout.study.cells import base_training, rollouts, trainings
from vega_policy.rollout.study.declaration import overridden
from vega_policy.rollout.study.findings import ALL, SAME_SIZE, read_findings
from vega_policy.rollout.study.page import page
from vega_policy.rollout.study.text import (
    error_table,
    expected_sensitivity,
    group_table,
    plan_text,
)
from vega_policy.rollout.table import points
from vega_policy.spec import ContractError, EnvFault, EpisodeKey, EpisodeResult
from vega_policy.train.config import TrainConfig
from vega_policy.vision.prior import build_prior
from vega_policy.vision.stream import branch_size

ROOT = Path(__file__).parents[3]


def declared(**changes):
    return Study.from_dict(
        {
            "name": "s",
            "question": "Does it help?",
            "reference": "plain",
            "episodes": 40,
            "seeds": [0, 1, 2],
            "train": ["steps=10", "fusion=token_gate"],
            "rollout": ["rollout.video=none"],
            "arms": {
                "plain": {"train": ["fusion=none"]},
                "gate": {},
                "clamped": {"weights": "gate", "rollout": ["rollout.arms=[gate_clamped]"]},
            },
            "evaluations": {"object": {"suite": "libero_object"}},
            **changes,
        }
    )


def noisy(rng, *, shift=0.0, seeds=3, episodes=200, seed_sd=0.0, episode_sd=0.0):
    """Differences of two arms whose success depends on the episode, the seed and chance.

    Args:
        rng: Source of chance.
        shift: Of the first arm.
        seeds: Trainings of each.
        episodes: That all play.
        seed_sd: How far trainings of one arm differ.
        episode_sd: How far an episode suits one arm more than the other, whatever the training.
    """
    base = rng.normal(0.8, 1, episodes)

    def won(by):
        drift = rng.normal(0, seed_sd, (seeds, 1)) + rng.normal(0, episode_sd, (1, episodes))
        return base + by + drift + rng.normal(0, 1, (seeds, episodes)) > 0

    return won(shift).astype(float) - won(0.0)


@pytest.mark.parametrize("seeds", [3, 8])
@pytest.mark.parametrize(
    ("seed_sd", "episode_sd"), [(0.0, 0.0), (0.1, 0.0), (0.4, 0.0), (0.0, 1.0), (0.2, 1.0)]
)
def test_equal_arms_are_called_different_no_more_often_than_promised(seeds, seed_sd, episode_sd):
    rng = np.random.default_rng(0)
    n = 400
    given = {"seeds": seeds, "seed_sd": seed_sd, "episode_sd": episode_sd}
    found = sum(
        contrast({"a": noisy(rng, **given)})[0].verdict != "not separated" for _ in range(n)
    )
    assert found <= stats.binom.ppf(0.999, n, 0.05)


def test_an_interval_over_episodes_alone_would_break_that_promise():
    rng = np.random.default_rng(0)
    n, found = 400, 0
    for _ in range(n):
        by_episode = noisy(rng, seed_sd=0.4).mean(axis=0)
        found += stats.ttest_1samp(by_episode, 0).pvalue < 0.05
    assert found > 0.2 * n


def test_the_expected_sensitivity_is_found_as_often_as_asked():
    least = detectable(n_seeds=4, n_episodes=200, discordant=0.2, seed_sd=0.02)
    rng = np.random.default_rng(1)
    n, found = 400, 0
    for _ in range(n):
        effect = least + rng.normal(0, 0.02, (4, 1))
        draw = rng.random((4, 200))
        alone, other = (0.2 + effect) / 2, (0.2 - effect) / 2
        d = (draw < alone).astype(float) - ((draw >= alone) & (draw < alone + other))
        found += contrast({"a": d})[0].verdict == "better"
    assert 0.7 < found / n < 0.95


def test_one_seed_is_never_separated():
    [found] = contrast({"a": np.ones((1, 50))})
    assert found.verdict == "not separated"
    assert found.interval == (-1.0, 1.0)
    assert found.detectable is None


def test_more_tests_ask_more_of_each():
    d = noisy(np.random.default_rng(3), shift=0.8)
    [alone] = contrast({"a": d})
    first = contrast({"a": d, **{f"b{i}": noisy(np.random.default_rng(i)) for i in range(6)}})[0]
    assert first.p_adjusted > alone.p_adjusted
    assert first.difference == alone.difference


def test_arms_share_everything_they_do_not_name():
    study = declared()
    [plain, gate] = [c for c in trainings(study, Path("r")) if c.seed == 1]
    assert "fusion=none" in plain.settings
    assert "fusion=token_gate" not in plain.settings
    assert "fusion=token_gate" in gate.settings
    assert set(plain.settings) ^ set(gate.settings) == {
        "fusion=none",
        "fusion=token_gate",
        "name=plain-seed1",
        "name=gate-seed1",
    }
    clamped = next(c for c in rollouts(study, Path("r")) if c.arm == "clamped" and c.seed == 1)
    assert "checkpoint=r/train/gate-seed1/policy" in clamped.settings


@pytest.fixture
def study_script(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return importlib.import_module("study")


def test_a_base_is_trained_once_and_every_arm_is_grafted_on_it(study_script):
    assert base_training(declared(), Path("r/s")) is None
    study = declared(base=["steps=7", "fusion=none"])
    base = base_training(study, Path("r/s"))
    assert base.settings == ("steps=7", "fusion=none", "name=base", "out_dir=r")
    for cell in trainings(study, Path("r/s")):
        assert {"init_from=r/base/policy", "graft=true"} <= set(cell.settings)
    chosen = study_script.chosen(study, Path("r/s"), only=["gate"])
    assert chosen[0] == base
    assert {cell.arm for cell in chosen[1:]} == {"gate"}
    assert "all from one policy without a prior" in plan_text(study)
    study = declared(start="somebody/policy")
    assert base_training(study, Path("r/s")) is None
    for cell in trainings(study, Path("r/s")):
        assert {"init_from=somebody/policy", "graft=true"} <= set(cell.settings)


def test_trainings_run_side_by_side_and_what_ended_is_kept_when_one_fails(
    tmp_path, monkeypatch, study_script
):
    script = study_script
    study = declared(base=["steps=7", "fusion=none"], seeds=[0])
    together = threading.Barrier(2, timeout=20)
    order = []

    def play(cell):
        if cell.kind == "train" and cell.arm:
            together.wait()
        order.append((cell.kind, cell.arm))
        if cell.arm == "plain" and cell.kind == "rollout":
            raise EnvFault("it fell")
        return {"cell": cell.name}

    monkeypatch.setattr(script, "play", play)
    cells = script.chosen(study, tmp_path, only=None)
    with pytest.raises(EnvFault, match="it fell"):
        script.play_all(cells, tmp_path, at_once=2)
    assert order[0] == ("train", "")
    assert sorted(order[1:3]) == [("train", "gate"), ("train", "plain")]
    assert order[3:] == [("rollout", "plain")], "the others are not begun"
    done = [cell.name for cell in cells if cell.result(tmp_path) is not None]
    assert done == ["train-base", "train-plain-seed0", "train-gate-seed0"]
    with pytest.raises(ContractError, match="trainings_at_once is 0"):
        script.play_all(cells, tmp_path, at_once=0)


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({"reference": "plian"}, "plain"),
        ({"seeds": [0, 0]}, "each training seed once"),
        ({"arms": {"plain": {}, "x": {"weights": "y"}}}, "no trained arm"),
        ({"arms": {"plain": {}, "x": {"tarin": []}}}, "did you mean 'train'"),
        ({"evaluations": {}}, "at least one"),
        ({"evaluations": {"x": {"suite": "libero_goal", "arms": ["plian"]}}}, "x.arms.*plain"),
        ({"main": ["plain"]}, "leave it out"),
        ({"base": ["steps=7"]}, "add fusion=none"),
        ({"base": ["fusion=none"], "start": "x"}, "keep one"),
        ({"episodes": 1}, "say how many"),
        ({"arms": {"plain": {}, "x": {"against": "plian"}}}, "compared with 'plian'"),
        ({"arms": {"plain": {}, "a/b": {}}}, "folder"),
        ({"arms": {"plain": {}, "x": {"seeds": [3]}}}, "not among"),
        ({"arms": {"plain": {"seeds": [0]}, "x": {"seeds": [1]}}}, "no training seed with plain"),
        (
            {"arms": {"plain": {"seeds": [0]}, "x": {"weights": "plain", "seeds": [0, 1]}}},
            "plain is not trained",
        ),
    ],
)
def test_a_declaration_that_cannot_be_meant_is_refused(changes, advice):
    with pytest.raises(ContractError, match=advice):
        declared(**changes)


def played(study, root, rate):
    """Write ledgers as if every policy had played: `rate(arm, seed)` of 40 episodes won."""
    for cell in rollouts(study, root):
        kinds = ("camera-1", "pro_swap") if cell.evaluation == "moved" else ("none",)
        header = RunHeader(
            defines={"suite": "libero_object"},
            versions={},
            plans=[],
            configuration={},
            host={},
            created="",
            commit="",
        )
        rng = np.random.default_rng(cell.seed)
        draw = rng.random(40)
        with Ledger.open(cell.run_dir, header) as ledger:
            for i, x in enumerate(draw):
                won = x < rate(cell.arm, cell.seed)
                ledger.append(
                    EpisodeResult(
                        key=EpisodeKey(
                            "libero_object", i % 10, i, perturbation=kinds[i % len(kinds)]
                        ),
                        outcome="success" if won else "failure",
                        n_steps=9,
                        n_chunks=2,
                        state_sha256="",
                        wall_s=0.1,
                        arm="gate_clamped" if cell.arm == "clamped" else "full",
                    )
                )
        cell.keep(root, {"episodes": 40})


def weights(root, arm, seed, n):
    from safetensors.numpy import save_file

    folder = root / "train" / f"{arm}-seed{seed}" / "policy"
    folder.mkdir(parents=True)
    save_file({"w": np.zeros((n, 2), np.float32)}, folder / "model.safetensors")


def test_ledgers_become_findings_and_a_page(tmp_path):
    study = declared(main=["gate"])
    played(study, tmp_path, lambda arm, _: {"plain": 0.5, "gate": 0.9}.get(arm, 0.1))
    for arm in ("plain", "gate"):
        weights(tmp_path, arm, 0, 50)
    findings = read_findings(study, tmp_path)
    [whole] = findings.groups
    assert whole.name == ALL
    gate, clamped = whole.contrasts
    assert (gate.verdict, clamped.verdict) == ("better", "worse")
    assert gate.p_adjusted == gate.p_value  # a family of one
    assert gate.n_episodes == 40
    assert findings.n_trained == {"plain": 100, "gate": 100, "clamped": 100}
    text = page(study, findings)
    assert "is better than plain" in text
    assert "http" not in text
    assert "better" in group_table(study, whole)
    assert "the one contrast of the question" in plan_text(study)


def test_the_error_on_held_out_demonstrations_stands_beside_success(tmp_path):
    study = declared()
    played(study, tmp_path, lambda *_: 0.5)
    errors = {"plain": [0.10, 0.12, 0.11], "gate": [0.09, 0.108, 0.099]}
    for cell in trainings(study, tmp_path):
        weights(tmp_path, cell.arm, cell.seed, 50)
        cell.keep(tmp_path, {"validation": {"val/loss": errors[cell.arm][cell.seed]}})
    findings = read_findings(study, tmp_path)
    plain, gate = findings.errors
    assert plain.change == 0
    assert gate.change == pytest.approx(-0.1)
    assert gate.interval == pytest.approx((-0.1, -0.1))
    assert gate.mean == pytest.approx(0.099)
    assert "-10.0" in error_table(study, findings)
    assert "Held-out demonstrations" in page(study, findings)


def test_errors_in_other_units_are_not_compared(tmp_path):
    study = declared()
    played(study, tmp_path, lambda *_: 0.5)
    for cell in trainings(study, tmp_path):
        weights(tmp_path, cell.arm, cell.seed, 50)
        cell.keep(tmp_path, {"validation": {"val/loss": 0.1}, "trained_weights": 100})
        said = {"libero_object": {"action": {"q01": [0.0], "q99": [1.0 + (cell.arm == "gate")]}}}
        path = tmp_path / "train" / f"{cell.arm}-seed{cell.seed}" / "policy"
        (path / "dataset_statistics.json").write_text(json.dumps(said))
    assert [error.name for error in read_findings(study, tmp_path).errors] == ["plain"]


def test_what_some_arms_play_is_told_apart_from_what_all_play(tmp_path):
    moved = {"suite": "libero_object", "arms": ["plain", "gate"]}
    study = declared(evaluations={"object": {"suite": "libero_object"}, "moved": moved})
    assert len(rollouts(study, tmp_path)) == 3 * (3 + 2)
    played(study, tmp_path, lambda arm, _: {"plain": 0.5, "gate": 0.9}.get(arm, 0.1))
    weights(tmp_path, "plain", 0, 50)
    weights(tmp_path, "gate", 0, 50)
    findings = read_findings(study, tmp_path)
    arms = {group.name: [rate.name for rate in group.rates] for group in findings.groups}
    sizes = {group.name: group.rates[0].n_episodes for group in findings.groups}
    every, some = ["plain", "gate", "clamped"], ["plain", "gate"]
    assert arms == {
        "all": every,
        "object": every,
        "moved": some,
        "all, perturbed": some,
        "all, camera-1": some,
        "all, pro_swap": some,
    }
    assert sizes == {
        "all": 40,
        "object": 40,
        "moved": 40,
        "all, perturbed": 40,
        "all, camera-1": 20,
        "all, pro_swap": 20,
    }
    assert findings.notes == ()
    text = page(study, findings)
    assert "All perturbed episodes" in text
    assert "LIBERO-PRO swap" in text


def test_controls_may_have_fewer_seeds_than_the_question(tmp_path):
    arms = {"plain": {}, "gate": {"seeds": [0, 2]}, "clamped": {"weights": "gate"}}
    study = declared(arms=arms, main=["gate"])
    assert {c.name for c in trainings(study, tmp_path)} == {
        *(f"train-plain-seed{seed}" for seed in (0, 1, 2)),
        *(f"train-gate-seed{seed}" for seed in (0, 2)),
    }
    played(study, tmp_path, lambda *_: 0.5)
    for arm in ("plain", "gate"):
        weights(tmp_path, arm, 0, 50)
    findings = read_findings(study, tmp_path)
    assert findings.missing == ()
    plain, gate, clamped = findings.groups[0].rates
    assert [len(rate.by_seed) for rate in (plain, gate, clamped)] == [3, 2, 2]
    assert [c.n_seeds for c in findings.groups[0].contrasts] == [2, 2]
    assert "3 training seeds; 5 trainings" in plan_text(study)
    assert expected_sensitivity(study) == expected_sensitivity(
        declared(seeds=[0, 1], main=["gate"])
    )


def test_results_outlive_the_weights_they_were_made_with(tmp_path):
    study = declared()
    played(study, tmp_path, lambda *_: 0.5)
    for cell in trainings(study, tmp_path):
        scales = "a" if cell.arm == "plain" or cell.seed else "b"
        cell.keep(
            tmp_path,
            {"validation": {"val/loss": 0.1}, "trained_weights": 100, "action_scales": scales},
        )
    plain, gate = read_findings(study, tmp_path).errors
    assert (len(plain.by_seed), len(gate.by_seed)) == (3, 2)


def test_an_arm_may_be_compared_with_another_than_the_reference(tmp_path):
    arms = {"plain": {}, "worse": {}, "gate": {"title": "The gate", "against": "worse"}}
    study = declared(arms=arms, same_size=False)
    played(study, tmp_path, lambda arm, _: {"plain": 0.9, "gate": 0.9}.get(arm, 0.1))
    for arm in arms:
        weights(tmp_path, arm, 0, 50)
    findings = read_findings(study, tmp_path)
    worse, gate = findings.groups[0].contrasts
    assert worse.difference == pytest.approx(-gate.difference)
    assert gate.verdict == "better"
    assert "better, against worse" in group_table(study, findings.groups[0])
    assert "The gate</b> is better than worse" in page(study, findings)


def test_the_weights_a_training_counted_go_before_those_it_stored(tmp_path):
    study = declared()
    played(study, tmp_path, lambda *_: 0.5)
    for cell in trainings(study, tmp_path):
        weights(tmp_path, cell.arm, cell.seed, 50)
        cell.keep(tmp_path, {"trained_weights": 77})
    findings = read_findings(study, tmp_path)
    assert findings.n_trained == {"plain": 77, "gate": 77, "clamped": 77}
    assert findings.notes == ()
    [note] = read_findings(declared(episodes=50), tmp_path).notes
    assert note == "50 episodes of each policy were declared, 40 are there"


def test_how_results_are_read_cannot_be_changed_afterwards(tmp_path, study_script):
    study_script.require_same(declared(), tmp_path)
    more = {
        "arms": {"plain": {"train": ["fusion=none"]}, "gate": {}, "clamped": {"weights": "gate"}}
    }
    study_script.require_same(declared(seeds=[0, 1, 2, 3], **more), tmp_path)
    for change, said in (
        ({"main": ["gate"]}, "another main"),
        ({"exempt": ["gate"]}, "another exempt"),
        ({"seeds": [0, 1]}, "seed 2, seed 3"),
        ({"arms": {"plain": {}, "gate": {}}}, "arm clamped"),
        ({"evaluations": {"goal": {"suite": "libero_goal"}}}, "evaluation object"),
    ):
        with pytest.raises(ContractError, match=said):
            study_script.require_same(declared(**{"seeds": [0, 1, 2, 3], **change}), tmp_path)


@pytest.mark.parametrize(("ending", "is_done"), [("finished", True), ("signal", False)])
def test_a_training_that_was_stopped_is_not_done(
    tmp_path, monkeypatch, study_script, ending, is_done
):
    said = json.dumps({"steps": 3, "ending": ending}).encode()
    monkeypatch.setattr(
        study_script.subprocess,
        "run",
        lambda command, **_: subprocess.CompletedProcess(command, 0, stdout=b"step\n" + said),
    )
    cell = trainings(declared(), tmp_path)[0]
    if is_done:
        assert study_script.play(cell)["steps"] == 3
    else:
        with pytest.raises(EnvFault, match="before its last update"):
            study_script.play(cell)


@pytest.mark.parametrize("name", ["prior", "fusion", "sweeps", "demonstrations"])
def test_the_arms_of_shipped_studies_train_equally_many_weights(name, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    train_settings = importlib.import_module("train").train_settings
    study = Study.from_dict(
        OmegaConf.to_container(OmegaConf.load(ROOT / f"configs/study/{name}.yaml"))
    )
    sizes = {}
    with hydra.initialize_config_dir(str(ROOT / "configs"), version_base=None):
        for arm in study.arms:
            lender = study.arm(arm.weights) if arm.weights else arm
            settings = overridden(study.train, lender.train)
            composed = hydra.compose("train", [*settings, "init_from=base", "graft=true"])
            found = TrainConfig.from_dict(
                train_settings(OmegaConf.to_container(composed, resolve=True))
            )
            vision, width = found.policy.vision, found.policy.language.width
            towers = vision.semantic.dino.width + vision.semantic.siglip.width
            added = branch_size(vision, width=width)["total"]
            sizes[arm.name] = 2_017_671 + added + found.graft_widen * (towers + 1 + width)
    equal = {n for arm, n in sizes.items() if arm not in study.exempt}
    assert max(equal) - min(equal) <= SAME_SIZE * max(equal), sizes


def test_what_shipped_studies_start_from_is_there():
    study = Study.from_dict(
        OmegaConf.to_container(OmegaConf.load(ROOT / "configs/study/prior.yaml"))
    )
    assert load_config(resolve(study.start)).fusion.name == "none"
    given = dict(setting.split("=", 1) for setting in study.train)
    prior = build_prior(PolicyConfig.preset("nano").prior, path=given["prior_path"])
    deepest = build_prior(
        dataclasses.replace(PolicyConfig.preset("nano").prior, block_index=5), path="nano-prior"
    )
    assert prior.config.block_index == 3
    assert deepest.config.block_index == 5


def test_the_results_in_the_documents_are_those_of_their_ledgers(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "docs/results/prior", tmp_path / "runs/studies/prior")
    monkeypatch.chdir(tmp_path)  # settings of runs name folders below where the study was run
    root = Path("runs/studies/prior")
    study = Study.from_dict(
        OmegaConf.to_container(OmegaConf.load(ROOT / "configs/study/prior.yaml"))
    )
    findings = json.loads(json.dumps(read_findings(study, root).to_json()))
    kept = json.loads((root / "findings.json").read_text())
    for part in ("n_trained", "missing", "notes"):
        assert findings[part] == kept[part]
    for part in ("groups", "errors"):
        assert np.array(numbers(findings[part])) == pytest.approx(np.array(numbers(kept[part])))
    [question] = [c for c in findings["groups"][0]["contrasts"] if c["name"] in study.main]
    low, high = question["interval"]
    said = f"{points(question['difference'])} points, {points(low)} to {points(high)}"
    readme = (ROOT / "README.md").read_text().replace("\N{MINUS SIGN}", "-")
    assert said in readme


def numbers(found):
    """List all numbers of nested JSON, in their order."""
    if isinstance(found, dict | list):
        inner = found.values() if isinstance(found, dict) else found
        return [x for part in inner for x in numbers(part)]
    return [float(found)] if isinstance(found, int | float) else []


def test_arms_of_unequal_size_are_refused_unless_exempt(tmp_path):
    played(declared(), tmp_path, lambda *_: 0.5)
    weights(tmp_path, "plain", 0, 40)
    weights(tmp_path, "gate", 0, 50)
    with pytest.raises(
        ContractError, match="unequal numbers of weights: clamped 100, gate 100, plain 80"
    ):
        read_findings(declared(), tmp_path)
    findings = read_findings(declared(exempt=["plain"]), tmp_path)
    assert "exempt" in findings.notes[0]


def test_a_run_with_other_settings_is_not_taken_for_this_one(tmp_path):
    study = declared()
    played(study, tmp_path, lambda *_: 0.5)
    changed = declared(rollout=["rollout.video=all"])
    with pytest.raises(ContractError, match=r"rollout\.video=all"):
        rollouts(changed, tmp_path)[0].result(tmp_path)


def test_the_shipped_study_is_sound_and_says_what_it_can_find():
    ended = subprocess.run(
        [sys.executable, "scripts/study.py", "stage=plan"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "found in 80 % of cases" in ended.stdout
    assert json.loads(ended.stdout.splitlines()[-1])["done"] == 0

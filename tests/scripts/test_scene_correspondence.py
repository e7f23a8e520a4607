"""From exported scans to the table, its files and its pictures; rows and files a user can get wrong."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from vega_policy.scene.correspondence import find_matches
from vega_policy.scene.readers.scannet import read_scan
from vega_policy.scene.readers.write_scannet import write_scan
from vega_policy.spec import ContractError
from vega_policy.testing.box_room import box_room

ROOT = Path(__file__).parents[2]
SCRIPTS, CONFIGS = ROOT / "scripts", ROOT / "configs" / "correspondence"
TABLE = ROOT / "tests" / "data" / "scene" / "vega3d_table4.csv"


def _load():
    sys.path.insert(0, str(SCRIPTS))
    try:
        spec = importlib.util.spec_from_file_location(
            "scene_correspondence", SCRIPTS / "scene_correspondence.py"
        )
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(SCRIPTS))
    return module


script = _load()


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scans")
    for seed in (1, 2):
        write_scan(folder, box_room(seed=seed, n_frames=4, height=48, width=64))
    return folder


def config(**changes):
    return OmegaConf.to_container(OmegaConf.load(CONFIGS / "nano.yaml")) | changes


def test_scans_become_a_table_files_and_pictures(export, tmp_path, capsys):
    names = ("token_gate", "vae_only", "random_prior", "zero", "towers")
    rows = [row for row in config()["rows"] if row["name"] in names]
    result = script.run_correspondence(
        config(rows=rows, voxel_m=0.4), scans=str(export), out=tmp_path
    )
    assert result["scenes"] == 2
    assert [row.split(" ")[0] for row in result["rows"]][:5] == list(names)
    assert "xyz oracle 8x8" in result["rows"]
    printed = capsys.readouterr().out
    assert "(constant + 5 % noise)" in printed
    stored = json.loads((tmp_path / "correspondence.json").read_text())
    assert len(stored["rows"]) == 5 + 6
    assert stored["rows"][3]["name"] == "zero"
    assert stored["rows"][3]["mvcs"] is None
    for picture in ("rows.png", "matches.png"):
        assert (tmp_path / picture).stat().st_size > 5000


def test_scene_that_cannot_be_read_is_named_and_the_others_are_scored(tmp_path, capsys):
    for seed in (1, 2):
        write_scan(tmp_path, box_room(seed=seed, n_frames=4, height=48, width=64))
    next((tmp_path / "room0001_00" / "pose").iterdir()).write_text("not a pose")
    rows = [{"name": "noise", "config": "noise"}]
    result = script.run_correspondence(
        config(rows=rows, voxel_m=0.4, pictures=False), scans=str(tmp_path), out=tmp_path / "out"
    )
    assert result["scenes"] == 1
    assert len(result["left_out"]) == 1
    assert "room0001_00" in result["left_out"][0]
    assert "left out: " in capsys.readouterr().out


def test_every_wrong_row_is_listed():
    rows = [
        {"name": "a", "policy": "nano-libero-object", "prior": {"noise_leve": 1.0}},
        {"name": "b", "config": "wan2_1"},
        {"name": "c", "config": "wan2_2", "path": "random"},
        {"name": "d"},
        {"name": "e", "config": "zero", "part": "towers"},
        {"name": "f", "polcy": "nano"},
    ]
    with pytest.raises(ContractError) as caught:
        script.build_sources(rows, device="cpu")
    sentences = str(caught.value).splitlines()
    for sentence, part in zip(
        sentences,
        [
            "did you mean 'noise_level'",
            "set path, or path: random",
            "did you mean 'wan2_1'",
            "either policy or config",
            "name its checkpoint with policy",
            "did you mean 'policy'",
        ],
        strict=True,
    ):
        assert part in sentence


@pytest.mark.parametrize("name", ["nano", "untrained", "published"])
def test_shipped_rows_have_the_same_settings_and_names_of_their_own(name):
    shipped = OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{name}.yaml"))
    assert list(shipped) == list(config())
    names = [row["name"] for row in shipped["rows"]]
    assert len(set(names)) == len(names)


def test_untrained_backbones_can_all_be_built():
    rows = OmegaConf.to_container(OmegaConf.load(CONFIGS / "untrained.yaml"))["rows"]
    assert len(script.build_sources(rows, device="cpu")) == len(rows)


def test_rows_named_like_arms_are_related_to_what_the_arms_gained(tmp_path, capsys):
    scores = {
        "rows": [
            {"name": "token_gate", "gap": 0.15, "is_control": False},
            {"name": "vae_only", "gap": 0.48, "is_control": False},
            {"name": "noise_only", "gap": 0.04, "is_control": False},
            {"name": "iid noise", "gap": 0.0, "is_control": True},
        ]
    }
    rates = {"no_prior": [0.5], "token_gate": [0.7], "vae_only": [0.6, 0.8], "layer_norm": [0.4]}
    rates["noise_only"] = [0.5]
    groups = [{"name": "all", "rates": [{"name": n, "by_seed": r} for n, r in rates.items()]}]
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    (tmp_path / "findings.json").write_text(json.dumps({"groups": groups}))
    found = script.run_consistency(
        str(tmp_path / "scores.json"),
        str(tmp_path / "findings.json"),
        number="gap",
        reference="no_prior",
    )
    assert found["n"] == 3
    assert "no conclusion" in found["verdict"]
    assert "not paired: layer_norm" in capsys.readouterr().out


def test_paper_s_table_gives_the_paper_s_scores(capsys):
    found = script.run_nos(str(TABLE), group="per_group", baseline="baseline", unknown="row")
    assert round(100 * found["nos"][1]["scores"]["Wan2.1-VACE"], 2) == 89.32
    assert "generative: 8 rows, 9 columns" in capsys.readouterr().out


def test_what_is_not_named_is_asked_for(tmp_path):
    with pytest.raises(ContractError, match=r"name their folder, scripts/scan.py makes one"):
        script.run_correspondence(config(), scans=None, out=tmp_path)
    with pytest.raises(ContractError, match="name a"):
        script.run_nos(None, group="joint", baseline=None, unknown="row")
    with pytest.raises(ContractError, match=r"reads scores= .*; name it"):
        script.run_consistency(None, None, number="gap", reference="no_prior")
    findings = tmp_path / "findings.json"
    findings.write_text('{"groups": [1]}')
    with pytest.raises(ContractError, match=r"has no rows, expected scores=.*exchanged"):
        script.run_consistency(str(findings), None, number="gap", reference="no_prior")


def test_scene_of_another_export_is_answered_with_the_nearest(export, tmp_path):
    with pytest.raises(
        ContractError, match="unknown scene 'room0001_0'; did you mean 'room0001_00'"
    ):
        script.run_correspondence(config(scenes=["room0001_0"]), scans=str(export), out=tmp_path)


def test_scan_written_and_read_has_its_tokens_in_the_same_places(export):
    scans = (box_room(seed=1, n_frames=4, height=48, width=64), read_scan(export, "room0001_00"))
    there, back = (find_matches(scan, grid=(8, 8)).points for scan in scans)
    np.testing.assert_allclose(back, there, atol=1e-3)  # depth is stored in millimetres

"""What evaluate_scene.py runs for task=correspondence, consistency and nos: rows to sources, then files."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra_cli import CONFIG_DIR
from omegaconf import OmegaConf

from vega_policy.policy import PolicyConfig, from_pretrained
from vega_policy.policy.pretrained import PRIOR, load_config, resolve
from vega_policy.scene.correspondence import (
    CorrespondenceSettings,
    consistency_and_benefit,
    measure,
)
from vega_policy.scene.correspondence.pictures import draw_matches, draw_rows
from vega_policy.scene.correspondence.sources import PriorSource, TowerSource
from vega_policy.scene.nos import nos, read_results
from vega_policy.scene.readers.scannet import list_scans, read_scan
from vega_policy.spec import ContractError
from vega_policy.spec.files import write_atomic
from vega_policy.spec.names import nearest, require_name
from vega_policy.vision.prior import WEIGHTLESS, build_prior

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vega_policy.scene.correspondence import Source
    from vega_policy.scene.scan import Scan

ROW_KEYS = ("name", "policy", "config", "path", "prior", "part")
PARTS = ("prior", "towers")
RANDOM = "random"
NUMBERS = ("mvcs", "mvcs_centred", "mvcs_negative", "gap")
log = logging.getLogger("correspondence")


def run_correspondence(
    config: Mapping[str, Any], *, scans: str | None, out: Path
) -> dict[str, Any]:
    """Score the rows of a configuration on exported scans.

    Args:
        config: See configs/correspondence.
        scans: Folder of an export in ScanNet's layout.
        out: Folder of correspondence.json, rows.png and matches.png.

    Raises:
        ContractError: The user has to act.
    """
    if scans is None:
        raise ContractError(
            "task=correspondence reads posed RGB-D scans; name their folder, scripts/scan.py makes one"
        )
    settings = CorrespondenceSettings(
        **{k: config[k] for k in ("voxel_m", "pairs", "mean", "masked", "min_depth_share")}
    )
    valid = list_scans(scans)
    names = valid if config["scenes"] is None else config["scenes"]
    names = [require_name(str(name), valid, what="scene") for name in names]
    sources = build_sources(config["rows"], device=config["device"])
    unread: list[str] = []
    found = measure(
        _scans(scans, names, n_frames=config["frames"], px=config["px"], unread=unread),
        sources,
        settings=settings,
        seed=config["seed"],
    )
    print(found.table())
    for sentence in unread:
        print(f"left out: {sentence}")
    result = found.to_json()
    result["left_out"] = [*unread, *result["left_out"]]
    write_atomic(out / "correspondence.json", json.dumps(result, indent=1) + "\n")
    if config["pictures"]:
        draw_rows(found, out / "rows.png")
        first = read_scan(scans, found.scene_ids[0], n_frames=config["frames"], px=config["px"])
        draw_matches(first, sources[0], out / "matches.png", settings=settings)
    return {
        "scenes": len(found.scene_ids),
        "left_out": result["left_out"],
        "rows": {
            f"{s.name} {s.grid[0]}x{s.grid[1]}": {n: getattr(s, n) for n in NUMBERS}
            for s in found.scores
        },
        "out": str(out),
    }


def run_nos(
    results: str | None, *, group: str, baseline: str | None, unknown: str
) -> dict[str, Any]:
    """Print the normalised overall score of a results table.

    Raises:
        ContractError: The user has to act.
    """
    if results is None:
        raise ContractError("task=nos reads a results table; name a .csv or .json file")
    found = nos(read_results(results), group=group, baseline=baseline, unknown=unknown)  # pyright: ignore[reportArgumentType] - nos checks them
    print("\n\n".join(scores.table() for scores in found))
    return {"group": group, "nos": [scores.to_json() for scores in found]}


def run_consistency(
    scores: str | None, findings: str | None, *, number: str, reference: str
) -> dict[str, Any]:
    """Relate the rows of correspondence.json to the arms of a study with the same names.

    Args:
        scores: What `run_correspondence` wrote.
        findings: ``findings.json`` of scripts/study.py.
        number: Of the four.
        reference: The arm that benefits are differences from.

    Raises:
        ContractError: The user has to act.
    """
    require_name(number, NUMBERS, what="number")
    rows = _read(scores, "rows", "scores= (correspondence.json of task=correspondence)")
    whole = _read(findings, "groups", "findings= (findings.json of a study)")[0]
    rates = {rate["name"]: sum(rate["by_seed"]) / len(rate["by_seed"]) for rate in whole["rates"]}
    require_name(reference, rates, what="arm")
    consistency = {row["name"]: row[number] for row in rows if not row["is_control"]}
    benefit = {name: rate - rates[reference] for name, rate in rates.items() if name != reference}
    relation = consistency_and_benefit(consistency, benefit)
    print(f"{'prior':24}{number:>14}{'success - ' + reference:>26}")
    for name, x, y in zip(relation.names, relation.consistency, relation.benefit, strict=True):
        print(f"{name:24}{100 * x:13.1f}%{100 * y:+25.1f}%")
    print(f"not paired: {', '.join(relation.unpaired) or 'none'}\n{relation.verdict}")
    return {
        "n": relation.n,
        "spearman": relation.spearman,
        "p_value": relation.p_value,
        "verdict": relation.verdict,
    }


def build_sources(rows: list[Mapping[str, Any]], *, device: str) -> list[Source]:
    """Build what the rows of a configuration name.

    Raises:
        ContractError: A row is not understood, or its weights are not there; all are listed.
    """
    sources: list[Source] = []
    problems: list[str] = []
    for number, row in enumerate(rows, start=1):
        try:
            sources.append(_source(row, device=device))
        except ContractError as error:
            problems.append(f"row {number} ({row.get('name', 'without a name')}): {error}")
    if problems:
        raise ContractError("\n".join(problems))
    return sources


def _source(row: Mapping[str, Any], *, device: str) -> Source:
    unknown = [key for key in row if key not in ROW_KEYS]
    if unknown:
        raise ContractError(f"unknown key {unknown[0]!r}; {nearest(unknown[0], ROW_KEYS)}")
    if not row.get("name") or ("policy" in row) == ("config" in row):
        raise ContractError("a row has a name, and either policy or config")
    name, path = str(row["name"]), row.get("path")
    part = require_name(str(row.get("part", "prior")), PARTS, what="part")
    if "policy" in row and part == "towers":
        return TowerSource(
            from_pretrained(str(row["policy"]), device=device).model.vision.semantic, name=name
        )
    if part == "towers":
        raise ContractError("towers belong to a policy; name its checkpoint with policy")
    if "policy" in row:
        folder = resolve(str(row["policy"]))
        base = load_config(folder)
        path = folder / PRIOR if path is None else path
    else:
        files = {file.stem: file for file in (CONFIG_DIR / "prior").glob("*.yaml")}
        chosen = files[require_name(str(row["config"]), files, what="prior")]
        base = PolicyConfig().changed({"prior": OmegaConf.to_container(OmegaConf.load(chosen))})
    config = base.changed({"prior": row.get("prior", {})}).prior
    if path is None and config.name not in WEIGHTLESS:
        raise ContractError(
            f"prior {config.name} has weights and none are named; set path, or path: random"
        )
    prior = build_prior(config, path=None if path == RANDOM else path)
    return PriorSource(prior, name=name, device=device)


def _scans(
    root: str, names: list[str], *, n_frames: int, px: int | None, unread: list[str]
) -> Iterator[Scan]:
    """Read one scan after the other; what cannot be read is named and the others go on."""
    for name in names:
        try:
            scan = read_scan(root, name, n_frames=n_frames, px=px)
        except ContractError as error:
            log.warning("%s", error)
            unread.append(str(error))
            continue
        yield scan


def _read(path: str | None, key: str, what: str) -> list[Any]:
    if path is None:
        raise ContractError(f"task=consistency reads {what}; name it")
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ContractError(f"{path} cannot be read as {what}: {error}") from error
    found = content.get(key) if isinstance(content, dict) else None
    if not isinstance(found, list) or not found:
        raise ContractError(f"{path} has no {key}, expected {what}; are the two files exchanged?")
    return found

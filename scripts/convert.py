"""Convert demonstrations between LIBERO HDF5, LeRobot v3 and RLDS.

python scripts/convert.py data/nano/libero_object data/lerobot/libero_object format=lerobot
python scripts/convert.py downloads/libero_spatial_no_noops data/rlds/libero_spatial format=hdf5
python scripts/convert.py downloads/libero_spatial data/spatial/libero_spatial regenerate=true format=hdf5
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hydra_cli import run

from vega_policy.data.convert import convert
from vega_policy.data.episodes import open_episodes
from vega_policy.spec import ContractError


def main(config: dict[str, Any]) -> dict[str, Any]:
    """Convert what the configuration names."""
    source, to = Path(str(config["from"])), Path(str(config["to"]))
    if config["regenerate"]:
        return _regenerate(config, source, to)
    if config["images"] not in ("lossy", "lossless"):
        raise ContractError(f"images is {config['images']!r}, expected lossy or lossless")
    os.environ.setdefault("SVT_LOG", "1")  # the video encoder writes thirty lines a file otherwise
    converted = convert(
        open_episodes(source, skip_damaged=config["skip_damaged"]),
        to,
        format=config["format"],
        images=config["images"],
        crf=config["crf"],
        name=config["name"],
        skip_damaged=config["skip_damaged"],
    )
    return {
        "episodes": converted.episodes,
        "frames": converted.frames,
        "skipped": list(converted.skipped),
        "out": str(converted.out),
    }


def _regenerate(config: dict[str, Any], source: Path, to: Path) -> dict[str, Any]:
    from envs.regenerate import RegenerateSettings, regenerate

    if config["format"] != "hdf5":
        raise ContractError(
            f"regenerate=true writes LIBERO files, format is {config['format']!r}; set format=hdf5, and "
            "convert the result in a second step"
        )
    result = regenerate(
        RegenerateSettings(
            source=source,
            to=to,
            suite=source.name if config["suite"] is None else str(config["suite"]),
            camera_px=config["camera_px"],
            workers=config["workers"] or len(os.sched_getaffinity(0)),
            skip_damaged=config["skip_damaged"],
        )
    )
    return {
        "episodes": result.episodes,
        "frames": result.frames,
        "skipped": list(result.skipped),
        "out": str(to),
    }


if __name__ == "__main__":
    run("convert", main, positional=("from", "to"))

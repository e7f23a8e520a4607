"""Sources and controls on scans, scene by scene, into one table."""

from __future__ import annotations

import logging
import math
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vega_policy.scene.correspondence.controls import CONTROLS
from vega_policy.scene.correspondence.matches import CorrespondenceSettings, find_matches
from vega_policy.scene.correspondence.score import (
    NUMBERS,
    CorrespondenceScore,
    Pooled,
    pool,
    score_pooled,
)
from vega_policy.spec import ContractError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vega_policy.scene.correspondence.features import FeatureMap, Floats, Source, Window
    from vega_policy.scene.correspondence.matches import Matches
    from vega_policy.scene.scan import Scan

logger = logging.getLogger(__name__)

Layout = tuple[tuple[int, int], "Window"]
"""Grid and the part of the image it covers: sources that share it share tokens and matches."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Sources beside the controls on their grid."""

    settings: CorrespondenceSettings
    scores: tuple[CorrespondenceScore, ...]
    """By grid; on each the sources first, then the controls."""
    scene_ids: tuple[str, ...]
    problems: tuple[str, ...]
    """What was left out, one sentence each."""

    def table(self) -> str:
        """Return the four numbers of every row in percent, with intervals."""
        width = max(len(score.name) for score in self.scores) + 2
        head = "grid".ljust(8) + "features".ljust(width)
        lines = [head + "".join(number.rjust(24) for number in NUMBERS) + "matches".rjust(10)]
        last: tuple[int, int] | None = None
        for score in self.scores:
            if last is not None and score.grid != last:
                lines.append("")
            last = score.grid
            name = f"({score.name})" if score.is_control else score.name
            cells = [_cell(score, number).rjust(24) for number in NUMBERS]
            grid = f"{score.grid[0]}x{score.grid[1]}".ljust(8)
            lines.append(grid + name.ljust(width) + "".join(cells) + f"{score.n_matches:10d}")
        s = self.settings
        pixels = "with depth" if s.masked else "all, also without depth"
        lines.append(
            f"\nscenes: {len(self.scene_ids)}, voxel {s.voxel_m} m, pairs {s.pairs}, mean over {s.mean}, "
            f"pixels {pixels}; % with 95 % intervals over scenes; (controls) in brackets"
        )
        lines += [f"left out: {problem}" for problem in self.problems]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary; NaN is null."""
        rows = [_jsonable(asdict(score)) for score in self.scores]
        return {
            "settings": asdict(self.settings),
            "rows": rows,
            "scenes": list(self.scene_ids),
            "left_out": list(self.problems),
        }


def measure(
    scans: Iterable[Scan],
    sources: Sequence[Source],
    *,
    settings: CorrespondenceSettings | None = None,
    seed: int = 0,
) -> Measurement:
    """Score sources on scans, each beside every control of `controls.CONTROLS` on its grid.

    One scan is in memory at a time; what the score needs of its features waits in a temporary folder.

    Args:
        scans: A scan, or a view of it, that cannot be used is left out and said in the result.
        sources: At least one, of different names.
        settings: None takes the defaults.
        seed: Of the bootstrap.

    Raises:
        ContractError: No scan can be used, names repeat, or features are of the wrong shape or not
            finite.
    """
    settings = settings or CorrespondenceSettings()
    names = [source.name for source in sources]
    if not names or len(set(names)) < len(names) or set(names) & set(CONTROLS):
        raise ContractError(
            f"the rows are named {names}; give at least one, each with a name of its own that is no "
            "control's"
        )
    problems: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        shelf = _Shelf(Path(folder))
        scene_ids: list[str] = []
        for scan in scans:
            usable = usable_views(scan, problems)
            if usable is None:
                continue
            logger.info("scene %s, %d views", usable.scene_id, len(usable.frames))
            if shelf.add(usable, sources, settings, problems):
                scene_ids.append(usable.scene_id)
        if not scene_ids:
            raise ContractError(
                "no scan can be scored: "
                + ("; ".join(problems) or "none was given")
                + "; give posed scans with depth whose views overlap"
            )
        scores = shelf.scores(settings, seed=seed)
    return Measurement(
        settings=settings,
        scores=tuple(scores),
        scene_ids=tuple(scene_ids),
        problems=tuple(problems),
    )


def usable_views(scan: Scan, problems: list[str]) -> Scan | None:
    """Return the scan without views that have no depth; None, and a sentence, with fewer than two."""
    bare = [frame.index for frame in scan.frames if frame.depth_m is None]
    if bare and len(bare) == len(scan.frames):
        problems.append(f"scene {scan.scene_id} has no depth, so no voxel can be matched")
        return None
    kept = [frame for frame in scan.frames if frame.depth_m is not None]
    if bare:
        problems.append(f"views {bare} of scene {scan.scene_id} have no depth")
    if len(kept) < 2:
        problems.append(f"scene {scan.scene_id} has {len(kept)} views with depth, two make a pair")
        return None
    return replace(scan, frames=kept)


class _Shelf:
    """What was pooled of every source and control, by layout."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._matches: dict[Layout, dict[str, Matches]] = {}
        self._pooled: dict[tuple[Layout, str], dict[str, Pooled]] = {}
        self._n = 0

    def add(
        self,
        scan: Scan,
        sources: Sequence[Source],
        settings: CorrespondenceSettings,
        problems: list[str],
    ) -> bool:
        """Pool all features of a scan; False where no layout gives a match."""
        empty: set[Layout] = set()
        for source in sources:
            features = source(scan)
            _require_features(features, scan, source.name)
            layout = (features.grid, features.window)
            if layout in empty:
                continue
            found = self._matches.setdefault(layout, {})
            if scan.scene_id not in found:
                matches = find_matches(scan, grid=layout[0], window=layout[1], settings=settings)
                if not len(matches.first):
                    empty.add(layout)
                    rows, columns = layout[0]
                    problems.append(
                        f"scene {scan.scene_id} has no voxel of {settings.voxel_m} m that two views "
                        f"see with {rows}x{columns} tokens"
                    )
                    continue
                found[scan.scene_id] = matches
                for name, control in CONTROLS.items():
                    self._keep(layout, name, matches, control(scan, matches, layout[1]), scan)
            self._keep(layout, source.name, found[scan.scene_id], features.tokens, scan)
        return any(scan.scene_id in found for found in self._matches.values())

    def scores(self, settings: CorrespondenceSettings, *, seed: int) -> list[CorrespondenceScore]:
        """Score everything, finer grids last."""
        result: list[CorrespondenceScore] = []
        for layout in sorted(layout for layout, found in self._matches.items() if found):
            names = [name for place, name in self._pooled if place == layout]
            for name in sorted(names, key=lambda n: n in CONTROLS):
                pooled = self._pooled[layout, name]
                result.append(
                    score_pooled(
                        list(pooled.values()),
                        [self._matches[layout][scene_id] for scene_id in pooled],
                        scene_ids=list(pooled),
                        name=name,
                        mean=settings.mean,
                        is_control=name in CONTROLS,
                        seed=seed,
                    )
                )
        return result

    def _keep(
        self,
        layout: Layout,
        name: str,
        matches: Matches,
        tokens: Floats,
        scan: Scan,
    ) -> None:
        pooled = pool(tokens, matches)
        file = self._folder / f"{self._n}.npy"
        self._n += 1
        np.save(file, pooled.groups)
        on_disk = replace(pooled, groups=np.load(file, mmap_mode="r"))
        mine = self._pooled.setdefault((layout, name), {})
        if scan.scene_id in mine:
            raise ContractError(f"scene {scan.scene_id} was given twice; give every scan once")
        mine[scan.scene_id] = on_disk


def _require_features(features: FeatureMap, scan: Scan, name: str) -> None:
    tokens = features.tokens
    if tokens.ndim != 4 or len(tokens) != len(scan.frames):
        raise ContractError(
            f"features {name!r} of scene {scan.scene_id} are {tokens.shape}, expected "
            f"({len(scan.frames)}, rows, columns, channels); return one map for each view"
        )
    if not np.isfinite(tokens).all():
        raise ContractError(
            f"features {name!r} of scene {scan.scene_id} are not finite; check the weights"
        )


def _cell(score: CorrespondenceScore, number: str) -> str:
    value = getattr(score, number)
    if math.isnan(value):
        return "-"
    interval = score.intervals[number]
    between = "" if interval is None else f" [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
    return f"{100 * value:.1f}{between}"


def _jsonable(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, dict):
        return {k: _jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value

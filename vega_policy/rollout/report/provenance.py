"""What the numbers were made with."""

from __future__ import annotations

import json
from html import escape
from typing import TYPE_CHECKING

from vega_policy.rollout.report.markup import plain_table

if TYPE_CHECKING:
    from vega_policy.rollout.report.reading import Run


def section(run: Run) -> str:
    """Write settings, versions and the resolved configuration."""
    header = run.header
    commit = [("commit", header.commit)] if header.commit else []
    versions = [*header.versions.items(), *commit, ("python", header.host.get("python", ""))]
    configuration = escape(json.dumps(header.configuration, indent=2))
    return f"""<h2 id="provenance">What was run</h2><div class="two">
<div class="card"><h3>Decides the results</h3>{plain_table(header.defines.items())}</div>
<div class="card"><h3>Versions</h3>{plain_table(versions)}</div></div>
<details class="card"><summary>Resolved configuration</summary><pre>{configuration}</pre></details>
<footer>Made from <code>ledger.jsonl</code> and the files beside it; nothing here is loaded from
the network.</footer>"""

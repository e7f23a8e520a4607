"""Style sheet and behaviour of the report; nothing in it is loaded from elsewhere."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #16191f; --soft: #5c6573; --line: #e2e5ea;
  --accent: #3b4cc0; --band: #3b4cc014; --good: #1f8a4c; --bad: #c8453b; --fault: #a86f0c;
  --void: #aab2bf; --a: #3b4cc0; --b: #d9782d; --c: #1f8a4c;
  --shadow: 0 1px 2px #10182810, 0 4px 16px #1018280a;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #0f1217; --card: #171b22; --ink: #e8ebf0; --soft: #98a2b3; --line: #2a303a;
    --accent: #8fa0ff; --band: #8fa0ff1f; --good: #4cc07e; --bad: #f0776c; --fault: #e0a940;
    --void: #4a5361; --a: #8fa0ff; --b: #f2a25c; --c: #4cc07e; --shadow: none;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  font-variant-numeric: tabular-nums;
}
main { max-width: 1180px; margin: 0 auto; padding: 40px 24px 80px; }
h1, h2, h3 { line-height: 1.2; letter-spacing: -0.015em; margin: 0; }
h1 { font-size: 30px; font-weight: 680; }
h2 { font-size: 20px; font-weight: 650; margin: 52px 0 6px; }
h3 { font-size: 15px; font-weight: 620; letter-spacing: 0; }
p { margin: 6px 0; max-width: 78ch; }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
code, pre { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; font-size: 12.5px; }
nav { display: flex; flex-wrap: wrap; gap: 4px 18px; margin-top: 10px; font-size: 14px; }
.eyebrow {
  font-size: 12px; font-weight: 650; letter-spacing: 0.09em; text-transform: uppercase;
  color: var(--accent); margin: 0 0 8px;
}
.soft { color: var(--soft); }
.small { font-size: 13px; }
.card {
  background: var(--card); border: 1px solid var(--line); border-radius: 14px;
  box-shadow: var(--shadow);
}
.hero { display: grid; grid-template-columns: minmax(300px, 1fr) 2fr; gap: 18px; margin-top: 26px; }
.headline { padding: 24px 26px; }
.rate { font-size: 62px; font-weight: 700; letter-spacing: -0.045em; line-height: 1.05; }
.rate small { font-size: 30px; font-weight: 600; letter-spacing: 0; color: var(--soft); }
.headline svg { margin: 12px -8px 0; width: calc(100% + 16px); }
.facts {
  display: grid; grid-template-columns: repeat(3, 1fr); gap: 1px; overflow: hidden;
  background: var(--line);
}
.fact { background: var(--card); padding: 17px 20px; }
.fact b { display: block; font-size: 24px; font-weight: 640; letter-spacing: -0.02em; }
.fact span { color: var(--soft); font-size: 13px; }
.banner {
  margin-top: 18px; padding: 12px 18px; border-left: 4px solid var(--fault);
  border-radius: 8px; background: var(--card);
}
.banner.bad { border-left-color: var(--bad); }
.banner + .banner { margin-top: 10px; }
.scroll { overflow-x: auto; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; border-radius: 4px; }
h3.second { margin: 26px 0 0; }
table { border-collapse: collapse; width: 100%; }
.results { margin-top: 14px; }
.results th, .results td { padding: 5px 12px; text-align: left; white-space: nowrap; }
.results th {
  font-size: 12px; font-weight: 600; color: var(--soft); border-bottom: 1px solid var(--line);
  padding: 12px 12px 6px; vertical-align: bottom;
}
.results tbody tr + tr td { border-top: 1px solid var(--line); }
.results .number { text-align: right; }
.results .plot-cell { padding: 0 12px; width: 300px; min-width: 210px; }
.results th.plot-cell { white-space: normal; padding-top: 10px; }
.results .words { white-space: normal; min-width: 200px; line-height: 1.35; padding: 8px 12px; }
.results tfoot td { border-top: 2px solid var(--line); font-weight: 650; padding: 9px 12px; }
.tight :is(th, td, tfoot td, .words) { padding-left: 8px; padding-right: 8px; }
.tight .plot-cell { width: 230px; min-width: 170px; padding: 0 6px; }
.tight th.plot-cell { padding-top: 10px; }
.strip { display: flex; flex-wrap: wrap; gap: 3px; max-width: 140px; }
.strip a, .strip i, .key i {
  width: 11px; height: 11px; border-radius: 3px; background: var(--void); display: inline-block;
}
.strip a:hover { outline: 2px solid var(--ink); outline-offset: 1px; }
.strip .success, .key .success { background: var(--good); }
.strip .failure, .key .failure { background: var(--bad); }
.strip .policy_fault, .key .policy_fault { background: var(--fault); }
.key { display: flex; gap: 16px; flex-wrap: wrap; font-size: 13px; color: var(--soft);
  padding: 10px 14px 14px; }
.key span { display: inline-flex; gap: 6px; align-items: center; }
.key .bandkey { width: 18px; height: 12px; background: var(--band); border-radius: 2px; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font-size: 11px; }
svg.axis text { font-size: 11px; }
.grid { stroke: var(--line); stroke-width: 1; }
.band { fill: var(--band); }
.whisker { stroke: var(--ink); stroke-width: 1.6; opacity: 0.75; }
.dot { fill: var(--ink); stroke: var(--card); stroke-width: 2; }
.whisker.total { stroke: var(--accent); stroke-width: 2.4; opacity: 1; }
.dot.total { fill: var(--accent); }
.zero { stroke: var(--soft); stroke-width: 1.4; }
.verdict { color: var(--soft); white-space: nowrap; }
.verdict.apart { color: var(--ink); font-weight: 650; }
.chart { margin-top: 14px; padding: 16px 14px 6px; }
.chart .keys { margin: 2px 8px 6px; }
svg.robustness { max-width: none; }
svg.robustness text { font-size: 12px; }
svg .title { fill: var(--ink); font-weight: 600; }
svg .clean { stroke: var(--accent); stroke-width: 1.6; stroke-dasharray: 5 4; }
g.line-a { stroke: var(--a); fill: var(--a); } g.line-b { stroke: var(--b); fill: var(--b); }
g.line-c { stroke: var(--c); fill: var(--c); }
g line { stroke-width: 2; opacity: 0.75; }
g circle { stroke: var(--card); stroke-width: 1.5; }
.column { fill: var(--a); opacity: 0.55; }
svg .mark { stroke: var(--ink); stroke-width: 1; opacity: 0.6; }
svg .marked { fill: var(--ink); }
.shares { display: flex; height: 16px; border-radius: 5px; overflow: hidden; margin: 12px 0 8px; }
.share-0 { background: var(--a); } .share-1 { background: var(--b); }
.share-2 { background: var(--c); } .share-3 { background: var(--fault); }
.share-4 { background: var(--void); }
.plain td i { display: inline-block; width: 10px; height: 10px; border-radius: 3px;
  margin-right: 8px; }
.totals { margin-top: 18px; padding: 10px 20px; }
.mark { display: inline-block; width: 19px; height: 19px; border-radius: 50%; line-height: 19px;
  text-align: center; font-size: 12px; color: #fff; margin-right: 7px; background: var(--void); }
.mark.ok { background: var(--good); } .mark.failed { background: var(--bad); }
.mark.warning { background: var(--fault); }
.results .prose { white-space: normal; min-width: 150px; max-width: 330px; line-height: 1.4;
  font-size: 13.5px; padding: 8px 12px; overflow-wrap: anywhere; }
.folded { padding: 12px 0; } .folded summary { padding: 0 18px; }
polyline.thin { stroke-width: 1.4; opacity: 0.55; }
polyline { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.line-a { stroke: var(--a); } .line-b { stroke: var(--b); } .line-c { stroke: var(--c); }
.legend { display: inline-flex; align-items: center; gap: 6px; margin-right: 14px;
  font-size: 12.5px; color: var(--soft); }
.legend i { width: 14px; height: 3px; border-radius: 2px; }
.legend .line-a { background: var(--a); } .legend .line-b { background: var(--b); }
.legend .line-c { background: var(--c); }
.gates { display: grid; grid-template-columns: repeat(auto-fill, minmax(500px, 1fr)); gap: 18px;
  margin-top: 16px; }
.gate { padding: 16px 18px 14px; }
.gate .stills { display: grid; grid-template-columns: 1fr 1fr; gap: 12px; margin: 10px 0 8px; }
.gate figure { margin: 0; }
.gate .pair { display: grid; grid-template-columns: 1fr 1fr; gap: 3px; border-radius: 8px;
  overflow: hidden; }
.gate img { width: 100%; display: block; aspect-ratio: 1; }
.gate figcaption { font-size: 12.5px; color: var(--soft); margin-top: 4px; }
.bar { display: grid; grid-template-columns: auto 1fr auto; gap: 10px; align-items: center;
  font-size: 12.5px; color: var(--soft); margin-bottom: 8px; }
.bar i { height: 9px; border-radius: 5px; }
.filters { display: flex; gap: 8px; flex-wrap: wrap; margin: 10px 0 0; align-items: center; }
.filters span { font-size: 13px; color: var(--soft); min-width: 84px; }
.filters button {
  font: inherit; font-size: 13px; padding: 4px 13px; border-radius: 99px; cursor: pointer;
  border: 1px solid var(--line); background: var(--card); color: var(--soft);
}
.filters button[aria-pressed="true"] {
  background: var(--ink); border-color: var(--ink); color: var(--page);
}
.group { margin-top: 22px; }
.group > h3 span { color: var(--soft); font-weight: 450; margin-left: 8px; }
.clips { display: grid; grid-template-columns: repeat(auto-fill, minmax(250px, 1fr)); gap: 14px;
  margin-top: 10px; }
.clip { overflow: hidden; scroll-margin: 20px; }
.clip:target { outline: 3px solid var(--accent); }
.clip video { width: 100%; display: block; background: #000; cursor: pointer; }
.clip .line { display: flex; gap: 10px; align-items: center; padding: 8px 12px; font-size: 13px; }
.clip .line span:last-child { margin-left: auto; color: var(--soft); }
.clip .tags { display: flex; gap: 6px; flex-wrap: wrap; padding: 0 12px 9px; margin-top: -2px; }
.clip .tags i { font-style: normal; font-size: 12px; border: 1px solid var(--line);
  border-radius: 99px; padding: 0 8px; color: var(--soft); }
.clip .told { padding: 0 12px 10px; font-size: 12.5px; color: var(--soft); }
.clip .detail { padding: 0 12px 10px; font-size: 12.5px; color: var(--fault); }
.badge { border-radius: 99px; padding: 1px 9px; font-size: 12px; font-weight: 620; color: #fff; }
.badge.success { background: var(--good); } .badge.failure { background: var(--bad); }
.badge.policy_fault { background: var(--fault); }
@media (prefers-color-scheme: dark) { .badge, .mark { color: #10141a; } }
.more { margin: 10px 0 0; font-size: 13px; line-height: 2; }
.more a { margin-right: 10px; white-space: nowrap; }
.two { display: grid; grid-template-columns: 1fr 1fr; gap: 18px; margin-top: 14px; }
.two .card { padding: 16px 20px; min-width: 0; }
.plain td, .plain th { padding: 4px 0; border-top: 1px solid var(--line); font-size: 13.5px;
  text-align: left; vertical-align: top; }
.plain tr:first-child td, .plain tr:first-child th { border-top: 0; }
.plain td:first-child { color: var(--soft); padding-right: 16px; white-space: nowrap; }
.plain td { overflow-wrap: anywhere; }
.plain .number { text-align: right; }
.plain th { color: var(--soft); font-weight: 560; }
.notes li { margin: 7px 0; max-width: 84ch; }
details { margin-top: 14px; padding: 12px 20px; }
summary { cursor: pointer; font-weight: 600; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 10px 0 0; }
footer { margin-top: 56px; color: var(--soft); font-size: 13px; }
@media (max-width: 860px) {
  main { padding: 24px 14px 60px; }
  .hero, .two { grid-template-columns: 1fr; }
  .facts { grid-template-columns: 1fr 1fr; }
  .gates { grid-template-columns: 1fr; }
  .gate .stills { grid-template-columns: 1fr; }
  .rate { font-size: 52px; }
}
@media (max-width: 460px) {
  h1 { font-size: 25px; }
  .fact { padding: 12px 14px; } .fact b { font-size: 20px; }
}
@media print { .filters { display: none; } body { background: #fff; } }
"""

SCRIPT = """
const items = [...document.querySelectorAll('[data-outcome]')];
const filters = [...document.querySelectorAll('.filters[data-filter]')];
const shown = document.getElementById('shown');
function press(button) {
  button.parentElement.querySelectorAll('button').forEach(
    other => other.setAttribute('aria-pressed', other === button));
}
function apply() {
  const wanted = filters.map(
    f => [f.dataset.filter, f.querySelector('[aria-pressed="true"]').dataset.is]);
  items.forEach(item => {
    item.hidden = wanted.some(([field, value]) => value && item.dataset[field] !== value);
  });
  document.querySelectorAll('.group').forEach(group => {
    group.hidden = !group.querySelector('[data-outcome]:not([hidden])');
  });
  if (shown) {
    const n = items.filter(item => !item.hidden).length;
    shown.textContent = n === items.length ? '' : n + ' of ' + items.length + ' episodes shown';
  }
}
filters.forEach(filter => filter.addEventListener('click', event => {
  const button = event.target.closest('button');
  if (button) { press(button); apply(); }
}));
// A link to an episode that is filtered away shows all again, else it would lead nowhere.
document.addEventListener('click', event => {
  const link = event.target.closest('a[href^="#"]');
  const target = link && document.getElementById(link.getAttribute('href').slice(1));
  if (!target || !target.hidden || !filters.length) return;
  filters.forEach(filter => press(filter.querySelector('button')));
  apply();
});
document.querySelectorAll('video').forEach(video => {
  video.controls = false;
  video.tabIndex = 0;
  video.addEventListener('mouseenter', () => video.play().catch(() => {}));
  video.addEventListener('mouseleave', () => { if (!video.controls) video.pause(); });
  video.addEventListener('focus', () => { video.controls = true; });
  video.addEventListener('click', () => {
    if (video.controls) return;
    video.controls = true;
    video.play().catch(() => {});
  });
});
"""

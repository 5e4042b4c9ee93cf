// The style sheet of report.html. One place for all colours: light first, dark by the reader's setting.
#pragma once

namespace decode_trace {

// Text colours keep a contrast of at least 4.5 : 1 to the card they stand on; the three series differ in hue, lightness and marker.
inline constexpr const char* kStyleSheet = R"(
:root { color-scheme: light dark;
  --page: #f7f6f3; --card: #ffffff; --ink: #1c2330; --muted: #5c6675; --faint: #e6e4de; --edge: #e3e0d9;
  --truth: #0b5fa5; --estimate: #b4540a; --bound: #0a7a5a; --dense: #b9bfc8; }
@media (prefers-color-scheme: dark) { :root {
  --page: #12151a; --card: #1a1e25; --ink: #e9e7e2; --muted: #a3acb9; --faint: #2b313b; --edge: #2a303a;
  --truth: #74bcf5; --estimate: #f0a25c; --bound: #57cfa8; --dense: #59626f; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  -webkit-text-size-adjust: 100%; }
main { max-width: 1120px; margin: 0 auto; padding: 48px 28px 72px; }
.eyebrow { margin: 0 0 6px; color: var(--muted); font-size: 14px; }
h1 { margin: 0 0 14px; max-width: 26em; font-size: clamp(26px, 4vw, 38px); line-height: 1.18; font-weight: 650; letter-spacing: -0.015em;
  text-wrap: balance; }
h2 { margin: 0 0 4px; font-size: 24px; line-height: 1.25; font-weight: 650; letter-spacing: -0.01em; }
h3 { margin: 0 0 2px; font-size: 17px; font-weight: 650; }
p { margin: 0 0 12px; }
.lead { max-width: 46em; color: var(--muted); font-size: 17px; }
section { margin-top: 44px; } header + section { margin-top: 22px; }
.about { color: var(--muted); overflow-wrap: anywhere; }
.at { margin: 22px 0 10px; font-weight: 650; }
.tiles { display: grid; grid-template-columns: repeat(4, 1fr); gap: 16px; margin: 0; padding: 0; }
.tile, figure, .sheet { margin: 0; background: var(--card); border: 1px solid var(--edge); border-radius: 14px; }
.tile { padding: 18px 20px 16px; }
.tile dt { color: var(--muted); font-size: 14px; }
.tile dd { margin: 0; }
.tile .number { font-size: clamp(27px, 3.4vw, 36px); line-height: 1.25; font-weight: 650; letter-spacing: -0.02em;
  font-variant-numeric: tabular-nums; }
.tile .unit { margin-left: 0.3em; font-size: 0.55em; letter-spacing: 0; }
.tile .detail { color: var(--muted); font-size: 14px; line-height: 1.4; }
.charts { display: grid; grid-template-columns: 1fr 1fr; gap: 20px; margin-top: 20px; align-items: stretch; }
figure { padding: 20px 22px 14px; }
figcaption p { margin: 0 0 14px; color: var(--muted); font-size: 14px; line-height: 1.45; min-height: 2.9em; }
svg { display: block; width: 100%; max-width: 640px; height: auto; overflow: visible;
  font: 12.5px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  font-variant-numeric: tabular-nums; }
svg text { fill: var(--muted); }
.start { text-anchor: start; } .middle { text-anchor: middle; } .end { text-anchor: end; }
svg .value, svg .label { fill: var(--ink); font-weight: 600; }
svg .note { font-style: italic; }
.grid { stroke: var(--faint); }
.reference { stroke: var(--muted); stroke-dasharray: 4 4; }
.dot { fill: var(--truth); fill-opacity: 0.34; }
.half { fill: var(--truth); }
.median { stroke: var(--ink); stroke-width: 2.5; }
.line { fill: none; stroke-width: 2; }
.whisker { stroke-width: 1.5; opacity: 0.55; }
.leader { stroke-width: 1; opacity: 0.7; }
.mark { stroke: var(--card); stroke-width: 1.25; }
.line.truth, .whisker.truth, .leader.truth { stroke: var(--truth); } .mark.truth { fill: var(--truth); }
  svg .label.truth { fill: var(--truth); }
.line.estimate, .whisker.estimate, .leader.estimate { stroke: var(--estimate); } .mark.estimate { fill: var(--estimate); }
svg .label.estimate { fill: var(--estimate); }
.line.bound, .whisker.bound, .leader.bound { stroke: var(--bound); } .mark.bound { fill: var(--bound); }
  svg .label.bound { fill: var(--bound); }
.line.quiet { stroke: var(--muted); stroke-width: 1.5; stroke-dasharray: 5 4; } .mark.quiet { fill: var(--muted); }
  svg .label.quiet { fill: var(--muted); }
.dense { fill: var(--dense); } .sparse { fill: var(--truth); } .spread { stroke: var(--ink); stroke-width: 1.5; opacity: 0.6; }
svg .dense-text { fill: var(--muted); font-weight: 400; }
.sheet { margin-top: 20px; padding: 6px 22px 10px; overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: 7px 0 7px 16px; text-align: right; border-bottom: 1px solid var(--faint); }
.name, td:first-child { padding-left: 0; text-align: left; }
thead th { color: var(--muted); font-weight: 500; vertical-align: bottom; }
.group { padding-bottom: 1px; border-bottom: 0; text-align: right; font-style: italic; }
tbody tr:last-child td { border-bottom: 0; }
tr.headline td { font-weight: 650; }
tr.first td { border-top: 1px solid var(--muted); }
details { margin-top: 14px; } summary { cursor: pointer; color: var(--muted); font-size: 15px; }
.key { margin: 10px 0 0; color: var(--muted); font-size: 14px; max-width: 62em; }
.method { display: grid; grid-template-columns: max-content 1fr; gap: 6px 24px; margin: 14px 0 0; font-size: 15px; }
.method dt { color: var(--muted); } .method dd { margin: 0; overflow-wrap: anywhere; max-width: 56em; }
code { font: 0.92em ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
a { color: var(--truth); }
@media (max-width: 860px) { .tiles { grid-template-columns: 1fr 1fr; } .charts { grid-template-columns: 1fr; }
  figcaption p { min-height: 0; } }
@media (max-width: 520px) { main { padding: 28px 14px 48px; } .tiles { gap: 10px; } .tile { padding: 13px 14px; }
  figure { padding: 16px 14px 10px; }
  svg { font-size: 14px; } .sheet { padding: 4px 14px 8px; } .method { grid-template-columns: 1fr; gap: 0; }
  .method dd { margin-bottom: 10px; } }
@media print { body { background: none; } figure, .tile { break-inside: avoid; } }
)";

}  // namespace decode_trace

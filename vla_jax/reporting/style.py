"""The style sheet of the reports: one set of colours by daylight and one for dark rooms, which the figures share."""

STYLE = """\
:root { color-scheme: light dark; --ground: #f3f4f6; --card: #ffffff; --ink: #111827; --soft: #4b5563;
  --faint: #6b7280; --line: #e5e7eb; --good: #047857; --bad: #b91c1c; --shadow: rgba(17, 24, 39, .18);
  --blue: #2563eb; --grey: #9ca3af; --orange: #d97706; --green: #059669; }
@media (prefers-color-scheme: dark) { :root { --ground: #0b0f17; --card: #151b26; --ink: #e5e7eb; --soft: #b6bdc9;
  --faint: #98a1b0; --line: #2b3342; --good: #34d399; --bad: #f87171; --shadow: rgba(0, 0, 0, .7);
  --blue: #6ea0ff; --grey: #8b95a5; --orange: #f5a524; --green: #34d399; } }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 1060px; margin: 0 auto; padding: 36px 20px 60px; }
h1 { font-size: 27px; line-height: 1.2; margin: 0 0 4px; letter-spacing: -.01em; overflow-wrap: anywhere; }
h1::first-letter { text-transform: uppercase; }
h2 { font-size: 17px; margin: 0 0 12px; }
h3 { font-size: 14px; margin: 16px 0 4px; color: var(--soft); font-weight: 600; }
.lead { margin: 0 0 22px; color: var(--soft); }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 18px 20px;
  margin: 16px 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 12px 16px;
  display: flex; flex-direction: column; }
.card span, .card small { color: var(--faint); font-size: 12.5px; }
.card b { font-size: 24px; line-height: 1.35; font-variant-numeric: tabular-nums; }
/* What is wider than its box scrolls, and a shadow at the edge says so until the end is reached. */
.scroll { overflow-x: auto; scrollbar-width: thin; scrollbar-color: var(--grey) transparent; padding-bottom: 4px;
  background:
    linear-gradient(to right, var(--card) 30%, transparent) left / 40px 100% no-repeat local,
    linear-gradient(to left, var(--card) 30%, transparent) right / 40px 100% no-repeat local,
    radial-gradient(farthest-side at 0 50%, var(--shadow), transparent) left / 14px 100% no-repeat scroll,
    radial-gradient(farthest-side at 100% 50%, var(--shadow), transparent) right / 14px 100% no-repeat scroll; }
.scroll::-webkit-scrollbar { height: 8px; }
.scroll::-webkit-scrollbar-thumb { background: var(--grey); border-radius: 4px; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums; }
thead th { color: var(--faint); font-weight: 600; font-size: 12px; text-align: right; vertical-align: bottom; }
th, td { padding: 6px 8px; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
thead th { white-space: normal; }
th:first-child { text-align: left; }
tbody th { font-weight: 600; text-align: left; }
tbody tr:last-child > * { border-bottom: 0; }
td.strong { font-weight: 600; }
td.good { color: var(--good); }
td.bad { color: var(--bad); }
td.text { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 180px; width: 80%; }
.note, figcaption { color: var(--faint); font-size: 12.5px; margin: 10px 0 0; }
figure { margin: 0; }
img, figure svg { display: block; width: 100%; height: auto; }
/* Letters of a figure that is made narrower than this cannot be read. */
figure .scroll > * { min-width: 700px; }
figure svg text { font-family: system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
@media (max-width: 600px) { main { padding: 20px 10px 40px; } section { padding: 14px 12px; }
  .cards { grid-template-columns: repeat(2, minmax(0, 1fr)); } }
@media print { body { background: #fff; } section { break-inside: avoid; } }
"""

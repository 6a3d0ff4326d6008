"""The style sheet of the report."""

STYLE = """\
:root { color-scheme: light; }
body { margin: 0; background: #f3f4f6; color: #111827;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 1060px; margin: 0 auto; padding: 36px 20px 60px; }
h1 { font-size: 27px; line-height: 1.2; margin: 0 0 4px; letter-spacing: -.01em; }
h1::first-letter { text-transform: uppercase; }
h2 { font-size: 17px; margin: 0 0 12px; }
h3 { font-size: 14px; margin: 16px 0 4px; color: #4b5563; font-weight: 600; }
.lead { margin: 0 0 22px; color: #4b5563; }
section { background: #fff; border: 1px solid #e5e7eb; border-radius: 10px; padding: 18px 20px;
  margin: 16px 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: 12px; }
.card { background: #fff; border: 1px solid #e5e7eb; border-radius: 10px; padding: 12px 16px;
  display: flex; flex-direction: column; }
.card span, .card small { color: #6b7280; font-size: 12.5px; }
.card b { font-size: 24px; line-height: 1.35; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums; }
thead th { color: #6b7280; font-weight: 600; font-size: 12px; text-align: right; vertical-align: bottom; }
th, td { padding: 6px 8px; border-bottom: 1px solid #e5e7eb; text-align: right; white-space: nowrap; }
thead th { white-space: normal; }
th:first-child { text-align: left; }
tbody th { font-weight: 600; text-align: left; }
tbody tr:last-child > * { border-bottom: 0; }
td.strong { font-weight: 600; }
td.good { color: #047857; }
td.bad { color: #b91c1c; }
td.text { text-align: left; white-space: normal; overflow-wrap: anywhere; width: 80%; }
.note, figcaption { color: #6b7280; font-size: 12.5px; margin: 10px 0 0; }
figure { margin: 0; }
img { display: block; width: 100%; height: auto; }
@media print { body { background: #fff; } section { break-inside: avoid; } }
"""

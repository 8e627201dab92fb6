"""Charts as SVG: bars of ratios, on a scale of powers of ten. No library, no script, and colours for light and dark pages."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from .headline import short

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .headline import Comparison

WIDTH = 760
_LABELS = 216
_VALUES = 72
_ROW = 28
_BAR = 16
_TOP = 62
_BOTTOM = 28

_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f; }
.title { font-size: 15px; font-weight: 600; }
.quiet { fill: #57606a; font-size: 12px; }
.grid { stroke: #d0d7de; }
.one { stroke: #57606a; }
.better { fill: #2a78b8; }
.worse { fill: #c2622d; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .quiet { fill: #9198a1; }
  .grid { stroke: #3d444d; }
  .one { stroke: #9198a1; }
  .better { fill: #58a6ff; }
  .worse { fill: #f0883e; }
}
"""


def bar_chart(comparison: Comparison) -> str:
    """Draw how many times better ours is than each peer. A bar begins at 1; one to the left means that the peer is better."""
    ratios = comparison.ratios
    lowest = min(-0.1, math.log10(min(ratios.values())))
    highest = max(1.0, math.log10(max(ratios.values())))
    height = _TOP + _ROW * len(ratios) + _BOTTOM

    def x(ratio: float) -> float:
        share = (math.log10(ratio) - lowest) / (highest - lowest)
        return _LABELS + share * (WIDTH - _LABELS - _VALUES)

    title = escape(comparison.title)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img">',
        f"<title>{title}</title>",
        f"<style>{_STYLE}</style>",
        f'<text class="title" x="8" y="22">{title}</text>',
        f'<text class="quiet" x="8" y="42">{escape(comparison.ours)}: {escape(comparison.figure)}; times better than the others</text>',
        *_grid([10.0**power for power in range(math.ceil(lowest), math.floor(highest) + 1)], x, height),
    ]
    for row, (peer, ratio) in enumerate(ratios.items()):
        parts += _bar(_TOP + _ROW * row, peer, ratio, x)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _grid(ratios: Sequence[float], x: Callable[[float], float], height: int) -> list[str]:
    parts: list[str] = []
    for ratio in ratios:
        at = f"{x(ratio):.1f}"
        kind = "one" if ratio == 1 else "grid"
        parts.append(f'<line class="{kind}" x1="{at}" x2="{at}" y1="{_TOP - 6}" y2="{height - _BOTTOM}"/>')
        parts.append(f'<text class="quiet" x="{at}" y="{height - 10}" text-anchor="middle">{ratio:g}x</text>')
    return parts


def _bar(top: int, peer: str, ratio: float, x: Callable[[float], float]) -> list[str]:
    left, right = sorted((x(1), x(ratio)))
    middle = top + _ROW / 2 + 4
    kind = "better" if ratio >= 1 else "worse"
    return [
        f'<text x="{_LABELS - 12}" y="{middle}" text-anchor="end">{escape(peer)}</text>',
        f'<rect class="{kind}" x="{left:.1f}" y="{top + (_ROW - _BAR) / 2}" width="{max(1, right - left):.1f}" height="{_BAR}" rx="2"/>',
        f'<text x="{right + 6:.1f}" y="{middle}">{short(ratio)}x</text>',
    ]

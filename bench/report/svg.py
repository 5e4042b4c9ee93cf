"""Charts as inline SVG: lines on two logarithmic axes, and stacked or plain bars. Series are numbered colours of style.css."""
import math
from html import escape


def short(value):
    """12800 -> "12.8K"; three digits otherwise."""
    for factor, unit in ((1e6, "M"), (1e3, "K")):
        if value >= factor:
            return f"{value / factor:.3g}{unit}"
    return f"{value:.3g}"


def tokens(value):
    """32768 -> "32K"."""
    return f"{value >> 20}M" if value >= 1 << 20 and value % (1 << 20) == 0 else f"{value / 1024:.3g}K" if value >= 1024 else str(value)


def spread_apart(wanted, gap):
    """Places as near to the wanted ones as a gap between neighbours allows."""
    places = list(wanted)
    order = sorted(range(len(places)), key=places.__getitem__)
    for _ in range(200):
        for first, second in zip(order, order[1:]):
            overlap = gap - (places[second] - places[first])
            if overlap > 0:
                places[first] -= overlap / 2
                places[second] += overlap / 2
    return places


class Canvas:
    def __init__(self, width, height, description):
        self.parts = [f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(description)}">']

    def line(self, x1, y1, x2, y2, extra='class="grid"'):
        self.parts.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" {extra}/>')

    def text(self, x, y, content, style="start", colour=None):
        fill = f' style="fill:var(--c{colour})"' if colour is not None else ""
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" class="{style}"{fill}>{escape(content)}</text>')

    def rect(self, x, y, width, height, colour, tip):
        self.parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.5):.1f}" height="{height:.1f}" style="fill:var(--c{colour})">'
                          f"<title>{escape(tip)}</title></rect>")

    def str(self):
        return "\n".join(self.parts + ["</svg>"])


def line_chart(series, description, unit, x_title="tokens in the cache", x_label=tokens, x_word=lambda x: f"{tokens(x)} tokens"):
    """series: {name: {x: value}}, at least one point in all, both positive; x_label(x) at the axis, x_word(x) in what a point says."""
    left, right, top = 60, 680, 30
    bottom = max(380, top + 17 * len(series))  # room for the names
    lengths = sorted({x for points in series.values() for x in points})
    values = [y for points in series.values() for y in points.values()]
    low, high = 10 ** math.floor(math.log10(min(values))), 10 ** math.ceil(math.log10(max(values) * 1.0001))
    first, last = math.log(lengths[0]), math.log(lengths[-1])
    at_x = lambda x: (left + right) / 2 if first == last else left + (math.log(x) - first) / (last - first) * (right - left)
    at_y = lambda y: bottom - math.log(y / low) / math.log(high / low) * (bottom - top)
    canvas = Canvas(960, bottom + 50, description)
    for x in lengths:
        canvas.line(at_x(x), top, at_x(x), bottom)
        canvas.text(at_x(x), bottom + 18, x_label(x), "middle")
    decade = low
    while decade <= high * 1.001:
        for step in (1, 2, 5) if high / low <= 1000 else (1,):
            if decade * step <= high * 1.001:
                canvas.line(left, at_y(decade * step), right, at_y(decade * step))
                canvas.text(left - 8, at_y(decade * step) + 4, short(decade * step), "end")
        decade *= 10
    canvas.text(0, top - 14, f"{unit}, logarithmic")
    canvas.text((left + right) / 2, bottom + 40, f"{x_title}, logarithmic", "middle")
    ends = spread_apart([at_y(points[max(points)]) for points in series.values()], 17)
    for colour, ((name, points), end) in enumerate(zip(series.items(), ends)):
        colour %= 10
        places = [(at_x(x), at_y(points[x])) for x in sorted(points)]
        canvas.parts.append(f'<polyline class="line" style="stroke:var(--c{colour})" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in places)}"/>')
        for (x, y), length in zip(places, sorted(points)):
            canvas.parts.append(f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="4" style="fill:var(--c{colour})">'
                                f"<title>{escape(name)}, {x_word(length)}: {short(points[length])} {unit}</title></circle>")
        canvas.line(places[-1][0] + 6, places[-1][1], right + 22, end, f'style="stroke:var(--c{colour})" opacity="0.5"')
        canvas.text(right + 27, end + 4, name, "label start", colour)
    return canvas.str()


def bar_chart(bars, description, unit, form, limit=None):
    """bars: [(name, [(part, value, colour), ...])]; parts are stacked. One row a bar, its total behind it."""
    left, right, top, step = 310, 840, 30, 26
    longest = limit or max(sum(value for _, value, _ in parts) for _, parts in bars)
    canvas = Canvas(960, top + step * len(bars) + 60, description)
    legend, x = {part: colour for _, parts in bars for part, _, colour in parts if part}, left
    for part, colour in legend.items():
        canvas.rect(x, 4, 12, 12, colour, part)
        canvas.text(x + 17, 14, part)
        x += 40 + 8 * len(part)
    for i, (name, parts) in enumerate(bars):
        y, x = top + step * i, left
        canvas.text(left - 10, y + 15, name, "end")
        for part, value, colour in parts:
            width = value / longest * (right - left)
            canvas.rect(x, y + 3, width, step - 8, colour, f"{name}{', ' + part if part else ''}: {form(value)}")
            x += width
        canvas.text(x + 7, y + 15, form(sum(value for _, value, _ in parts)), "label start")
    canvas.text(left, top + step * len(bars) + 24, unit)
    return canvas.str()

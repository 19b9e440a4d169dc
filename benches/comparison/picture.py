"""Curves of cost as an SVG, one small chart for each series: no library, no script, readable on light and dark pages."""

import math
import statistics

WIDTH, HEIGHT, COLUMNS = 300, 190, 3
LEFT, RIGHT, TOP, BOTTOM = 44, 14, 34, 30
MINE, UPSTREAM, TEXT, RULE = "#0b6bcb", "#d0621b", "#1f2328", "#d0d7de"


def picture(results):
    """`results`: pairs of a series and, for each of its steps, samples of (keyfence, upstream) in microseconds per command."""
    rows = math.ceil(len(results) / COLUMNS)
    charts = [chart(series, samples, i % COLUMNS * WIDTH, i // COLUMNS * HEIGHT + 24) for i, (series, samples) in enumerate(results)]
    width, height = COLUMNS * WIDTH, rows * HEIGHT + 24
    legend = text(10, 18, "CPU per command in microseconds:", "start") + text(230, 18, "keyfence", "start", MINE) + text(300, 18, "Redis behind it", "start", UPSTREAM)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'font-family="sans-serif" font-size="11">\n<rect width="{width}" height="{height}" fill="white"/>\n{legend}{"".join(charts)}</svg>\n')


def chart(series, samples, left, top):
    steps = [math.log(step.at) for step in series.steps]
    curves = [[statistics.median(column) for column in columns] for columns in zip(*(list(zip(*figures)) for figures in samples))]
    highest = max(max(curve) for curve in curves)
    x0, x1, y0, y1 = left + LEFT, left + WIDTH - RIGHT, top + HEIGHT - BOTTOM, top + TOP

    def place(at, cost):
        return x0 + (at - steps[0]) / (steps[-1] - steps[0]) * (x1 - x0), y0 - cost / highest * (y0 - y1)

    parts = [text(left + LEFT, top + 18, series.title, "start")]
    for cost in (0, highest / 2, highest):
        _, y = place(steps[0], cost)
        parts.append(f'<path d="M{x0} {y:.1f}H{x1}" stroke="{RULE}"/>\n' + text(x0 - 5, y + 4, f"{cost:.3g}", "end"))
    for step, at in zip(series.steps, steps):
        parts.append(text(place(at, 0)[0], y0 + 15, short(step.at), "middle"))
    for curve, colour in zip(curves, (MINE, UPSTREAM)):
        points = [place(at, cost) for at, cost in zip(steps, curve)]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>\n')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>\n' for x, y in points]
    return "".join(parts)


def short(number):
    for factor, letter in ((1_000_000, "M"), (1000, "k")):
        if number >= factor and number % factor == 0:
            return f"{number // factor}{letter}"
    return f"{number:,}"


def text(x, y, words, anchor, colour=TEXT):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{words}</text>\n'

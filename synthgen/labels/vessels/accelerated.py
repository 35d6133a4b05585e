"""The loops of `growth.py` and `raster.py` for numba: same steps, same order, same bits.

Only the four operations, square roots and comparisons are used, which IEEE 754 fixes exactly.
Imported only when numba is installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numba
import numpy as np

if TYPE_CHECKING:
    from synthgen.labels.vessels.growth import Growth
    from synthgen.labels.vessels.raster import Edges, Map
    from synthgen.labels.vessels.tree import Floats, Integers


def grow(
    growth: Growth, attractors: Floats, roots: Floats, parent: Integers, noise: Floats
) -> tuple[Floats, Integers]:
    """Grow as `growth.grow` does."""
    nodes, parents, n = _grow(
        growth.numbers,
        growth.inverse_axes,
        growth.field,
        np.ascontiguousarray(attractors),
        np.ascontiguousarray(roots),
        parent,
        noise,
    )
    return nodes[:n].copy(), parents[:n].copy()


def _grow_loop(numbers, axes, field, at, roots, parent, noise):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202, C901, PLR0912, PLR0915
    step, reach, kill, memory, side_memory, wander = numbers
    cap, dims = noise.shape
    m, count_at = len(roots), len(at)
    nodes, headings = np.zeros((cap, dims)), np.zeros((cap, dims))
    parents, kids = np.full(cap, -1), np.zeros(cap, np.int64)
    pull, pulls = np.zeros((cap, dims)), np.zeros(cap, np.int64)
    near, distance = np.zeros(count_at, np.int64), np.full(count_at, np.inf)
    order = np.arange(count_at)
    vector = np.zeros(3)
    for i in range(m):
        parents[i] = parent[i]
        total = 0.0
        for k in range(dims):
            nodes[i, k] = roots[i, k]
            if parent[i] >= 0:
                vector[k] = roots[i, k] - roots[parent[i], k]
                total += vector[k] * vector[k]
        if parent[i] >= 0:
            kids[parent[i]] += 1
            for k in range(dims):
                headings[i, k] = vector[k] / np.sqrt(total)
    first, last, live = 0, m, count_at
    while True:
        kept, closest, any_pulled = 0, -1, False
        for j in range(live):
            a = order[j]
            for i in range(first, last):
                total = 0.0
                for k in range(dims):
                    apart = nodes[i, k] - at[a, k]
                    total += apart * apart
                if total < distance[a]:
                    distance[a], near[a] = total, i
            if distance[a] > kill:
                order[kept] = a
                kept += 1
                any_pulled = any_pulled or distance[a] <= reach
                if closest < 0 or distance[a] < distance[closest]:
                    closest = a
        live = kept
        if live == 0 or last == cap:
            break
        pull[:last], pulls[:last] = 0.0, 0
        for j in range(live):
            a = order[j]
            if distance[a] <= reach if any_pulled else a == closest:
                i = near[a]
                pulls[i] += 1
                length = np.sqrt(distance[a])
                for k in range(dims):
                    pull[i, k] += (at[a, k] - nodes[i, k]) / length
        first = last
        for i in range(first):
            if pulls[i] == 0 or kids[i] >= 2 or last == cap:
                continue
            for k in range(dims):
                own = memory if kids[i] == 0 else side_memory
                vector[k] = pull[i, k] / pulls[i] + own * headings[i, k]
            if kids[i] == 0 and len(field):
                x, y = nodes[i, 0] - field[0], nodes[i, 1] - field[1]
                away = np.sqrt(x * x + y * y) + 1e-9
                x, y = x / away, y / away
                cosine = x * field[2] + y * field[3]
                side = -1.0 if x * field[3] - y * field[2] >= 0 else 1.0
                off = (away - field[4]) / field[5]
                weight = side * (field[6] * (1 + cosine) / (1 + off * off))
                vector[0] += -y * weight
                vector[1] += x * weight
            total = 0.0
            for k in range(dims):
                vector[k] += wander * noise[last, k]
                total += vector[k] * vector[k]
            length = np.sqrt(total)
            total = 0.0
            for k in range(dims):
                headings[last, k] = vector[k] / length
                nodes[last, k] = nodes[i, k] + step * headings[last, k]
                if len(axes):
                    scaled = nodes[last, k] * axes[k]
                    total += scaled * scaled
            if len(axes):
                length = np.sqrt(total)
                for k in range(dims):
                    nodes[last, k] /= length
            parents[last] = i
            kids[i] += 1
            last += 1
        if last == first:
            break
    return nodes, parents, last


_grow = numba.njit(cache=True)(_grow_loop)


def draw(edges: Edges, coverage: Map, path: Map, hidden: Map, vein: Map) -> None:
    """Draw as `raster.draw` does."""
    _draw(
        edges.start,
        edges.end,
        edges.branch,
        edges.layer,
        edges.box,
        edges.field,
        (coverage, path, vein, hidden),
    )


def _draw_loop(start, end, branch, layer, box, field, maps):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202, C901, PLR0915
    coverage, path, vein, hidden = maps
    width = coverage.shape[1]
    newest = np.zeros(coverage.size, np.int32)  # 1 + entry of each pixel that was made last
    links = np.zeros((2048, 3), np.int32)  # of each entry: pixel, 1 + entry before, branch
    spans = np.zeros((2048, 2))  # of each entry: half chord, depth
    used = 0
    for e in range(len(start)):
        ax, ay, az, ar = start[e, 0], start[e, 1], start[e, 2], start[e, 3]
        dx, dy = end[e, 0] - ax, end[e, 1] - ay
        dz, dr = end[e, 2] - az, end[e, 3] - ar
        inverse = 1 / max(dx * dx + dy * dy, 1e-12)
        for row in range(box[e, 0], box[e, 1]):
            x, rx = row - field[0], row - ax
            for column in range(box[e, 2], box[e, 3]):
                y, ry = column - field[1], column - ay
                place = min(max((rx * dx + ry * dy) * inverse, 0.0), 1.0)
                px, py = rx - place * dx, ry - place * dy
                squared = px * px + py * py
                radius = ar + place * dr
                reach = radius + 0.5
                if squared >= reach * reach or x * x + y * y > field[2]:
                    continue
                if layer[e] != 2:
                    share = min(0.5 + radius - np.sqrt(squared), 1.0)
                    share = np.float32(np.rint(share * 255) / 255)
                    coverage[row, column] = max(coverage[row, column], share)
                if squared >= radius * radius:
                    continue
                half = np.sqrt(radius * radius - squared)
                at = row * width + column
                entry = newest[at] - 1
                if entry >= 0 and links[entry, 2] == branch[e]:
                    if half > spans[entry, 0]:
                        spans[entry, 0], spans[entry, 1] = half, az + place * dz
                    continue
                if used == len(links):
                    links, spans = np.vstack((links, links)), np.vstack((spans, spans))
                links[used, 0], links[used, 1], links[used, 2] = at, entry + 1, branch[e]
                spans[used, 0], spans[used, 1] = half, az + place * dz
                used += 1
                newest[at] = used
        if e + 1 == len(start) or layer[e + 1] != layer[e]:
            into = path if layer[e] == 0 else vein if layer[e] == 1 else hidden
            _unite(newest, links[:used], spans, into, path, layer[e] == 1)
            used = 0


def _unite_loop(newest, links, spans, length, path, is_vein):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    width = length.shape[1]
    low, high = np.zeros(16), np.zeros(16)
    for first in range(len(links)):
        at = links[first, 0]
        if newest[at] == 0:
            continue
        count, entry = 0, newest[at] - 1
        newest[at] = 0
        while entry >= 0:
            if count == len(low):
                low, high = np.append(low, low), np.append(high, high)
            # Entries come newest first; insertion keeps equals in the order of drawing.
            start, end = spans[entry, 1] - spans[entry, 0], spans[entry, 1] + spans[entry, 0]
            k = count
            while k > 0 and low[k - 1] >= start:
                low[k], high[k] = low[k - 1], high[k - 1]
                k -= 1
            low[k], high[k] = start, end
            count += 1
            entry = links[entry, 1] - 1
        total, top = 0.0, -np.inf
        for k in range(count):
            total += max(high[k] - max(low[k], top), 0.0)
            top = max(top, high[k])
        length[at // width, at % width] = total
        if is_vein:
            path[at // width, at % width] += length[at // width, at % width]


_unite = numba.njit(cache=True)(_unite_loop)
_draw = numba.njit(cache=True)(_draw_loop)

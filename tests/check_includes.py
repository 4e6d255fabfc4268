#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Checks who includes whom among the modules (a .c file with its header) of protocol/, qcow2/ and
server/: the ranks of qcow2's rooms, and that no modules include each other in a circle but for the
few that docs/architecture.md names. A .c file includes the headers of what it calls, so the graph
of includes is the graph of calls, callbacks left out.

check_includes.py [--graph]   prints every offence and exits 1 if there is any"""
import argparse
import os
import re
import sys

# A file of a room includes headers of its own room and of rooms with a lower rank.
RANKS = {
    "base": 0,
    "format": 1,
    "codec": 1,
    "core": 2,
    "space": 3,
    "mapping": 4,
    "walk": 4,
    "durable": 5,
    "request": 6,
    "offline": 6,
    "": 7,  # qcow2/ itself: the face
}

# Circles that may stay; each stands with its reason in docs/architecture.md, "Circles".
CIRCLES = [
    {"qcow2/core/image_state", "qcow2/core/sync_queue"},
    {"qcow2/walk/walk", "qcow2/walk/walk_l1", "qcow2/walk/walk_l2"},
    {"qcow2/offline/check", "qcow2/offline/check_pass"},
    {"protocol/meta_context", "protocol/options"},
    {"server/connection", "server/connection_end", "server/connection_output", "server/connection_tls"},
]

INCLUDE = re.compile(r'^#include "([^"]+)"', re.MULTILINE)


def module_of(path):
    return path[:-2]


def sources(top):
    for folder in ("protocol", "qcow2", "server"):
        for parent, _, names in os.walk(os.path.join(top, folder)):
            for name in names:
                if name.endswith((".c", ".h")):
                    yield os.path.relpath(os.path.join(parent, name), top)


def include_graph(top):
    graph = {}
    for path in sources(top):
        uses = graph.setdefault(module_of(path), set())
        with open(os.path.join(top, path), encoding="utf-8") as file:
            uses.update(module_of(header) for header in INCLUDE.findall(file.read()))
        uses.discard(module_of(path))
    return graph


def circles(graph):
    """Strongly connected components of more than one module (Tarjan)."""
    order, low, stack, found = {}, {}, [], []

    def visit(module):
        order[module] = low[module] = len(order)
        stack.append(module)
        for other in sorted(graph.get(module, ())):
            if other not in order:
                visit(other)
            if other in stack:
                low[module] = min(low[module], low[other])
        if low[module] == order[module]:
            at = stack.index(module)
            component = set(stack[at:])
            del stack[at:]
            if len(component) > 1:
                found.append(component)

    sys.setrecursionlimit(10000)
    for module in sorted(graph):
        if module not in order:
            visit(module)
    return found


def rank(module):
    room = module.split("/")[1] if module.count("/") > 1 else ""
    return RANKS.get(room)


def offences(graph):
    for module in sorted(graph):
        if not module.startswith("qcow2/"):
            continue
        if rank(module) is None:
            yield f"{module}: its folder has no rank in tests/check_includes.py"
            continue
        for other in sorted(graph[module]):
            if other.startswith("qcow2/") and rank(other) is not None and rank(other) > rank(module):
                yield f"{module} includes {other}, which has a higher rank"
    for circle in circles(graph):
        if not any(circle <= allowed for allowed in CIRCLES):
            yield "these modules include each other in a circle: " + ", ".join(sorted(circle))
    for allowed in CIRCLES:
        if not any(circle == allowed for circle in circles(graph)):
            yield "this circle is open, take it out of the list: " + ", ".join(sorted(allowed))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--graph", action="store_true", help="print every arrow as well")
    options = parser.parse_args()
    top = os.environ.get("top_srcdir", os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
    graph = include_graph(top)
    if options.graph:
        for module in sorted(graph):
            for other in sorted(graph[module]):
                print(f"{module} -> {other}")
    found = list(offences(graph))
    for offence in found:
        print(offence, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

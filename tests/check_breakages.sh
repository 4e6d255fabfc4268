#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Looks whether the breakages that `make breakages` tries still apply to the sources, each once.
set -u
PYTHONDONTWRITEBYTECODE=1 exec "${top_srcdir:-.}/tests/sim/breakages.py" --fit

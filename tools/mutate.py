#!/usr/bin/env python3
"""Tries a random sample of mutants of one module on the tests that are meant to hold it, and prints those that live.

    pip install cosmic-ray
    tools/mutate.py gsync/engine/lease.py -- tests/unit/engine/test_lease.py -k "not contenders"

Mutants are those of cosmic-ray's operators, and two kinds it does not have: a statement that is left out, a
condition of an SQL text that is left out. It works in a copy of the checkout; the checkout stays as it is. A mutant
that runs four times as long as the tests counts as found.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from cosmic_ray.ast import ast_nodes
from cosmic_ray.mutating import get_ast, mutate_code
from cosmic_ray.plugins import get_operator

REPOSITORY = Path(__file__).resolve().parent.parent
OPERATORS = [
    *(f"ReplaceComparisonOperator_{pair}" for pair in (
        "Eq_NotEq", "NotEq_Eq", "Lt_LtE", "Lt_GtE", "LtE_Lt", "LtE_Gt", "Gt_GtE", "Gt_LtE", "GtE_Gt", "GtE_Lt",
        "Is_IsNot", "IsNot_Is")),
    "ReplaceBinaryOperator_Add_Sub", "ReplaceBinaryOperator_Sub_Add", "ReplaceUnaryOperator_Delete_Not", "AddNot",
    "ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ReplaceAndWithOr", "ReplaceOrWithAnd", "ReplaceBreakWithContinue",
    "ReplaceContinueWithBreak", "NumberReplacer", "ZeroIterationForLoop"]
_SQL = re.compile(r" AND (?:\w+\.)?\w+ ?(?:<=|>=|<>|=|<|>|IN) ?(?:\?|:\w+|'\w+'|\{\w+\})")
_LEFT_OUT = ("_log.", "step(", "self._step(", "self.step(")  # logs, and the steps that the kill tests hold


def with_operators(source: str, rng: random.Random, most: int) -> Iterator[str]:
    nodes = list(ast_nodes(get_ast(source)))
    pairs = []
    for name in OPERATORS:
        operator = get_operator("core/" + name)()
        pairs += [(name, n) for n in range(sum(len(list(operator.mutation_positions(node))) for node in nodes))]
    for name, n in rng.sample(pairs, min(most, len(pairs))):
        yield mutate_code(source, get_operator("core/" + name)(), n)


def without_statements(source: str) -> Iterator[str]:
    data = source.encode()
    starts = [0]
    for line in data.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Expr(value=ast.Call()) | ast.AugAssign() | ast.Raise() | ast.Delete():
                pass
            case ast.Return(value=None | ast.Constant()):
                pass
            case _:
                continue
        begin = starts[node.lineno - 1] + node.col_offset
        end = starts[(node.end_lineno or 0) - 1] + (node.end_col_offset or 0)
        if not data[begin:end].decode().startswith(_LEFT_OUT):
            yield (data[:begin] + b"pass" + data[end:]).decode()


def without_conditions(source: str) -> Iterator[str]:
    for found in _SQL.finditer(source):
        yield source[:found.start()] + source[found.end():]


def sample(source: str, count: int, seed: int) -> list[str]:
    """Conditions are a third at most, statements half at most; the rest is by operators. The same for the same seed."""
    rng = random.Random(seed)
    conditions, statements = list(without_conditions(source)), list(without_statements(source))
    rng.shuffle(conditions)
    rng.shuffle(statements)
    chosen = conditions[:count // 3] + statements[:count // 2]
    chosen += with_operators(source, rng, count - len(chosen))
    return [text for text in dict.fromkeys(chosen) if text != source and is_python(text)]


def is_python(text: str) -> bool:
    with suppress(SyntaxError):
        ast.parse(text)
        return True
    return False


def outcome(copy: Path, tests: list[str], limit: float) -> int | None:
    """pytest's exit code; None if it took too long."""
    env = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    run = subprocess.Popen([sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider", *tests],
                           cwd=copy, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                           start_new_session=True)
    try:
        return run.wait(limit)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
        run.wait()


def change(source: str, mutant: str) -> str:
    """The first line that differs."""
    for number, (old, new) in enumerate(zip(source.splitlines(), mutant.splitlines(), strict=False), 1):
        if old != new:
            return f"{number}: {old.strip()}   =>   {new.strip()}"
    return "the end"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("module", help="its path in the checkout")
    parser.add_argument("--count", type=int, default=30, help="mutants; 30 by default")
    parser.add_argument("--seed", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=600.0, help="begin no other mutant after that time")
    parser.add_argument("tests", nargs="+", help="arguments of pytest, after --")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gsync-mutate-") as folder:
        copy = Path(folder, "copy")
        left_out = shutil.ignore_patterns(".venv", ".git", "__pycache__", ".*_cache")
        shutil.copytree(REPOSITORY, copy, ignore=left_out, symlinks=True)
        module = copy / asked.module
        source = module.read_text()
        begun = time.monotonic()
        if outcome(copy, asked.tests, 600.0) != 0:
            sys.exit("mutate.py: the tests fail without a mutant")
        limit = max(6.0, 4 * (time.monotonic() - begun))
        begun, tried, alive = time.monotonic(), 0, 0
        for mutant in sample(source, asked.count, asked.seed):
            if time.monotonic() - begun > asked.seconds:
                break
            module.write_text(mutant)
            tried += 1
            if outcome(copy, asked.tests, limit) == 0:
                alive += 1
                print(f"{asked.module}:{change(source, mutant)}", flush=True)
    print(f"{asked.module}: {tried} mutants, {tried - alive} found, {alive} live")
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main())

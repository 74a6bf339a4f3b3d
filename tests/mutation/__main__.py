"""How many faults the tests catch: `python -m tests.mutation`.

Changes the core modules in one place at a time, by the operators of mutmut and some of
our own, and runs on each such mutant the tests of its module, until one fails. A fixed
random sample of the mutants stands for all of them, which would take days.

Results are written to `results.csv` as they come, so that a run that was stopped goes
on where it was; delete the file to begin anew. `survivors.md` is made from it, with
the reasons why a survivor does not matter, which are written into the last column by
hand: they begin with a word for their kind, and a colon.

Only mutmut's operators are used. Its runner forks processes that have run JAX, whose
threads do not survive that; this one forks a process that has imported JAX alone.
"""

import argparse
import ast
import collections
import csv
import difflib
import importlib
import itertools
import json
import os
import pathlib
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import libcst as cst
import libcst.matchers as m
import pytest
from mutmut.mutation import mutators

ROOT = pathlib.Path(__file__).parents[2]
# Programs that a mutation does not change are not compiled again.
os.environ |= {
    "JAX_COMPILATION_CACHE_DIR": f"{tempfile.gettempdir()}/smoothout-programs",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}
for module in ("flax.nnx", "flax.linen", "optax", "scipy.stats", "scipy.optimize"):
    importlib.import_module(module)

RESULTS = pathlib.Path(__file__).with_name("results.csv")
PAGE = pathlib.Path(__file__).with_name("survivors.md")

# The files that test each module: the quick and broad first.
TESTS = {
    "noise": ["noise", "masks", "properties", "sharding", "filters"],
    "masks": ["masks", "trees", "properties"],
    "_sharding": ["noise", "sharding"],
    "_resolution": ["resolution"],
    "_random": ["random", "noise", "sharding"],
    "_copies": ["gradients", "gradient_options", "sharding"],
    "_options": ["gradient_options", "gradients", "sharding"],
    "gradients": ["gradients", "gradient_options", "transforms", "rise"],
    "schedules": ["schedules"],
    "smoothout": [
        "transforms",
        "states",
        "following",
        "precision",
        "shards",
        "conformance",
    ],
    "_shards": ["shards"],
    "_keys": ["transforms", "states"],
    "loss_rise": ["rise", "rise_theory", "properties"],
    "rivals": ["rivals"],
    "sharpness/eigenvalues": ["sharpness"],
    "sharpness/estimate": ["sharpness"],
    "sharpness/expected": ["sharpness"],
    "sharpness/layers": ["sharpness", "trees"],
    "sharpness/objective": ["sharpness"],
    "sharpness/spectrum": ["sharpness"],
    "sharpness/subspaces": ["sharpness"],
    "sharpness/worst": ["sharpness"],
}
# What asks how much a program costs, which one that was compiled before does not say.
UNCACHED = "tests/test_sharding.py::test_a_step_on_explicit_axes_costs"


def negated_condition(node: cst.If) -> Iterator[cst.If]:
    """`if a` to `if not a`, which mutmut does not try."""
    test = node.test.with_changes(
        lpar=[cst.LeftParen(), *node.test.lpar],
        rpar=[*node.test.rpar, cst.RightParen()],
    )
    yield node.with_changes(test=cst.UnaryOperation(cst.Not(), test))


def dropped_call(node: cst.Expr) -> Iterator[cst.Pass]:
    """A call for its effect to `pass`, which mutmut does not try."""
    if isinstance(node.value, cst.Call):
        yield cst.Pass()


def dropped_argument(node: cst.Call) -> Iterator[cst.Call]:
    """mutmut's, but for setting arguments to None, which nearly always crashes."""
    for new in mutators.operator_arg_removal(node):
        if len(new.args) < len(node.args):
            yield new


OPERATORS = [
    *(
        (kind, operator)
        for kind, operator in mutators.mutation_operators
        if operator is not mutators.operator_arg_removal
    ),
    (cst.If, negated_condition),
    (cst.Expr, dropped_call),
    (cst.Call, dropped_argument),
]
SCOPES = cst.FunctionDef, cst.ClassDef
MESSAGES = m.Raise() | m.Call(func=m.Attribute(attr=m.Name("warn")))
# What only type checkers and star imports read.
DECLARATIONS = m.Assign(
    targets=[m.AssignTarget(m.Name(m.MatchRegex(r"__all__$|_?[A-Z]\w*[a-z]\w*$")))]
)


class Mutant(NamedTuple):
    """A module with one change."""

    module: str
    function: str
    change: str
    operator: str
    source: str

    @property
    def key(self) -> tuple[str, ...]:
        return self.module, self.function, self.change


class Visitor(cst.CSTVisitor):
    """Collects the mutations of a module that can matter.

    Attributes:
        mutations: of each, the function that it is in, the operator, and the nodes
            before and after.
    """

    def __init__(self):
        super().__init__()
        self.mutations, self._messages, self._inside = [], set(), []

    def on_visit(self, node: cst.CSTNode) -> bool:
        if isinstance(node, cst.Annotation) or m.matches(node, DECLARATIONS):
            return False
        if isinstance(node, SCOPES):
            self._inside.append(node.name.value)
        if m.matches(node, MESSAGES):
            self._messages.update(m.findall(node, m.SimpleString()))
        if node not in self._messages:
            self.mutations += [
                (".".join(self._inside), operator, node, new)
                for kind, operator in OPERATORS
                if isinstance(node, kind)
                for new in operator(node)
            ]
        return True

    def on_leave(self, node: cst.CSTNode) -> None:
        if isinstance(node, SCOPES):
            self._inside.pop()


def mutants(module: str) -> Iterator[Mutant]:
    """The mutants of a module in a random order, no two of them the same program."""
    tree, visitor = cst.parse_module(path_of(ROOT, module).read_text()), Visitor()
    tree.visit(visitor)
    random.Random(0).shuffle(visitor.mutations)
    programs = {ast.dump(ast.parse(tree.code))}
    for function, operator, old, new in visitor.mutations:
        source = tree.deep_replace(old, new).code
        try:
            program = ast.dump(ast.parse(source))
        except SyntaxError:
            continue
        if program not in programs:
            programs.add(program)
            name = operator.__name__.removeprefix("operator_")
            yield Mutant(module, function, change(tree.code, source), name, source)


def change(source: str, mutated: str) -> str:
    """What changes in a source, in short."""
    before, after = source.splitlines(), mutated.splitlines()
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    spans = [span for span in matcher.get_opcodes() if span[0] != "equal"]
    (_, *first), (_, *last) = spans[0], spans[-1]
    old, new = before[first[0] : last[1]], after[first[2] : last[3]]
    return " → ".join(" ".join(" ".join(lines).split()) for lines in (old, new)).strip()


def path_of(root: pathlib.Path, module: str) -> pathlib.Path:
    return root / "smoothout_jax" / f"{module}.py"


class Job(NamedTuple):
    """Files of tests to run, with a mutant or as the package is."""

    files: tuple[str, ...]
    mutant: Mutant | None = None


class Plugin:
    """Has pytest run the quickest tests of a file first; notes what fails.

    Args:
        seconds: how long each test takes, by name.
    """

    def __init__(self, seconds: dict[str, float]):
        self.seconds, self.failed = collections.Counter(seconds), []

    def pytest_collection_modifyitems(self, items):
        files = list(dict.fromkeys(item.path for item in items))
        items.sort(key=lambda it: (files.index(it.path), self.seconds[it.nodeid]))

    def pytest_runtest_logreport(self, report):
        self.seconds[report.nodeid] += report.duration
        self.pytest_collectreport(report)

    def pytest_collectreport(self, report):
        if report.failed:
            self.failed.append(report.nodeid)


class Outcome(NamedTuple):
    """What came of a job: pytest's exit code, what failed first, and the seconds."""

    code: int
    failed: str
    seconds: dict[str, float]


def outcomes(
    jobs: Iterable[Job], processes: int, seconds: dict[str, float]
) -> Iterator[tuple[Job, Outcome]]:
    """Runs jobs, each in a process and a copy of the package of its own."""
    jobs, running = iter(jobs), {}
    while True:
        for job in itertools.islice(jobs, processes - len(running)):
            place = pathlib.Path(tempfile.mkdtemp())
            running[start(job, place, seconds)] = job, place
        if not running:
            return
        process, status = os.wait()
        job, place = running.pop(process)
        code, note = os.waitstatus_to_exitcode(status), place / "outcome.json"
        failed, taken = json.loads(note.read_text()) if note.exists() else ([], {})
        if code > 2:
            raise RuntimeError(f"pytest does not run:\n{(place / 'log').read_text()}")
        shutil.rmtree(place)
        yield job, Outcome(code, failed[0] if failed else "", taken)


def start(job: Job, place: pathlib.Path, seconds: dict[str, float]) -> int:
    """Starts a job in a fork of this process, and returns its number.

    JAX and what else takes long to import is imported already.
    """
    for name in ("smoothout_jax", "tests"):
        shutil.copytree(ROOT / name, place / name)
    shutil.copy(ROOT / "pyproject.toml", place)
    if job.mutant:
        path_of(place, job.mutant.module).write_text(job.mutant.source)
    if process := os.fork():
        return process
    files = tuple(f"tests/test_{name}.py" for name in job.files)
    if job.mutant:
        usual = sum(s for test, s in seconds.items() if test.startswith(files))
        signal.alarm(60 + round(5 * usual))
    os.chdir(place)
    sys.path.insert(0, str(place))
    sys.dont_write_bytecode = True
    log = os.open("log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    options = ["-x", "-q", "-n0", "--tb=line", "-pno:cacheprovider", "-mnot slow"]
    # The entry of a process that was stopped, or of the one beside it.
    options += ["-W", "ignore:Error (reading|writing) persistent compilation cache"]
    plugin = Plugin(seconds)
    code = pytest.main([*options, f"--deselect={UNCACHED}", *files], [plugin])
    pathlib.Path("outcome.json").write_text(json.dumps([plugin.failed, plugin.seconds]))
    os._exit(code)


def row_of(mutant: Mutant, outcome: Outcome, reason: str) -> dict[str, str]:
    """A row of the table."""
    if outcome.code == 0:
        status = "survived"
    elif outcome.code == -signal.SIGALRM:
        status = "timeout"
    else:
        status = "caught"
    values = (*mutant.key, mutant.operator, status, outcome.failed, reason)
    return dict(zip(COLUMNS, values, strict=True))


Results = dict[tuple[str, ...], dict[str, str]]
KEY = "module", "function", "change"
COLUMNS = *KEY, "operator", "status", "caught_by", "reason"


def read() -> Results:
    """The results so far, by the keys of their mutants."""
    if not RESULTS.exists():
        return {}
    with RESULTS.open(newline="") as file:
        return {tuple(row[name] for name in KEY): row for row in csv.DictReader(file)}


def write(results: Results) -> None:
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(results[key] for key in sorted(results))


def page(results: Results) -> str:
    """The scores, and the survivors with their reasons."""
    rows = list(results.values())
    left = [row for row in rows if not caught(row)]
    lines = [
        "# What the tests do not catch",
        "",
        "Made by `python -m tests.mutation`: a random sample of the faults that one",
        "change puts into the core modules, and those that no test catches, each with",
        "the reason why it does not matter. An equivalent mutant does what the",
        "original does, so that no test can catch it.",
        "",
        *table("module", rows),
        "",
        *table("operator", rows),
        "",
        "| where | change | why it does not matter |",
        "|---|---|---|",
    ]
    for row in left:
        change = row["change"].replace("|", "\\|")
        where = f"{row['module']} {row['function']}"
        lines.append(f"| {where} | `{change}` | {row['reason']} |")
    return "\n".join(lines) + "\n"


def table(column: str, rows: list[dict[str, str]]) -> Iterator[str]:
    """Scores by the values of a column, and over all."""
    yield f"| {column} | mutants | caught | equivalent | caught % | … of the others |"
    yield "|---|--:|--:|--:|--:|--:|"
    names = sorted({row[column] for row in rows})
    for name in [*names, "all"]:
        group = [row for row in rows if name in (row[column], "all")]
        hit = sum(map(caught, group))
        same = sum(row["reason"].startswith("equivalent:") for row in group)
        others = f"{100 * hit / (len(group) - same):.0f}" if same < len(group) else "–"
        share = f"{100 * hit / len(group):.0f}"
        yield f"| {name} | {len(group)} | {hit} | {same} | {share} | {others} |"


def caught(row: dict[str, str]) -> bool:
    """Whether a test failed, or a loop that a mutant made endless ran out of time."""
    return row["status"] == "caught" or row["reason"].startswith("endless:")


def main() -> None:
    """Tests the mutants that have no result yet, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", help="all by default", metavar="module")
    parser.add_argument("--sample", type=int, default=20, help="mutants per module")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--retry", action="store_true", help="test survivors again")
    settings = parser.parse_args()
    results, processes = read(), settings.processes

    def is_open(mutant):
        row = results.get(mutant.key)
        return row is None or (settings.retry and row["status"] != "caught")

    samples = [
        filter(is_open, itertools.islice(mutants(module), settings.sample))
        for module in settings.modules or TESTS
    ]
    # One of each module in turn, so that a run that is stopped has tried them all.
    waiting = list(filter(None, itertools.chain(*itertools.zip_longest(*samples))))
    files = dict.fromkeys(file for mutant in waiting for file in TESTS[mutant.module])
    seconds = {}
    for job, outcome in outcomes((Job((file,)) for file in files), processes, {}):
        if outcome.code:
            raise SystemExit(f"{outcome.failed} fails unmutated")
        seconds |= outcome.seconds
        print(*job.files, "compiled", flush=True)
    jobs = (Job(tuple(TESTS[mutant.module]), mutant) for mutant in waiting)
    for job, outcome in outcomes(jobs, processes, seconds):
        key = job.mutant.key
        reason = results.get(key, {}).get("reason", "")
        results[key] = row_of(job.mutant, outcome, reason)
        write(results)
        print(*results[key].values(), flush=True)
    PAGE.write_text(page(results))


if __name__ == "__main__":
    main()

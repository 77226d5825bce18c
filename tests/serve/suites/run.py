"""Outside suites against ``axk1 serve`` over scripted replies: `make server-suites`.

    python tests/serve/suites/run.py SCHEMATHESIS_ENVIRONMENT CLIENTS_ENVIRONMENT LM_EVAL_ENVIRONMENT

The second has langchain-tests and openresponses-types, and in its folder ``node`` the npm packages. The schemas and
lm-eval ask servers of their own, on the nano. AXK1_OPENAPI names openapi.json of github.com/openai/openai-openapi;
without it that suite is left out, and said so.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
CASES = 20_000
"""Of schemathesis at least: seeds are taken until there are so many."""


def main() -> None:
    """Runs all suites; ends with 1 where one failed."""
    schemathesis, clients, lm_eval = (Path(each).resolve() for each in sys.argv[1:4])
    command = [sys.executable, "-m", "axk1", "serve", f"scripted:{HERE / 'replies.json'}", "--port", "0"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert server.stdout is not None
        told = {"AXK1_URL": server.stdout.readline().split()[-1], "AXK1_LM_EVAL": str(lm_eval / "bin" / "lm_eval")}
        failed = [name for name, suite in suites(clients).items() if not run(name, suite, clients, told)[0]]
        failed += explore(schemathesis, clients, told)
    finally:
        server.terminate()
        server.wait()
    if "AXK1_OPENAPI" not in os.environ:
        sys.stdout.write("OpenAI's schemas were left out: AXK1_OPENAPI names no openapi.json.\n")
    sys.stdout.write(f"Failed: {', '.join(failed)}\n" if failed else "All outside suites passed.\n")
    sys.exit(bool(failed))


def suites(clients: Path) -> dict[str, list[str]]:
    """Commands by their names."""
    test = ["-m", "pytest", "-q", "-s", "--noconftest", "-p", "no:cacheprovider"]
    langchain = ["--asyncio-mode=auto", "-o", "asyncio_default_test_loop_scope=session"]
    python = str(clients / "bin" / "python")
    found = {
        "langchain-tests": [python, *test, *langchain, str(HERE / "langchain_suite.py")],
        "openresponses-types": [python, *test, str(HERE / "openresponses_suite.py")],
        "openai of npm": ["node", str(HERE / "openai_client.mjs")],
        "openai and anthropic of PyPI": [sys.executable, "-m", "pytest", str(HERE.parent / "test_serve_clients.py")],
        "schemas": [sys.executable, "-m", "pytest", "-s", str(HERE.parent / "test_serve_schemas.py")],
        "lm-eval": [sys.executable, *test, str(HERE / "lm_eval_suite.py")],
    }
    if "AXK1_OPENAPI" in os.environ:
        found["OpenAI's schemas"] = [sys.executable, *test, "-p", "no:xdist", str(HERE / "openai_schema_suite.py")]
    return found


def explore(schemathesis: Path, clients: Path, told: dict[str, str]) -> list[str]:
    """Runs schemathesis in all of its phases, then again in those that a seed changes; the names of those that
    failed."""
    ask = [str(schemathesis / "bin" / "schemathesis"), "--config-file", str(HERE / "schemathesis.toml"), "run"]
    ask += [f"{told['AXK1_URL']}/openapi.json", "--continue-on-failure"]
    failed, cases, seed, phases = [], 0, 1, ["-n", "60"]
    while cases < CASES:
        passed, text = run(f"schemathesis {seed}", [*ask, *phases, "--seed", str(seed)], clients, told)
        failed += [] if passed else [f"schemathesis {seed}"]
        made = sum(int(count) for count in re.findall(r"([0-9]+) generated", text))
        if not made:
            return [*failed, "schemathesis, which told no number of cases"]
        cases, seed, phases = cases + made, seed + 1, ["-n", "300", "--phases", "fuzzing,stateful"]
        sys.stdout.write(f"{cases} cases of schemathesis so far\n")
        sys.stdout.flush()
    return failed


def run(name: str, command: list[str], clients: Path, told: dict[str, str]) -> tuple[bool, str]:
    """Whether a suite passed, and what it wrote."""
    sys.stdout.write(f"== {name}\n")
    sys.stdout.flush()
    environment = {**os.environ, "AXK1_SCHEMAS_EVERY": "1", **told}
    done = subprocess.run(
        command, cwd=clients / "node", env=environment, check=False, text=True, stdout=subprocess.PIPE
    )
    sys.stdout.write(done.stdout)
    return done.returncode == 0, done.stdout


if __name__ == "__main__":
    main()

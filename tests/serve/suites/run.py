"""Outside suites against ``axk1 serve`` over scripted replies: `make server-suites`.

    python tests/serve/suites/run.py SCHEMATHESIS_ENVIRONMENT CLIENTS_ENVIRONMENT

The second has langchain-tests and openresponses-types, and in its folder ``node`` the npm packages. AXK1_OPENAPI names
openapi.json of github.com/openai/openai-openapi; without it that suite is left out, and said so.
"""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
RUNS = 9
"""Of schemathesis, each with a seed of its own: together more than 20,000 cases."""


def main() -> None:
    """Runs all suites; ends with 1 where one failed."""
    schemathesis, clients = (Path(each).resolve() for each in sys.argv[1:3])
    command = [sys.executable, "-m", "axk1", "serve", f"scripted:{HERE / 'replies.json'}", "--port", "0"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert server.stdout is not None
        url = server.stdout.readline().split()[-1]
        failed = [name for name, suite in suites(url, schemathesis, clients) if not run(name, suite, url, clients)]
    finally:
        server.terminate()
        server.wait()
    if "AXK1_OPENAPI" not in os.environ:
        sys.stdout.write("OpenAI's schemas were left out: AXK1_OPENAPI names no openapi.json.\n")
    sys.stdout.write(f"Failed: {', '.join(failed)}\n" if failed else "All outside suites passed.\n")
    sys.exit(bool(failed))


def suites(url: str, schemathesis: Path, clients: Path) -> list[tuple[str, list[str]]]:
    """Names and commands."""
    ask = [str(schemathesis / "bin" / "schemathesis"), "--config-file", str(HERE / "schemathesis.toml"), "run"]
    ask += [f"{url}/openapi.json", "-n", "60", "--continue-on-failure"]
    test = ["-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider"]
    langchain = ["--asyncio-mode=auto", "-o", "asyncio_default_test_loop_scope=session"]
    python = str(clients / "bin" / "python")
    found = [
        ("langchain-tests", [python, *test, *langchain, str(HERE / "langchain_suite.py")]),
        ("openresponses-types", [python, *test, str(HERE / "openresponses_suite.py")]),
        ("openai of npm", ["node", str(HERE / "openai_client.mjs")]),
    ]
    if "AXK1_OPENAPI" in os.environ:
        schemas = [sys.executable, *test, "-p", "no:xdist", str(HERE / "openai_schema_suite.py")]
        found.append(("OpenAI's schemas", schemas))
    return found + [(f"schemathesis {seed}", [*ask, "--seed", str(seed)]) for seed in range(1, RUNS + 1)]


def run(name: str, command: list[str], url: str, clients: Path) -> bool:
    """Whether a suite passed."""
    sys.stdout.write(f"== {name}\n")
    sys.stdout.flush()
    done = subprocess.run(command, cwd=clients / "node", env={**os.environ, "AXK1_URL": url}, check=False)
    return done.returncode == 0


if __name__ == "__main__":
    main()

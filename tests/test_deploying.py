"""The files of ``deploy/``: what they call exists, with these flags, ports, paths and probes.

No container engine is needed; ``deploy/imitate.sh`` runs the commands of the image, as root.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from vitrieve import __version__
from vitrieve.cli.arguments import parse_arguments
from vitrieve.cli.main import COMMANDS

yaml = pytest.importorskip("yaml", reason="needs pyyaml")

CHECKOUT = Path(__file__).resolve().parents[1]
DEPLOY = CHECKOUT / "deploy"
UNIT = DEPLOY / "vitrieve.service"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
MANIFESTS = list(yaml.safe_load_all((DEPLOY / "kubernetes" / "vitrieve.yaml").read_text(encoding="utf-8")))
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PORT = 8000


def parse(words: list[str]) -> Any:
    """Read the words after ``vitrieve`` as the command line does, and return its settings."""
    command = COMMANDS[words[0]]
    return parse_arguments(getattr(import_module(command.module), command.arguments), words[1:], words[0])


def read_instructions(path: Path) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile, each with what follows it; continued lines are joined."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def get_last(instructions: list[tuple[str, str]], name: str) -> str:
    return [rest for found, rest in instructions if found == name][-1]


def fill_in(text: str) -> str:
    """Replace a variable of compose by its default, or by a value where it has none."""
    return re.sub(r"\$\{\w+:(?:-([^}]*)|\?[^}]*)\}", lambda found: found[1] or "x" * 16, text)


def list_pods() -> dict[str, dict[str, Any]]:
    pods = {}
    for manifest in MANIFESTS:
        spec = manifest["spec"]
        spec = spec["jobTemplate"]["spec"] if manifest["kind"] == "CronJob" else spec
        if "template" in spec:
            pods[manifest["kind"]] = spec["template"]["spec"]
    return pods


def check_is_path_of_the_service(path: str, *, needs_token: bool = False) -> None:
    pytest.importorskip("fastapi", reason="needs vitrieve[serve]")
    from vitrieve.serve.api import router
    from vitrieve.serve.middleware import OPEN_PATHS

    assert path in {getattr(route, "path", None) for route in router.routes}
    assert needs_token or path in OPEN_PATHS


# The images


def test_image_of_the_service_calls_it_as_it_is() -> None:
    instructions = read_instructions(DEPLOY / "Dockerfile")
    words = json.loads(get_last(instructions, "ENTRYPOINT")) + json.loads(get_last(instructions, "CMD"))
    assert words[0] == "vitrieve"
    assert words[0] in PROJECT["scripts"]
    settings = parse(words[1:])
    assert (settings.host, settings.port, str(settings.index)) == ("0.0.0.0", PORT, "/index")
    assert get_last(instructions, "EXPOSE") == str(PORT)
    health = get_last(instructions, "HEALTHCHECK")
    (path,) = re.findall(rf"http://127\.0\.0\.1:{PORT}(/[a-z]+)'", health)
    check_is_path_of_the_service(path)
    compile(json.loads(health[health.index("CMD [") + 4 :])[2], "HEALTHCHECK", "exec")


@pytest.mark.parametrize("name", ["Dockerfile", "train.Dockerfile"])
def test_images_are_not_root_and_install_what_is_there(name: str) -> None:
    instructions = read_instructions(DEPLOY / name)
    user, _, group = get_last(instructions, "USER").partition(":")
    assert int(user) > 0
    assert int(group) > 0
    assert user in " ".join(rest for found, rest in instructions if found == "RUN")
    arguments = dict(rest.split("=", 1) for found, rest in instructions if found == "ARG")
    text = " ".join(rest for found, rest in instructions if found == "RUN")
    extras = {one for found in re.findall(r"\.\[([^]]+)\]", text) for one in found.split(",")}
    extras = {one for found in extras for one in (arguments["EXTRAS"].split(",") if "EXTRAS" in found else [found])}
    assert extras
    assert extras <= set(PROJECT["optional-dependencies"])
    packages = [package for extra in extras for package in PROJECT["optional-dependencies"][extra]]
    assert any(package.startswith("torch") for package in packages) == (name == "train.Dockerfile")
    stages = [rest.split()[-1] for found, rest in instructions if found == "FROM"]
    is_copied = [line[1:] for line in (CHECKOUT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for found, rest in instructions:
        if found == "COPY" and not rest.startswith("--from"):
            for source in rest.split()[:-1]:
                assert (CHECKOUT / source).exists()
                assert source in is_copied
    assert name == "train.Dockerfile" or stages[0] == "build", "what builds is not what runs"
    assert arguments["PYTHON"] in ("3.11", "3.12", "3.13", "3.14")


def test_image_of_training_has_the_torch_of_the_tests() -> None:
    instructions = read_instructions(DEPLOY / "train.Dockerfile")
    arguments = dict(rest.split("=", 1) for found, rest in instructions if found == "ARG")
    makefile = (CHECKOUT / "Makefile").read_text(encoding="utf-8")
    assert f"torch=={arguments['TORCH']} torchvision=={arguments['TORCHVISION']}" in makefile
    (command,) = json.loads(get_last(instructions, "CMD"))
    parse([command])


# Compose


def test_compose_calls_commands_as_they_are_and_joins_what_belongs_together() -> None:
    services = COMPOSE["services"]
    (index, serve) = (services[name] for name in ("index", "service"))
    built, served = (parse([fill_in(word) for word in one["command"]]) for one in (index, serve))
    assert built.out == served.index
    assert built.store == "pgvector"
    assert built.uri.startswith("postgresql://")
    database = services["database"]["environment"]
    assert built.uri == f"postgresql://{database['POSTGRES_USER']}@database/{database['POSTGRES_DB']}"
    assert (served.host, served.port) == ("0.0.0.0", PORT)
    assert serve["ports"] == [f"127.0.0.1:{PORT}:{PORT}"]
    assert "VITRIEVE_TOKEN" in serve["environment"]
    for one in (index, serve):
        assert one["read_only"]
        assert one["cap_drop"] == ["ALL"]
        assert one["depends_on"]["database"]["condition"] == "service_healthy"
        assert (DEPLOY / one["build"]["context"] / one["build"]["dockerfile"]).is_file()
        places = {fill_in(volume).split(":")[1] for volume in one["volumes"]}
        paths = [word.split("=")[-1] for word in one["command"] if "=/" in word]
        assert paths
        assert all(any(Path(path).is_relative_to(place) for place in places) for path in paths)
    assert "healthcheck" in services["database"]


# Kubernetes


def test_kubernetes_calls_commands_as_they_are() -> None:
    pods = list_pods()
    served, synced = (parse(pods[kind]["containers"][0]["args"]) for kind in ("Deployment", "CronJob"))
    assert served.index == synced.index
    assert served.encoder == synced.encoder
    assert (served.host, served.port) == ("0.0.0.0", PORT)


def test_kubernetes_probes_ask_paths_of_the_service_at_its_port() -> None:
    (container,) = list_pods()["Deployment"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": PORT}
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[kind]["httpGet"]["port"] in ports
        check_is_path_of_the_service(container[kind]["httpGet"]["path"])
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz", "what reads the index would restart it"
    (service,) = [manifest["spec"] for manifest in MANIFESTS if manifest["kind"] == "Service"]
    assert service["ports"][0]["targetPort"] in ports
    (deployment,) = [manifest["spec"] for manifest in MANIFESTS if manifest["kind"] == "Deployment"]
    assert service["selector"] == deployment["selector"]["matchLabels"]
    assert deployment["selector"]["matchLabels"] == deployment["template"]["metadata"]["labels"]


@pytest.mark.parametrize("kind", ["Deployment", "CronJob"])
def test_kubernetes_pods_are_bounded_and_mount_what_they_read(kind: str) -> None:
    pod = list_pods()[kind]
    (container,) = pod["containers"]
    user = get_last(read_instructions(DEPLOY / "Dockerfile"), "USER")
    assert user == f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}"
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert not container["securityContext"]["allowPrivilegeEscalation"]
    assert set(container["resources"]["limits"]) == {"cpu", "memory"}
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    places = [mount["mountPath"] for mount in container["volumeMounts"]]
    paths = [word for word in container["args"] if word.startswith("/")]
    assert paths
    assert all(any(Path(path).is_relative_to(place) for place in places) for path in paths)
    assert container["image"] == f"vitrieve:{__version__}"


# systemd


def test_unit_calls_the_service_as_it_is() -> None:
    settings = dict(line.split("=", 1) for line in UNIT.read_text(encoding="utf-8").splitlines() if "=" in line)
    words = shlex.split(settings["ExecStart"])
    served = parse(words[1:])
    assert Path(words[0]).name == "vitrieve"
    assert served.host == "127.0.0.1"
    assert "HUP" not in settings["ExecReload"] or served.num_processes > 1, "SIGHUP ends a service of one process"


def test_unit_is_one_for_systemd(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text(encoding="utf-8").replace("/opt/vitrieve/bin/vitrieve", shutil.which("true") or ""))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


# What imitates the image


def test_what_imitates_the_image_finds_its_instructions() -> None:
    """The script reads the Dockerfile with sed; it sees the RUN lines that are there, each a line that sh can read."""
    script = r"""sed -e ':join' -e '/\\$/{N;s/\\\n//;b join' -e '}' deploy/Dockerfile | sed -n 's/^RUN //p'"""
    assert script in (DEPLOY / "imitate.sh").read_text(encoding="utf-8")
    done = subprocess.run(["bash", "-c", script], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    expected = [rest for name, rest in read_instructions(DEPLOY / "Dockerfile") if name == "RUN"]
    assert [line.split() for line in done.stdout.splitlines()] == [line.split() for line in expected]
    for line in expected:
        subprocess.run(["sh", "-n", "-c", line], check=True)
    subprocess.run(["bash", "-n", DEPLOY / "imitate.sh"], check=True)


def test_example_of_several_collections_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fastapi", reason="needs vitrieve[serve]")
    from vitrieve.serve.collections import read_collections

    file = tmp_path / "collections.toml"
    shutil.copyfile(DEPLOY / file.name, file)
    (tmp_path / "secrets").mkdir()
    for role in ("read", "write"):
        (tmp_path / "secrets" / f"products-{role}").write_text(f"a-token-to-{role}-products\n")
    monkeypatch.setenv("ARCHIVE_READ_TOKEN", "a-token-to-read-the-archive")
    archive, products = read_collections(file)
    assert (archive.name, products.name) == ("archive", "products")
    assert (archive.tokens.read, archive.tokens.write) == (("a-token-to-read-the-archive",), ())
    assert (products.tokens.read, products.tokens.write) == (
        ("a-token-to-read-products",),
        ("a-token-to-write-products",),
    )
    assert products.index == tmp_path / "products-index"
    (command,) = re.findall(r"vitrieve (serve .*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    settings = parse(shlex.split(command))
    assert settings.collections is not None
    assert (CHECKOUT / settings.collections).is_file()

"""The workflows of continuous integration and release: what they name exists here, and only one job may publish."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from vitrieve import __version__
from vitrieve.cli.main import COMMANDS

yaml = pytest.importorskip("yaml", reason="needs pyyaml")

CHECKOUT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WORKFLOWS = {
    path.stem: yaml.safe_load(path.read_text(encoding="utf-8"))
    for path in (CHECKOUT / ".github" / "workflows").glob("*.yml")
}
RELEASE = WORKFLOWS["release"]["jobs"]
JOBS = {f"{workflow}: {name}": job for workflow, text in WORKFLOWS.items() for name, job in text["jobs"].items()}


def list_scripts(job: dict[str, Any]) -> str:
    return "\n".join(step["run"] for step in job["steps"] if "run" in step)


@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_jobs_are_bounded_and_call_what_is_there(job: dict[str, Any]) -> None:
    assert job["timeout-minutes"] <= 40
    script = list_scripts(job)
    for name in re.findall(r"(?m)^\s*(?:- run: )?vitrieve ([a-z]+(?: (?:list|check))?)\b", script):
        assert name in COMMANDS
    for target in re.findall(r"make ([a-z-]+)", script):
        assert re.search(rf"(?m)^{target}:", (CHECKOUT / "Makefile").read_text(encoding="utf-8"))
    for path in re.findall(r"(?<![\w/.])(?:tests|\.ci)/[\w/]+(?:\.py)?", script):
        assert (CHECKOUT / path).exists()
    for extras in re.findall(r"\[([a-z,0-9]+)\]", script):
        assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
    subprocess.run(["bash", "-n", "-c", re.sub(r"\$\{\{.*?\}\}", "x", script)], check=True)
    for step in job["steps"]:
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


def test_actionlint_finds_nothing() -> None:
    """It also knows which actions the runners have retired; ``make lint-deploy`` installs it."""
    program = shutil.which(
        "actionlint", path=os.pathsep.join([str(CHECKOUT / ".venv-lint" / "bin"), os.environ["PATH"]])
    )
    if program is None:
        pytest.skip("needs actionlint (make lint-deploy)")
    files = sorted((CHECKOUT / ".github" / "workflows").glob("*.yml"))
    done = subprocess.run([program, "-shellcheck=", *files], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_every_python_that_is_allowed_is_tested() -> None:
    versions = WORKFLOWS["ci"]["jobs"]["check-and-test"]["strategy"]["matrix"]["python-version"]
    assert versions == ["3.11", "3.12", "3.13", "3.14"]
    assert PROJECT["requires-python"] == f">={versions[0]}"
    systems = WORKFLOWS["ci"]["jobs"]["platforms"]["strategy"]["matrix"]["os"]
    assert {name.split("-")[0] for name in systems} == {"ubuntu", "macos", "windows"}


def test_release_is_tried_with_every_extra_before_it_is_published() -> None:
    extras = RELEASE["install"]["strategy"]["matrix"]["extra"]
    assert {"core", "serve", "fast", "train"} == set(extras)
    assert set(extras) - {"core"} <= set(PROJECT["optional-dependencies"])
    assert set(RELEASE["publish"]["needs"]) == set(RELEASE) - {"publish"}
    assert "ref_type == 'tag'" in RELEASE["publish"]["if"]


def test_only_the_job_that_publishes_has_rights() -> None:
    assert WORKFLOWS["release"]["permissions"] == {}
    assert WORKFLOWS["ci"]["permissions"] == {"contents": "read"}
    for name, job in RELEASE.items():
        has_rights = any(right == "write" for right in (job["permissions"] or {}).values())
        assert has_rights == (name == "publish")
    assert "pull_request_target" not in str(WORKFLOWS)


def find_step(words: str) -> dict[str, Any]:
    (step,) = [step for step in RELEASE["build"]["steps"] if words in step.get("name", "")]
    assert step["if"] == "github.ref_type == 'tag'"
    return step


@pytest.mark.parametrize(
    ("kind", "verified", "is_right"), [("tag", "true", True), ("tag", "false", False), ("commit", "", False)]
)
def test_release_refuses_a_tag_that_is_not_signed(kind: str, verified: str, is_right: bool, tmp_path: Path) -> None:
    """A program in the place of GitHub's answers by what its interface documents; jq, if it is here, reads them."""
    place = "repos/owner/name/git/tags/abc"
    answers = {
        "repos/owner/name/git/ref/tags/v1": {"object": {"type": kind, "url": place}},
        place: {"verification": {"verified": verified == "true"}},
    }
    gh = tmp_path / "gh"
    gh.write_text(
        f"#!{sys.executable}\nimport subprocess, sys\nanswers = { ({k: json.dumps(v) for k, v in answers.items()})!r}\n"
        "if sys.argv[2] not in answers: sys.exit('unknown: ' + sys.argv[2])\n"
        "done = subprocess.run(['jq', '-r', sys.argv[4]], input=answers[sys.argv[2]], text=True)\n"
        "sys.exit(done.returncode)\n"
    )
    gh.chmod(0o755)
    if shutil.which("jq") is None:
        pytest.skip("needs jq")
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "GITHUB_REPOSITORY": "owner/name",
        "GITHUB_REF_NAME": "v1",
    }
    script = find_step("tag is signed")["run"]
    done = subprocess.run(["bash", "-eo", "pipefail", "-c", script], env=environment, check=False)
    assert (done.returncode == 0) == is_right


@pytest.mark.parametrize(
    ("tag", "changes", "is_right"),
    [
        (f"v{__version__}", f"# Changes\n\n## {__version__}\n", True),
        (f"v{__version__}", "# Changes\n\n## Unreleased\n", False),
        (f"v{__version__}0", f"# Changes\n\n## {__version__}\n", False),
        (__version__, f"# Changes\n\n## {__version__}\n", False),
    ],
)
def test_release_refuses_a_tag_that_is_not_the_version(tag: str, changes: str, is_right: bool, tmp_path: Path) -> None:
    step = find_step("tag is the version")
    package = tmp_path / "src" / "vitrieve"
    package.mkdir(parents=True)
    (package / "__init__.py").write_bytes((CHECKOUT / "src" / "vitrieve" / "__init__.py").read_bytes())
    (tmp_path / "CHANGELOG.md").write_text(changes, encoding="utf-8")
    environment = {**os.environ, "GITHUB_REF_NAME": tag}
    done = subprocess.run(["bash", "-eo", "pipefail", "-c", step["run"]], cwd=tmp_path, env=environment, check=False)
    assert (done.returncode == 0) == is_right

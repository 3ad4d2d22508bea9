from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

from vitrieve import doctor
from vitrieve.cli.main import main


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITRIEVE_CACHE", str(tmp_path / "cache"))


def test_doctor_prints_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["doctor", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert status == (0 if report["is_fine"] else 1)
    assert report["versions"]["numpy"]
    assert report["cpu"]["num_threads"] >= 1
    assert set(report["cpu"]) >= {"avx512", "bf16", "amx"}
    assert report["weights"]["dinov2-vits14"] is False
    assert report["data"]["emoji"] is None


def test_doctor_text_has_the_same_parts(capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor"])
    text = capsys.readouterr().out
    for part in ("torch pair matches", "dinov2-vits14", "grocery", "bf16", "memory", "cache"):
        assert part in text


@pytest.mark.parametrize(
    ("torch", "torchvision", "expected"),
    [
        ("2.14.1", "0.29.1", True),
        ("2.14.1+cpu", "0.29.1+cpu", True),
        ("2.15.0", "0.29.1", False),
        ("2.14.0", "0.29.1", False),
        (None, "0.29.1", None),
        ("3.0.0", "1.0.0", None),
    ],
)
def test_is_torch_pair(torch: str | None, torchvision: str | None, expected: bool | None) -> None:
    assert doctor.is_torch_pair(torch, torchvision) is expected


def test_doctor_fails_on_a_wrong_pair(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    versions = doctor.read_versions() | {"torch": "2.15.0", "torchvision": "0.29.1"}
    monkeypatch.setattr(doctor, "read_versions", lambda: versions)
    assert main(["doctor"]) == 1
    assert "do not belong together" in capsys.readouterr().out


def test_doctor_is_fine_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = doctor.read_versions() | dict.fromkeys(doctor.TRAIN_PACKAGES)
    monkeypatch.setattr(doctor, "read_versions", lambda: versions)
    assert not any("torch" in problem for problem in doctor.diagnose().problems)


def test_doctor_reports_a_missing_core_package(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = doctor.read_versions() | {"onnxruntime": None}
    monkeypatch.setattr(doctor, "read_versions", lambda: versions)
    assert "missing packages: onnxruntime" in doctor.diagnose().problems[0]


def test_every_dependency_of_the_package_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    project = tomllib.loads(text)["project"]
    extras = [f"{one}; extra == 'some'" for one in project["optional-dependencies"]["train"]]
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: [*project["dependencies"], *extras])
    names = [re.match(r"[\w-]+", one)[0] for one in project["dependencies"]]  # type: ignore[index]
    assert list(doctor.list_required()) == names
    assert {"lancedb", "watchfiles"} < set(names)
    assert set(names) < set(doctor.read_versions())


def test_doctor_reports_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("VITRIEVE_CACHE", str(tmp_path / "file" / "cache"))
    assert any("VITRIEVE_CACHE" in problem for problem in doctor.diagnose().problems)


def test_doctor_reports_little_memory_and_disk() -> None:
    problems = list(
        doctor._find_problems(
            doctor.read_versions(),
            True,
            {"total_bytes": 2**33, "available_bytes": 2**20},
            {"cache": "cache", "is_writable": True, "free_bytes": 2**20},
        )
    )
    assert len(problems) == 2


def test_read_cpu_without_a_proc_file(tmp_path: Path) -> None:
    cpu = doctor.read_cpu(tmp_path / "cpuinfo")
    assert cpu["bf16"] is None
    assert cpu["num_threads"] >= 1


def test_read_cpu_finds_features(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("model name\t: Some CPU\nflags\t\t: fpu avx2 avx512f avx512_bf16\n")
    cpu = doctor.read_cpu(tmp_path / "cpuinfo")
    assert (cpu["model"], cpu["avx512"], cpu["bf16"], cpu["amx"]) == ("Some CPU", True, True, False)


def test_read_memory_without_a_proc_file(tmp_path: Path) -> None:
    assert doctor.read_memory(tmp_path / "meminfo") == {"total_bytes": None, "available_bytes": None}


def test_doctor_finds_grocery_where_the_variable_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "grocery-store").mkdir()
    monkeypatch.setenv("VITRIEVE_DATA", str(tmp_path))
    assert doctor.find_data_here()["grocery"] == str(tmp_path / "grocery-store")

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vitrieve.index.lance_files import CLOUD_CLIENT, postpone


def test_a_postponed_body_runs_once_when_it_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "postponed_toy"
    package.mkdir()
    (package / "__init__.py").write_text("import postponed_toy.heavy\nnumber = 7\nevents = ['body']\n")
    (package / "heavy.py").write_text("")
    (package / "light.py").write_text("value = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    postpone("postponed_toy")
    from postponed_toy.light import value  # type: ignore[import-not-found]

    assert value == 3
    assert "postponed_toy.heavy" not in sys.modules
    import postponed_toy  # type: ignore[import-not-found]

    assert postponed_toy.number == 7
    assert "postponed_toy.heavy" in sys.modules
    postponed_toy.events.append("used")
    postpone("postponed_toy")
    with pytest.raises(AttributeError, match="no attribute 'missing'"):
        _ = postponed_toy.missing
    assert postponed_toy.events == ["body", "used"]


def test_postpone_leaves_what_is_not_installed_or_here_already() -> None:
    postpone("a_package_that_is_not_installed")
    assert "a_package_that_is_not_installed" not in sys.modules
    before = sys.modules["pytest"]
    postpone("pytest")
    assert sys.modules["pytest"] is before


def test_lancedb_is_imported_without_its_cloud_client_which_works_when_asked_for() -> None:
    code = (
        "import sys\n"
        "import vitrieve.index.lance\n"
        f"assert '{CLOUD_CLIENT}.models' in sys.modules\n"
        f"assert '{CLOUD_CLIENT}.api' not in sys.modules, 'the client was imported'\n"
        f"from {CLOUD_CLIENT} import ApiClient, TableApi\n"
        "print(TableApi(ApiClient()).api_client.configuration.host)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("http")

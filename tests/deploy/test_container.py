"""deploy/compose.yaml and deploy/Containerfile: they parse and name files that exist."""

from __future__ import annotations

import json
import re
import tomllib

import yaml

from tests.conftest import ROOT

DEPLOY = ROOT / "deploy"
CONTAINERFILE = (DEPLOY / "Containerfile").read_text()


def instructions(name: str) -> list[str]:
    """What follows each instruction `name`, continued lines joined."""
    joined = CONTAINERFILE.replace("\\\n", " ")
    return [line.split(maxsplit=1)[1] for line in joined.splitlines() if line.startswith(name + " ")]


def test_compose_mounts_and_builds_what_exists() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    assert compose["services"].keys() == {"edge", "prometheus", "grafana"}
    build = compose["services"]["edge"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).resolve() == DEPLOY / "Containerfile"
    for service in compose["services"].values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert (DEPLOY / source).is_dir() if source.startswith(".") else source in compose["volumes"]


def test_compose_gives_the_edge_the_clients_addresses_and_no_privilege() -> None:
    edge = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["edge"]
    assert edge["network_mode"] == "host"
    assert edge["cap_drop"] == ["ALL"]
    assert edge["read_only"] is True


def test_containerfile_copies_what_exists_and_what_the_build_reads() -> None:
    sources = [word for line in instructions("COPY") if "--from" not in line for word in line.split()[:-1]]
    assert [source for source in sources if not (ROOT / source).exists()] == []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {project["readme"], *project["license-files"], "pyproject.toml", "setup.py", "edge"} == set(sources)


def test_containerfile_runs_the_command_without_root() -> None:
    assert json.loads(instructions("ENTRYPOINT")[0]) == ["edge"]
    assert json.loads(instructions("CMD")[-1]) == ["serve"]
    assert instructions("USER") == ["edge"]
    assert instructions("STOPSIGNAL") == ["SIGTERM"]
    (health,) = (line for line in instructions("HEALTHCHECK"))
    program = json.loads(health.split("CMD", 1)[1])[2]
    compile(program, "HEALTHCHECK", "exec")
    assert re.search(r"http://127\.0\.0\.1:9060/healthz", program)

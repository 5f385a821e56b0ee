"""`edge check`, and what every command says about a configuration that cannot be used."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edge.certificates import make_self_signed
from tests.cli.conftest import Command
from tests.conftest import free_port


def test_defaults_are_checked_without_leaving_anything_behind(edge: Command, tmp_path: Path) -> None:
    done = edge("check")
    assert done.returncode == 0
    for line in (
        r"^configuration: defaults$",
        r"^role: +single$",
        r"^domains: +localhost",
        r"^certificate: +edge.crt \(self-signed, made at the first start\)$",
        r"^storage: +sqlite:///edge.db \(made at the first start\)$",
        r"^accounting: +none$",
        r"^hooks: +none$",
        r"^policy: +none$",
        r"^admin: +http://127.0.0.1:9060$",
        r"^0.0.0.0:5060 +udp, tcp, tls, ws, wss +sip, msrp",
        r"^\[::\]:5060 +udp, tcp, tls, ws, wss +sip, msrp",
    ):
        assert re.search(line, done.stdout, re.MULTILINE), line
    assert done.stderr.startswith("edge: warning: defaults: tls.certificate: not set")
    assert list(tmp_path.iterdir()) == []


def test_certificate_and_storage_are_opened(edge: Command, tmp_path: Path) -> None:
    make_self_signed(["edge.example"], tmp_path / "a.crt", tmp_path / "a.key")
    (tmp_path / "edge.toml").write_text("""
        domains = ["example.com"]
        [[listen]]
        bind = "127.0.0.1:5060"
        advertise = "edge.example"
        proxy_protocol = ["127.0.0.0/8"]
        [tls]
        certificate = "a.crt"
        private_key = "a.key"
        trust = "a.crt"
    """)
    assert edge("user", "list", "--config", "edge.toml").returncode == 0  # makes the database
    done = edge("check", "--config", "edge.toml")
    assert (done.returncode, done.stderr) == (0, "")
    assert "a.crt (edge.example; valid until 20" in done.stdout
    assert "sqlite:///edge.db (there)" in done.stdout
    assert "edge.example:5060" in done.stdout
    assert "127.0.0.0/8" in done.stdout


POLICIES = {
    "good": "from edge.policy import Policy\nclass Mine(Policy):\n    async def sip_request(self, request): pass\n",
    "raises": "raise ValueError('half done')\n",
    "syntax": "class Mine(:\n",
    "other": "class Mine: pass\n",
    "arguments": "from edge.policy import Policy\nclass Mine(Policy):\n    def sip_request(self): pass\n",
}


def test_a_policy_is_loaded_and_its_hooks_are_named(edge: Command, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(POLICIES["good"])
    (tmp_path / "edge.toml").write_text("[policy]\nmodule = 'mine:Mine'\n")
    done = edge("check", "--config", "edge.toml")
    assert done.returncode == 0
    assert re.search(r"^policy: +mine:Mine \(sip_request\)$", done.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        ("raises", "ValueError: half done"),
        ("syntax", "SyntaxError: invalid syntax (mine.py, line 1)"),
        ("other", "<class 'mine.Mine'> is not derived from edge.policy.Policy"),
        ("arguments", "sip_request: too many positional arguments"),
        ("missing", "ModuleNotFoundError: No module named 'missing'"),
    ],
)
def test_a_policy_that_cannot_be_used_is_named_with_the_reason(
    edge: Command, tmp_path: Path, policy: str, reason: str
) -> None:
    if policy in POLICIES:
        (tmp_path / "mine.py").write_text(POLICIES[policy])
    module = "mine" if policy in POLICIES else policy
    (tmp_path / "edge.toml").write_text(f"[policy]\nmodule = '{module}:Mine'\n")
    done = edge("check", "--config", "edge.toml")
    assert done.returncode == 2
    assert done.stderr == f"edge: edge.toml: policy.module: {reason}\n"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[sip]\nmax_expirs = 1", 'sip.max_expirs: unknown key; did you mean "max_expires"?'),
        ("[tls]\ncertificate = 'a'\nprivate_key = 'b'", "tls.certificate: cannot read a: No such file or directory"),
        ("[tls]\ntrust = 'a'", "tls.trust: cannot read a: No such file or directory"),
        (
            "[storage]\nurl = 'sqlite:///no/edge.db'",
            "storage.url: no/edge.db is not there, and its folder cannot be written",
        ),
        ("[storage]\nurl = 'sqlite+x:///edge.db'", "storage.url: not a usable URL"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_2(edge: Command, tmp_path: Path, text: str, line: str) -> None:
    (tmp_path / "edge.toml").write_text(text)
    done = edge("check", "--config", "edge.toml")
    assert done.returncode == 2
    assert done.stderr.startswith(f"edge: edge.toml: {line}")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_a_database_server_that_does_not_answer(edge: Command, tmp_path: Path) -> None:
    url = f"postgresql://edge:hunter2@127.0.0.1:{free_port()}/edge"
    (tmp_path / "edge.toml").write_text('[storage]\nurl = "env:DATABASE"')
    done = edge("check", "--config", "edge.toml", env={"DATABASE": url})
    assert done.returncode == 2
    assert done.stderr.startswith("edge: edge.toml: storage.url: connection failed: ")
    assert done.stderr.count("\n") == 1
    assert "hunter2" not in done.stderr


@pytest.mark.parametrize("command", [["serve"], ["user", "list"], ["show", "flows"], ["disconnect", "w0-1-1"]])
def test_every_command_refuses_a_bad_file_in_the_same_way(edge: Command, tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "edge.toml").write_text("role = 'proxy'")
    done = edge(*command, env={"EDGE_CONFIG": "edge.toml"})
    assert done.returncode == 2
    assert done.stderr == 'edge: edge.toml: role: "proxy" is not one of single, edge, registrar\n'
    assert done.stdout == ""


def test_a_file_that_is_not_there(edge: Command) -> None:
    done = edge("serve", "--config", "none.toml")
    assert (done.returncode, done.stderr) == (2, "edge: none.toml: cannot be read: No such file or directory\n")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["chekc"], "No such command 'chekc'."),
        (["check", "--bogus"], "No such option: --bogus"),
        (["show"], "Missing argument"),
        (["show", "phones"], "Invalid value for"),
        (["user"], "Missing command."),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_2(edge: Command, arguments: list[str], line: str) -> None:
    done = edge(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"edge: {line}")
    assert done.stderr.count("\n") == 1


def test_version_and_help(edge: Command) -> None:
    done = edge("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"edge \S.*\n", done.stdout)
    for arguments in ([], ["--help"]):
        shown = edge(*arguments)
        assert shown.returncode == 0
        for command in ("serve", "check", "user", "show", "disconnect"):
            assert re.search(rf"^  {command} ", shown.stdout, re.MULTILINE)


def test_the_process_prints_and_exits_as_the_function_does(edge_process: Command, tmp_path: Path) -> None:
    (tmp_path / "edge.toml").write_text("[sip]\nmax_expirs = 1")
    done = edge_process("serve", env={"EDGE_CONFIG": "edge.toml"})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == 'edge: edge.toml: sip.max_expirs: unknown key; did you mean "max_expires"?\n'
    assert edge_process("user", "add", "alice@localhost", "--password-stdin", stdin="x\n").returncode == 0
    done = edge_process("user", "remove", "bob@localhost")
    assert (done.returncode, done.stderr) == (1, "edge: bob@localhost: no such user\n")
    assert edge_process("user", "list").stdout == "alice@localhost\n"
    assert edge_process("user", "import", "-", stdin="bob@localhost:ä\n").stdout == "1 users imported\n"


HOOK = "[[hooks]]\nevents = ['flow.*']\n"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (HOOK + "exec = ['/usr/local/bin/no-such-program', 'x']", "hooks[0].exec[0]: /usr/local/bin/no-such-program is not there"),
        (HOOK + "exec = ['no-such-program']", "hooks[0].exec[0]: no-such-program is not there"),
        (HOOK + "exec = ['./plain']", "hooks[0].exec[0]: ./plain may not be executed"),
        (HOOK + "exec = ['/bin']", "hooks[0].exec[0]: /bin may not be executed"),
        (HOOK + "exec = ['/bin/true']\n" + HOOK + "call = 'missing:told'", "hooks[1].call: "),
        ("[accounting]\nurl = 'file:/no/such/folder/acc.jsonl'", "accounting.url: /no/such/folder is not there, or cannot be written"),
        ("[accounting]\nurl = 'file:folder'", "accounting.url: folder cannot be written"),
        ("[accounting]\nurl = 'sqlite:///no/acc.db'", "accounting.url: no/acc.db is not there, and its folder cannot be written"),
    ],
)  # fmt: skip
def test_hook_programs_and_the_place_of_accounting_are_looked_for(
    edge: Command, tmp_path: Path, text: str, line: str
) -> None:
    (tmp_path / "plain").write_text("#!/bin/sh\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "edge.toml").write_text(text)
    done = edge("check", "--config", "edge.toml")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"edge: edge.toml: {line}")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("file:acc.jsonl", "acc.jsonl (made at the first start)"),
        ("file:there.jsonl", "there.jsonl (there)"),
        ("sqlite:///acc.db", "sqlite:///acc.db (made at the first start)"),
    ],
)
def test_hooks_and_accounting_that_can_be_used_are_shown_and_nothing_is_left_behind(
    edge: Command, tmp_path: Path, url: str, shown: str
) -> None:
    (tmp_path / "there.jsonl").touch()
    (tmp_path / "mine.py").write_text("def told(event): ...\n")
    text = f"[accounting]\nurl = '{url}'\n{HOOK}exec = ['sh', '-c', 'true']\n{HOOK}call = 'mine:told'\n"
    (tmp_path / "edge.toml").write_text(text)
    before = sorted(tmp_path.iterdir())
    done = edge("check", "--config", "edge.toml")
    assert done.returncode == 0, done.stderr
    assert re.search(rf"^accounting: +{re.escape(shown)}$", done.stdout, re.MULTILINE)
    assert re.search(r"^hooks: +2$", done.stdout, re.MULTILINE)
    assert [path for path in sorted(tmp_path.iterdir()) if path.name != "__pycache__"] == before


def test_an_accounting_database_that_is_away_is_said_and_is_no_error(edge: Command, tmp_path: Path) -> None:
    url = f"postgresql://edge:hunter2@127.0.0.1:{free_port()}/edge"
    (tmp_path / "edge.toml").write_text('[accounting]\nurl = "env:DATABASE"')
    done = edge("check", "--config", "edge.toml", env={"DATABASE": url})
    assert done.returncode == 0
    assert "does not answer, records would wait: " in done.stdout
    assert "hunter2" not in done.stdout + done.stderr

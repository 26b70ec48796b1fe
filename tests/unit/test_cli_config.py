"""datalayer init, config, --version, and what every command shares."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import MappingProxyType

import click
import pytest
from click.testing import CliRunner, Result

from datalayer import errors
from datalayer.cli import app as app_module
from datalayer.cli.app import COMMANDS, DISTRIBUTION, Entry, app
from datalayer.cli.console import Console, command
from datalayer.cli.exits import ExitCode, exit_code
from datalayer.settings import load_settings

SECRET = "hunter2"


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("DATALAYER_CONFIG", "DATALAYER_EMBEDDED", "DATALAYER_TRACEBACK"):
        monkeypatch.delenv(name, raising=False)


def run(*args: str) -> Result:
    return CliRunner().invoke(app, args)


def test_init_writes_a_valid_file_and_leaves_an_existing_one_alone(tmp_path: Path) -> None:
    first = run("init")
    assert (first.exit_code, first.stdout) == (0, "wrote datalayer.toml\n")
    assert "next: datalayer config check" in first.stderr
    load_settings(environ={}, directory=tmp_path)
    Path("datalayer.toml").write_text("# mine\n")
    again = run("init", "--json")
    assert again.exit_code == ExitCode.PRECONDITION
    assert json.loads(again.stdout)["error"]["type"] == "PreconditionFailed"
    assert Path("datalayer.toml").read_text() == "# mine\n"


def test_init_writes_where_config_says(tmp_path: Path) -> None:
    assert run("init", "--config", "a.toml").exit_code == 0
    assert run("--config", "b.toml", "init").exit_code == 0
    assert run("init", "--config", "no/such/folder.toml").exit_code == ExitCode.PRECONDITION
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.toml", "b.toml"]


def test_config_show_masks_and_names_places() -> None:
    Path("datalayer.toml").write_text(
        f'[backends.main]\nurl = "postgresql://app:{SECRET}@db/app"\nreplicas = ["postgresql://r:{SECRET}@r1/app"]\n'
    )
    shown = run("config", "show")
    assert shown.exit_code == 0
    lines = [re.sub(r" +", " ", line) for line in shown.stdout.splitlines()]
    assert 'url = "postgresql://app:***@db/app" # datalayer.toml:2' in lines
    assert "pool_max = 20 # default" in lines
    as_json = run("config", "show", "--json")
    assert json.loads(as_json.stdout)["places"]["backends.main.replicas"] == "datalayer.toml:3"
    assert json.loads(as_json.stdout)["next_steps"] == []
    assert SECRET not in shown.output + as_json.output


def test_config_show_can_be_read_back() -> None:
    Path("datalayer.toml").write_text(
        '[backends.main]\nurl = "cassandra://c1,c2/k?tls=true"\n[control]\nurl = "memory://"\n'
    )
    Path("shown.toml").write_text(run("config", "show").stdout)
    assert run("config", "show", "--config", "shown.toml").exit_code == 0
    first, second = (
        json.loads(run("config", "show", "--json", "--config", name).stdout)
        for name in ("datalayer.toml", "shown.toml")
    )
    assert {key: first[key] for key in ("backends", "control")} == {key: second[key] for key in ("backends", "control")}


def test_config_check_lists_every_mistake_and_exits_2() -> None:
    Path("datalayer.toml").write_text(f'[backends.main]\nurl = "postgres://a:{SECRET}@h/d"\npoolmax = 3\n')
    checked = run("config", "check")
    assert checked.exit_code == ExitCode.USAGE
    assert checked.stderr.splitlines() == [
        "datalayer: datalayer.toml:2: backends.main.url has an unknown scheme (did you mean postgresql?)",
        "datalayer: datalayer.toml:3: backends.main.poolmax is not a known key (did you mean pool_max?)",
    ]
    as_json = json.loads(run("config", "check", "--json").stdout)
    assert as_json["valid"] is False
    assert [fault["place"] for fault in as_json["faults"]] == ["datalayer.toml:2", "datalayer.toml:3"]
    assert SECRET not in checked.output + str(as_json)


def test_config_check_of_a_valid_file() -> None:
    run("init")
    assert run("config", "check").stdout.startswith("datalayer.toml is valid: main;")
    assert json.loads(run("config", "check", "--json").stdout)["valid"] is True


def test_a_missing_file_is_one_sentence() -> None:
    for args in (("--config", "no.toml", "config", "show"), ("config", "show", "--config", "no.toml")):
        missing = run(*args)
        assert missing.exit_code == ExitCode.USAGE
        assert missing.stderr == "datalayer: no.toml: there is no such file (datalayer init writes one)\n"


def test_version() -> None:
    assert re.fullmatch(r"datalayer \S+\n", run("--version").stdout)
    assert set(json.loads(run("--version", "--json").stdout)) == {"version", "next_steps"}
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert f'name = "{DISTRIBUTION}"' in project


def test_a_misspelt_command_or_option_names_the_nearest_and_exits_2() -> None:
    unknown = run("confg")
    assert unknown.exit_code == ExitCode.USAGE
    assert unknown.stderr == "datalayer: there is no command 'confg'; did you mean config? (datalayer --help)\n"
    as_json = run("init", "--nonsense", "--json")
    assert as_json.exit_code == ExitCode.USAGE
    assert json.loads(as_json.stdout)["exit"] == 2
    assert run().exit_code == ExitCode.USAGE


def test_every_registered_command_exists_and_takes_config_and_json() -> None:
    context = click.Context(app)
    for name in COMMANDS:
        found = app.get_command(context, name)
        assert found is not None
        options = {option for parameter in found.params for option in parameter.opts}
        assert {"--config", "--json"} <= options, name
        assert run(name, "--help").exit_code == 0
    listing = run("--help").stdout
    assert all(entry.summary.rstrip(".").split()[0] in listing for entry in COMMANDS.values())


def test_help_imports_no_command() -> None:
    code = "import sys\nfrom datalayer.cli.app import app\ntry:\n    app.main(['--help'])\nexcept SystemExit:\n    print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "datalayer.cli.app" in done.stdout
    assert "datalayer.cli.config" not in done.stdout


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigurationError(), 2),
        (errors.MissingDependencyError(), 3),
        (errors.InvalidArgument(), 2),
        (errors.InvalidCursor(), 2),
        (errors.RoutingMismatch(), 3),
        (errors.SchemaBehind(), 3),
        (errors.SchemaAhead(), 3),
        (errors.VerificationFailed(), 4),
        (errors.NotFinished(), 5),
        (errors.LostLease(), 5),
        (errors.Unavailable(), 1),
        (errors.NotFound(), 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_of_the_library_has_its_exit_code(
    error: errors.DatalayerError, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert exit_code(error) == code
    failed = run_ending(monkeypatch, error)
    assert failed.exit_code == code
    assert failed.stderr == f"datalayer: {error}\n"


def run_ending(monkeypatch: pytest.MonkeyPatch, end: BaseException | ExitCode, *args: str) -> Result:
    """The app with one more command, which ends so."""

    @command("probe")
    def probe(console: Console) -> ExitCode:
        if isinstance(end, BaseException):
            raise end
        return end

    table = {**COMMANDS, "probe": Entry("tests.unit.test_cli_config:probe", "Probe.")}
    monkeypatch.setattr(app_module, "COMMANDS", MappingProxyType(table))
    monkeypatch.setattr(sys.modules[__name__], "probe", probe, raising=False)
    return run("probe", *args)


def test_a_command_may_end_with_a_code_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_ending(monkeypatch, ExitCode.NOT_FINISHED).exit_code == 5


def test_an_interrupted_command_exits_130(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = run_ending(monkeypatch, KeyboardInterrupt())
    assert (ended.exit_code, ended.stderr.strip()) == (130, "datalayer: interrupted")


def test_an_unexpected_error_keeps_its_text_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = run_ending(monkeypatch, RuntimeError(f"password={SECRET}"), "--json")
    assert ended.exit_code == 1
    assert "unexpected RuntimeError at" in ended.stderr
    assert json.loads(ended.stdout)["error"]["type"] == "RuntimeError"
    assert SECRET not in ended.output
    monkeypatch.setenv("DATALAYER_TRACEBACK", "1")
    assert SECRET in run_ending(monkeypatch, RuntimeError(f"password={SECRET}")).output


def test_an_error_under_json_is_one_object(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = run_ending(monkeypatch, errors.OutcomeUnknown("gone", hint="again"), "--json")
    assert json.loads(ended.stdout) == {
        "error": {
            "type": "OutcomeUnknown",
            "message": "gone",
            "hint": "again",
            "retryable": True,
            "outcome": "unknown",
        },
        "exit": 1,
        "next_steps": [],
    }


def test_no_colour_where_nobody_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Console, "terminal", property(lambda console: True))
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in run("nonsense").stderr
    monkeypatch.delenv("NO_COLOR")
    assert "\x1b[31m" in run("nonsense").stderr


def test_the_module_runs_as_the_script_does() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "datalayer.cli", "--version"], check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, run("--version").stdout)


def test_a_closed_pipe_is_no_traceback(tmp_path: Path) -> None:
    line = f"{sys.executable} -m datalayer.cli config show | true"
    done = subprocess.run(["bash", "-c", line], check=False, capture_output=True, text=True, cwd=tmp_path)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr

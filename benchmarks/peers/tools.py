"""Other tools that load the same rows: cqlsh COPY FROM, DSBulk, psql's COPY out | COPY in. Each is a whole process.

cqlsh lives in a virtual environment of its own, DSBulk's jars come by Maven; both are kept in the cache of the test
servers, outside the checkout.
"""

import shlex
import subprocess
import sys
from pathlib import Path

from benchmarks.dataset import CSV_COLUMNS, Dataset
from benchmarks.processes import Ended, run
from benchmarks.stage import Stage, psql
from tests.servers import cache
from tests.servers.cassandra import install_cassandra
from tests.servers.errors import InstallFailed
from tests.servers.process import clean_environment

CQLSH = "cqlsh==6.2.2"
DSBULK_POM = Path(__file__).parent / "dsbulk.xml"
DSBULK_MAIN = "com.datastax.oss.dsbulk.runner.DataStaxBulkLoader"
_COPY_JARS = "org.apache.maven.plugins:maven-dependency-plugin:2.8:copy-dependencies"
_INSTALL_TIMEOUT_S = 900
_CQLSHRC = """[csv]
field_size_limit = 1000000000
"""


def install_cqlsh() -> Path:
    """The path of cqlsh."""

    def build(folder: Path) -> None:
        _check([sys.executable, "-m", "venv", str(folder)])
        _check([str(folder / "bin/python"), "-m", "pip", "install", "--quiet", CQLSH])

    # Called by its module: the scripts of a virtual environment name the folder that it was made in.
    return cache.installed(f"bench-{CQLSH.replace('==', '-')}", build) / "bin" / "python"


def install_dsbulk() -> Path:
    """The folder of DSBulk's jars."""

    def build(folder: Path) -> None:
        home = f"-Duser.home={Path.home()}"
        _check(["mvn", "-q", "-B", home, "-f", str(DSBULK_POM), _COPY_JARS, f"-DoutputDirectory={folder / 'lib'}"])

    return cache.installed(f"bench-dsbulk-{cache.digest(DSBULK_POM.read_bytes())}", build) / "lib"


def install_all() -> None:
    """Both, so that no round waits for a download."""
    install_cqlsh()
    install_dsbulk()


def cqlsh(stage: Stage, dataset: Dataset, table: str) -> Ended:
    """COPY FROM with its defaults but for the size of a field; it has no way to set a row's timestamp."""
    url = stage.cassandra_url
    host = url.hosts[0]
    rc = stage.folder / "cqlshrc"
    rc.write_text(_CQLSHRC)
    copy = (
        f"COPY {url.database}.{table} ({', '.join(CSV_COLUMNS[:-1])}) FROM '{dataset.plain_csv}' WITH HEADER = false;"
    )
    argv = [str(install_cqlsh()), "-m", "cqlshlib.cqlshmain", "--cqlshrc", str(rc), "-e", copy, host.name]
    return run([*argv, str(host.port or 9042)], stage.log("cqlsh"))


def dsbulk(stage: Stage, dataset: Dataset, table: str) -> Ended:
    """``dsbulk load`` with its defaults but for the length of a field; each row with its own timestamp."""
    url = stage.cassandra_url
    host = url.hosts[0]
    insert = (
        f"INSERT INTO {url.database}.{table} (conversation_id, bucket, id, record) "
        "VALUES (:conversation_id, :bucket, :id, :record) USING TIMESTAMP :version"
    )
    mapping = ", ".join(f"{at}={name}" for at, name in enumerate(CSV_COLUMNS))
    options = {
        "--connector.name": "csv",
        "--connector.csv.url": str(dataset.csv),
        "--connector.csv.header": "false",
        "--connector.csv.maxCharsPerColumn": "-1",
        "--schema.query": insert,
        "--schema.mapping": mapping,
        "--driver.basic.contact-points": f'["{host.name}:{host.port or 9042}"]',
        "--driver.basic.load-balancing-policy.local-datacenter": str(url.options.get("local_dc", "datacenter1")),
        "--log.directory": str(stage.folder / "dsbulk-logs"),
    }
    flags = [part for option in options.items() for part in option]
    java = str(install_cassandra().java)
    classpath = f"{install_dsbulk()}/*"
    return run([java, "-Xmx1G", "-cp", classpath, DSBULK_MAIN, "load", *flags], stage.log("dsbulk"))


def copy_pipe(stage: Stage, table: str) -> Ended:
    """COPY out of the source's table into one COPY in, binary, by two psql and a pipe."""
    quiet = f"{shlex.quote(psql())} --no-psqlrc -q -v ON_ERROR_STOP=1"
    out = f"{quiet} -c 'COPY messages TO STDOUT (FORMAT binary)' {shlex.quote(stage.main)}"
    into = f"{quiet} -c 'COPY {table} FROM STDIN (FORMAT binary)' {shlex.quote(stage.copy)}"
    return run(["bash", "-o", "pipefail", "-c", f"{out} | {into}"], stage.log("copy"))


def _check(argv: list[str]) -> None:
    done = subprocess.run(
        argv,
        capture_output=True,
        text=True,
        check=False,
        timeout=_INSTALL_TIMEOUT_S,
        env=clean_environment(HOME=str(Path.home())),
    )
    if done.returncode != 0:
        raise InstallFailed(f"{' '.join(argv[:4])} failed: {(done.stderr + done.stdout)[-2000:]}")

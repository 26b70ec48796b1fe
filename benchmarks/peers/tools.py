"""Other tools that load the same rows: cqlsh COPY FROM, DSBulk, psql's COPY out | COPY in. Each is a whole process.

cqlsh lives in a virtual environment of its own, DSBulk's jars come by Maven; both are kept in the cache of the test
servers, outside the checkout.
"""

import shlex
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

from benchmarks.dataset import CSV_COLUMNS, Dataset
from benchmarks.processes import ChildFailed, Ended, run
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
    """COPY FROM with two workers, then once more, row by row, what the server refused: it has no bound of a batch's
    bytes, and 20 rows over several partitions may be more than the server takes. It cannot set a row's timestamp.
    """
    refused = stage.folder / f"refused-{uuid4().hex[:6]}.csv"
    first = _cqlsh_copy(
        stage,
        dataset.plain_csv,
        table,
        f"NUMPROCESSES = 2 AND MAXATTEMPTS = 1 AND MAXINSERTERRORS = -1 AND ERRFILE = '{refused}'",
    )
    if not refused.exists():
        return first
    still = stage.folder / f"refused-{uuid4().hex[:6]}.csv"
    again = _cqlsh_copy(stage, refused, table, f"MAXBATCHSIZE = 1 AND MINBATCHSIZE = 1 AND ERRFILE = '{still}'")
    if still.exists():
        raise ChildFailed(f"cqlsh could not load some rows: {again.out[-500:]}")
    peak = max(first.peak_rss_mib, again.peak_rss_mib)
    return Ended(first.wall_s + again.wall_s, first.cpu_s + again.cpu_s, peak, first.out + again.out)


def _cqlsh_copy(stage: Stage, csv: Path, table: str, options: str) -> Ended:
    url = stage.cassandra_url
    host = url.hosts[0]
    rc = stage.folder / "cqlshrc"
    rc.write_text(_CQLSHRC)
    columns = ", ".join(CSV_COLUMNS[:-1])
    copy = f"COPY {url.database}.{table} ({columns}) FROM '{csv}' WITH HEADER = false AND {options};"
    argv = [str(install_cqlsh()), "-m", "cqlshlib", "--cqlshrc", str(rc), "-e", copy, host.name]
    # It ends with 2 when some rows were refused.
    return run([*argv, str(host.port or 9042)], stage.log("cqlsh"), ends_with=(0, 2))


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
        "--codec.timestamp": "UNITS_SINCE_EPOCH",
        "--codec.unit": "MICROSECONDS",
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

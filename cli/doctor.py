"""datalayer doctor: is everything there, reachable, and of one mind?"""

from __future__ import annotations

from dataclasses import asdict

from datalayer.cli.console import Console, command
from datalayer.cli.exits import ExitCode
from datalayer.cli.running import Stop, run
from datalayer.clock import SystemClock
from datalayer.migrators.doctor import Finding, diagnose


@command()
def doctor(console: Console) -> ExitCode | None:
    """Look at packages, control store, backends, schemas, routes and the fleet; change nothing.

    Where media lie, one small test object is stored, read and deleted.
    """
    settings = console.settings()

    async def work(_: Stop) -> list[Finding]:
        return await diagnose(settings, SystemClock())

    findings = run(console, work)
    wrong = [finding for finding in findings if not finding.ok]
    lines = []
    for finding in findings:
        lines.append(f"{'ok   ' if finding.ok else 'WRONG'} {finding.check}: {finding.detail}")
        if finding.way_out:
            lines.append(f"      -> {finding.way_out}")
    console.result({"ok": not wrong, "findings": [asdict(finding) for finding in findings]}, "\n".join(lines))
    return ExitCode.FAILED if wrong else None

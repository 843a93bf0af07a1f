"""demo."""

from __future__ import annotations

import click

from toolkit.cli import options


@click.command()
@click.option("--embedded", is_flag=True, help="Use the embedded SSH server even if an sshd is installed.")
@click.option("--fresh", is_flag=True, help="Repeat measurements that are already kept.")
@options.report
@options.gathered(printed=options.Printed)
def demo(embedded: bool, fresh: bool, printed: options.Printed) -> None:
    """Run the whole loop on the reference model and a loopback device.

    Plans, quantizes with Olive, pushes over SSH, verifies, activates, measures, and ends with a table. The device
    is a real OpenSSH server on loopback where `sshd` is installed, else an SSH server embedded in edgephi.
    """
    from toolkit.cli import render
    from toolkit.cli.tables import as_payload, write_reports
    from toolkit.jobs.demo import demo as demo_service

    rows = render.follow(demo_service(embedded=embedded, fresh=fresh))
    reports = [row.report for row in rows if row.report]
    write_reports(reports, as_payload(reports), printed)
    for row in rows:
        if row.error:
            raise row.error

"""bench."""

from __future__ import annotations

import click

from toolkit.cli import options


@click.command()
@click.argument("subject", metavar="TARGET|BUNDLE", shell_complete=options.names("targets"))
@options.workload
@options.unlocked_packages
@options.trust_folder
@options.report
@options.gathered(printed=options.Printed)
def bench(subject: str, workload: str, printed: options.Printed) -> None:
    """Measure latency, throughput and memory on a target.

    With a target, its active release is measured there. With a bundle (./FOLDER, an id or a name), that
    bundle is measured on this machine, without SSH. Every report is kept with its raw samples.
    """
    from toolkit.bench import bench as bench_service
    from toolkit.catalog.workload import load_workload
    from toolkit.cli import render
    from toolkit.cli.sources import find_subject
    from toolkit.cli.tables import write_reports
    from toolkit.deploy.install import install
    from toolkit.device import connect
    from toolkit.metrics.report import to_json

    chosen = load_workload(workload)
    bundle, target = find_subject(subject)
    with connect(target or "local", render.prompt_secret()) as device:
        release = render.follow(install(bundle, device)) if bundle is not None else None
        prepared = release.prepared if release else None
        report = render.follow(bench_service(device, bundle.id if bundle else None, chosen, prepared=prepared))
    write_reports([report], to_json(report), printed)

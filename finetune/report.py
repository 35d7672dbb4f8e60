"""python -m finetune.report RUN [RUN ...]: tables and figures of runs in the paper's layout, in one HTML file."""

from dataclasses import dataclass
from pathlib import Path

from finetune.pages.report_page import write_report
from finetune.run_dirs.finished_runs import find_runs
from shards.common.cli import REQUIRED, command, flag
from shards.common.counted import counted


@dataclass
class ReportConfig:
    """Flags of finetune.report."""

    runs: tuple[str, ...] = flag(REQUIRED, "run directories, or folders that contain some", first=True)
    out: str = flag("report.html", "output file for the page", written=True)


def run(config: ReportConfig) -> None:
    runs = find_runs(config.runs)
    write_report(Path(config.out), runs)
    print(f"{counted(len(runs), 'run')}: {', '.join(run.name for run in runs)}\npage: {config.out}")


EXAMPLES = ("python -m finetune.report runs/mt runs/st-refcoco --out report.html",)


if __name__ == "__main__":
    command(
        ReportConfig, run, "finetune.report", "Tables and figures of runs in the paper's layout.", examples=EXAMPLES
    )

"""python -m finetune.report RUN [RUN ...]: tables and figures of runs as the paper has them, in one HTML file."""

from dataclasses import dataclass
from pathlib import Path

from finetune.pages.report import write_report
from finetune.runs import find_runs
from shards.flags import REQUIRED, command, flag
from shards.reading import reading


@dataclass
class ReportConfig:
    """Flags of finetune.report."""

    runs: tuple[str, ...] = flag(REQUIRED, "directories of runs, or directories that hold some", first=True)
    out: str = flag("report.html", "where the page goes", written=True)


def run(config: ReportConfig) -> None:
    runs = find_runs(config.runs)
    with reading(", ".join(config.runs), "a file of these runs is damaged, or of another version"):
        write_report(Path(config.out), runs)
    print(f"{len(runs)} run{'s' * (len(runs) > 1)}: {', '.join(run.name for run in runs)}\nthe page: {config.out}")


if __name__ == "__main__":
    command(ReportConfig, run, "finetune.report", "The paper's tables and figures with the scores of runs.")

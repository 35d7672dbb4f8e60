"""python -m finetune.ablate --suite table11: runs the paper's ablations with several seeds and prints their table."""

from pathlib import Path

from finetune.config import AblateConfig
from finetune.reporting.ablation_runs import AblationRun, check_tasks, rows_of
from finetune.reporting.ablation_table import write_table
from finetune.reporting.complete_runs import complete
from finetune.reporting.screening import SCREENED, chosen_rows, screening_config, screening_runs
from pretrain.engine.distributed import CPU, connected, exiting, on_first
from pretrain.engine.run_dir import locked_run
from shards.common.cli import command
from shards.common.dist_info import Ranks, launched
from shards.common.errors import UserError


def run(config: AblateConfig) -> None:
    """Runs a suite. SIGTERM ends it by SystemExit, after a checkpoint of the current run."""
    ranks = launched()
    if ranks.count > 1 and config.jobs > 1:
        raise UserError(f"--jobs {config.jobs}: under torchrun every run uses all ranks; remove --jobs")
    with connected(ranks, CPU), locked_run(Path(config.out) / config.suite, "finetune.ablate", ranks):
        ablate(config, ranks)


def ablate(config: AblateConfig, ranks: Ranks) -> None:
    """One rank's part of a suite: it trains its rank of every run, one run after another, and writes the table."""
    rows, screening = rows_of(config), ""
    on_first(ranks, lambda: check_tasks(config, rows))
    if config.suite == SCREENED:
        screened = screening_runs(config, rows)
        if complete(screening_config(config), screened, ranks) is None:
            return
        rows, screening = on_first(ranks, lambda: chosen_rows(config, rows, screened))
        ranks.log(screening)
    runs = [
        AblationRun(
            name, row, seed, Path(config.out) / config.suite / name.replace(" ", "_").replace(",", "") / f"seed{seed}"
        )
        for seed in range(config.seeds)
        for name, row in rows.items()
    ]
    config = complete(config, runs, ranks)
    if config is not None:
        ranks.log(on_first(ranks, lambda: write_table(config, runs, screening)))


EXAMPLES = ("python -m finetune.ablate --suite table10 --seeds 1",)


if __name__ == "__main__":
    summary = "Runs the paper's ablations on a data folder, with several seeds per row."
    with exiting():
        command(AblateConfig, run, "finetune.ablate", summary, examples=EXAMPLES)

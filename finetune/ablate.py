"""python -m finetune.ablate --suite table11: the paper's ablations, several seeds a row, and their table."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import stats

from finetune.ablations import PAPER_TABLES, SUITES, Row
from finetune.cleaning.cleaned import NOT_CLEANED, is_cleaned
from finetune.intervals import bootstrap_means, interval_of
from finetune.mt import VALUES
from finetune.paper import paper_row
from finetune.scores import load_values, mean_row, ranking_note, render_rows
from finetune.start import PRETRAINING
from pretrain.checkpoint import newest_checkpoint
from pretrain.run_folder import CONFIG
from shards.errors import UserError
from shards.files import read_json, whole_file
from shards.flags import REQUIRED, command, flag
from shards.world import DEFAULT_WORLD, complete_world


@dataclass
class AblateConfig:
    """Flags of finetune.ablate."""

    suite: str = flag(REQUIRED, "which ablation", choices=tuple(SUITES))
    seeds: int = flag(3, "runs of each row, with seeds from 0 on", low=1)
    jobs: int = flag(1, "runs at a time; they share the machine's cores", low=1)
    data: str = flag(DEFAULT_WORLD, "a folder with the tasks' official files and the regions of their images")
    init: str = flag(PRETRAINING, "the run that rows start from which do not say otherwise")
    out: str = flag("runs/ablate", "a folder for the runs; those that are finished there are kept", written=True)
    iterations: int | None = flag(None, "of each run, else finetune.mt's own", low=1)
    epochs: int | None = flag(None, "of each pretraining run, else pretrain.run's own", low=1)
    lr_scale: float | None = flag(None, "factor on all tasks' learning rates, else finetune.mt's own", above=0)
    rows: str | None = flag(None, "only these rows of the suite, with semicolons between them")


@dataclass(frozen=True)
class Run:
    """One run of a row. folder: of its run directory and, in pretraining's suite, of its pretraining."""

    name: str
    row: Row
    seed: int
    folder: Path

    @property
    def pretrained(self) -> Path:
        return self.folder / "pretrain"

    @property
    def out(self) -> Path:
        return self.folder / "mt"

    @property
    def finished(self) -> bool:
        return (self.out / "result.json").exists()


def run(config: AblateConfig) -> None:
    rows = _rows(config)
    complete_world(config.data)
    runs = [
        Run(name, row, seed, Path(config.out) / config.suite / name.replace(" ", "_").replace(",", "") / f"seed{seed}")
        for seed in range(config.seeds)
        for name, row in rows.items()
    ]
    waiting = [one for one in runs if not one.finished]
    print(f"{config.suite}: {len(runs)} runs, {len(runs) - len(waiting)} of them finished before", flush=True)
    config = as_begun(runs, config)
    with ThreadPoolExecutor(config.jobs) as pool:
        try:
            for number, one in enumerate(pool.map(lambda one: _train(one, config), waiting), 1):
                score = read_json(one.out / "result.json")["mt_score"]
                print(f"{number} of {len(waiting)}: {one.name}, seed {one.seed}: MT score {score:.2%}", flush=True)
        finally:
            pool.shutdown(cancel_futures=True)
    text = table(config.suite, runs)
    path = Path(config.out) / config.suite / "table.txt"
    with whole_file(path, "w", encoding="utf-8") as file:
        file.write(text + "\n")
    print(f"{text}\nthe table is in {path}")


def _rows(config: AblateConfig) -> dict[str, Row]:
    """The chosen rows of the suite; the full method is among them in any case."""
    rows = SUITES[config.suite]
    if config.rows is None:
        return rows
    names = [name.strip() for name in config.rows.split(";")]
    for name in names:
        if name not in rows:
            raise UserError(f"--rows {name}: {config.suite} has {'; '.join(rows)}")
    full = next(iter(rows))
    return {name: row for name, row in rows.items() if name in (full, *names)}


def as_begun(runs: list[Run], config: AblateConfig) -> AblateConfig:
    """The flags, where nothing else is asked for with the rate and the epochs of runs that were begun before.

    A run that was begun otherwise than it is asked, or than another, is refused: a table would mix them.
    """
    for folder, name, value in _begun_with(runs):
        asked = getattr(config, name)
        if asked is None and name != "iterations":  # of which a run keeps that nothing was asked for
            config = replace(config, **{name: value})
        elif value != asked:
            raise UserError(
                f"{folder}: was made with --{name} {value}, and the others with "
                f"{'the default' if asked is None else asked}; give another --out, or remove it"
            )
    return config


def _begun_with(runs: list[Run]) -> Iterator[tuple[Path, str, object]]:
    """(its folder, flag, value) of what the runs that were begun before have in common."""
    for one in runs:
        shared_start = one.row.pretraining is None and "init" not in one.row.flags
        trained = ("data", "iterations", "lr_scale", *(["init"] if shared_start else []))
        for folder, names in ((one.pretrained, ("epochs",)), (one.out, trained)):
            if newest_checkpoint(folder):
                flags = read_json(folder / CONFIG)["flags"]
                yield from ((folder, name, flags[name]) for name in names)


def _train(one: Run, config: AblateConfig) -> Run:
    """Pretrains where the row says so, and trains; both go on where they were interrupted."""
    shared = {"seed": one.seed, "resume": True}
    flags = {name: getattr(config, name) for name in ("data", "init", "iterations", "lr_scale")} | {"out": one.out}
    if one.row.pretraining is not None:
        own = {"data": config.data, "out": one.pretrained, "epochs": config.epochs} | one.row.pretraining
        _call("pretrain.run", own | shared, one.folder / "pretrain.log", config.jobs)
        flags["init"] = one.pretrained
    _call("finetune.mt", flags | one.row.flags | shared, one.folder / "mt.log", config.jobs)
    return one


def _call(module: str, flags: dict, log: Path, jobs: int) -> None:
    given = [f"--{name}={value}" for name, value in flags.items() if value is not None]
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))}
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w", encoding="utf-8") as file:
        command = [sys.executable, "-m", module, *given]
        status = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=os.environ | threads).returncode
    if status:
        lines = log.read_text(encoding="utf-8").splitlines() or [""]
        raise UserError(f"{log}: python -m {module} ended with status {status}: {lines[-1]}")


def table(suite: str, runs: list[Run]) -> str:
    """Means over seeds in the paper's layout, and how each row's MT score differs from the full method's."""
    by_row: dict[str, list[Run]] = {}
    for one in runs:
        by_row.setdefault(one.name, []).append(one)
    results = {name: [read_json(one.out / "result.json") for one in of_row] for name, of_row in by_row.items()}
    rows = {name: mean_row([result["tasks"] for result in of_row]) for name, of_row in results.items()}
    mark = ""
    if suite in PAPER_TABLES:
        if not all(is_cleaned(read_json(one.out / CONFIG)) for one in runs):
            mark = f", {NOT_CLEANED} (the paper's models are trained on cleaned data)"
        rows |= {f"the paper: {name}": paper_row(PAPER_TABLES[suite], name) for name in results}
    full = next(iter(by_row))
    seeds = len(by_row[full])
    lines = [f"{suite}: means of {seeds} {'seeds' if seeds > 1 else 'seed'}, validation{mark}", render_rows(rows), ""]
    lines.append(f"difference of the MT score from that of {full!r}, on the tasks that both have")
    for name in list(by_row)[1:]:
        difference, (low, high), p = compare(by_row[name], by_row[full])
        lines.append(f"{name:<32} {difference:+7.2%}  ({low:+.2%} to {high:+.2%})  p = {p:.3f}")
    lines.append("interval: 95%, over images, paired; p: paired t-test over tasks and seeds")
    if note := ranking_note(results[full][0]["tasks"]):
        lines.append(note)
    return "\n".join(lines)


def compare(row: list[Run], full: list[Run]) -> tuple[float, tuple[float, float], float]:
    """(difference of the mean of the shared tasks' scores, its 95% interval, p of a paired t-test).

    The test is over tasks and seeds; the interval is a bootstrap over images with their examples, the same ones of both
    rows, of differences that are means over seeds.
    """
    kept = [[load_values(one.out / VALUES) for one in runs] for runs in (row, full)]
    ours, theirs = ([values for values, _ in of_row] for of_row in kept)
    clusters = kept[0][0][1]
    names = [name for name in ours[0] if name in theirs[0]]
    differences = {name: np.mean([a[name] - b[name] for a, b in zip(ours, theirs, strict=True)], 0) for name in names}
    draws = [bootstrap_means(of, clusters[name], seed=n) for n, (name, of) in enumerate(differences.items())]
    mean = float(np.mean([values.mean() for values in differences.values()]))
    a, b = ([values[name].mean() for values in of_row for name in names] for of_row in (ours, theirs))
    p = float(stats.ttest_rel(a, b).pvalue) if not np.array_equal(a, b) else 1.0
    return mean, interval_of(np.mean(draws, 0)), p


if __name__ == "__main__":
    command(AblateConfig, run, "finetune.ablate", "The paper's ablations on a data folder, with several seeds a row.")

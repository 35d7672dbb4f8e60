"""python -m finetune.ablate --suite table11: the paper's ablations, several seeds a row, and their table."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from scipy import stats

from finetune.ablations import PAPER_TABLES, SUITES, Row
from finetune.cleaning.cleaned import NOT_CLEANED, is_cleaned
from finetune.intervals import bootstrap_means, interval_of
from finetune.mt import VALUES
from finetune.paper import paper_row
from finetune.results import MultiResult
from finetune.scores import load_values, mean_row, ranking_note, render_rows
from finetune.settings import FREE_FLAGS, MtConfig
from finetune.start import PRETRAINING
from pretrain.bert import bert_folder
from pretrain.checkpoint import newest_checkpoint
from pretrain.config import ModelConfig
from pretrain.distributed import CPU, connected, leaving, on_every_rank, on_first
from pretrain.run_folder import absolute, locked_run, read_config
from pretrain.settings import FREE_FLAGS as PRETRAINING_FREE_FLAGS
from pretrain.settings import PRECISIONS, PretrainConfig
from pretrain.weights import BERT, find_weights
from shards.errors import ErrorElsewhere, UserError
from shards.files import read_json, whole_file, write_json
from shards.flags import REQUIRED, command, flag
from shards.ranks import Ranks, launched
from shards.world import DEFAULT_WORLD, complete_world, pairs_folder

OWN_DEFAULT = ("lr_scale", "epochs")  # flags for which a run keeps the default that there was when it was begun


@dataclass
class AblateConfig:
    """Flags of finetune.ablate."""

    suite: str = flag(REQUIRED, "which ablation", choices=tuple(SUITES))
    seeds: int = flag(3, "runs of each row, with seeds from 0 on", low=1)
    jobs: int = flag(1, "runs at a time; they share the machine's cores (1 under torchrun)", low=1)
    data: str = flag(DEFAULT_WORLD, "a folder with the tasks' official files and the regions of their images")
    init: str = flag(PRETRAINING, "the run that rows start from which do not say otherwise")
    out: str = flag("runs/ablate", "a folder for the runs; those that are finished there are kept", written=True)
    iterations: int | None = flag(None, "of each run", unset="finetune.mt's own", low=1)
    epochs: int | None = flag(None, "of each pretraining run", unset="pretrain.run's own", low=1)
    lr_scale: float | None = flag(None, "factor on all tasks' learning rates", unset="finetune.mt's own", above=0)
    rows: str | None = flag(None, "only these rows of the suite, with semicolons between them", unset="all")
    config: str | None = flag(
        None,
        "sizes of pretraining runs, or of published weights given by --init",
        unset="tiny, or those next to the weights",
    )
    bert: str | None = flag(
        None,
        "a Hugging Face BERT for pretraining runs and for rows without pretraining",
        unset="the one of --init's run",
    )
    clean: str | None = flag(
        None, "decontaminated training sets: DATA/clean or another folder of finetune.clean", unset="not decontaminated"
    )
    precision: str = flag("float32", "precision of matrix products; float64: of everything", choices=PRECISIONS)
    device: str = flag("auto", "cpu, cuda, or auto", choices=("auto", "cpu", "cuda"))


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


@dataclass(frozen=True)
class Call:
    """A command that a run consists of. flags: without --resume, which is always given; out: its run directory."""

    module: str
    flags: dict
    out: Path

    @property
    def begun(self) -> bool:
        return bool(newest_checkpoint(self.out)) or self.finished

    @property
    def finished(self) -> bool:
        return (self.out / "result.json").exists()

    @property
    def settings(self) -> dict:
        """The flags that change what is computed, with the defaults of those that are not given."""
        if self.module == "pretrain.run":
            config, free = PretrainConfig(**self.flags).settled(), PRETRAINING_FREE_FLAGS
        else:
            config, free = MtConfig(**self.flags), FREE_FLAGS
        found = {name: value for name, value in asdict(config).items() if name not in free}
        return {name: value for name, value in found.items() if value is not None or name in self.flags}

    @property
    def argv(self) -> list[str]:
        given = {**self.flags, "out": self.out, "resume": True}
        return ["-m", self.module, *(f"--{name}={value}" for name, value in given.items() if value is not None)]

    def log(self, ranks: Ranks) -> Path:
        name = self.out.name if ranks.first else f"{self.out.name}-rank{ranks.rank}"
        return self.out.with_name(f"{name}.log")


@dataclass(frozen=True)
class PlainStart:
    """What rows without pretraining start from.

    flags: of finetune.mt; sizes: to be written to the file that flags["config"] names, or None; text: for the log.
    """

    flags: dict
    sizes: ModelConfig | None
    text: str


def run(config: AblateConfig) -> int:
    """Runs a suite; the exit status is 0, or 128 + the signal that stopped it."""
    ranks = launched()
    if ranks.count > 1 and config.jobs > 1:
        raise UserError(f"--jobs {config.jobs}: under torchrun every run takes all ranks; leave --jobs out")
    with connected(ranks, CPU), locked_run(Path(config.out) / config.suite, "finetune.ablate", ranks):
        ablate(config, ranks)
    return 0


def ablate(config: AblateConfig, ranks: Ranks) -> None:
    """One rank's part of a suite: it starts its rank of every run, one after another, and waits for the other ranks."""
    rows = _rows(config)
    runs = [
        Run(name, row, seed, Path(config.out) / config.suite / name.replace(" ", "_").replace(",", "") / f"seed{seed}")
        for seed in range(config.seeds)
        for name, row in rows.items()
    ]
    config, start, finished = on_first(ranks, lambda: _prepare(config, runs))
    waiting = [one for one, done in zip(runs, finished, strict=True) if not done]
    ranks.say(f"{config.suite}: {len(runs)} runs, {len(runs) - len(waiting)} of them finished before")
    if start is not None:
        ranks.say(start.text)
    processes = Processes(config.jobs, ranks)
    with processes.threads(config.jobs) as pool:
        done = pool.map(lambda one: _train(calls_of(one, config, start), processes, ranks), waiting)
        for number, (one, _) in enumerate(zip(waiting, done, strict=True), 1):
            if ranks.first:
                score = read_json(one.out / "result.json", MultiResult)["mt_score"]
                ranks.say(f"{number} of {len(waiting)}: {one.name}, seed {one.seed}: MT score {score:.2%}")
    ranks.say(on_first(ranks, lambda: _write_table(config, runs)))


def _write_table(config: AblateConfig, runs: list[Run]) -> str:
    text = table(config.suite, runs)
    path = Path(config.out) / config.suite / "table.txt"
    with whole_file(path, "w", encoding="utf-8") as file:
        file.write(text + "\n")
    return f"{text}\nthe table is in {path}"


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


def _prepare(config: AblateConfig, runs: list[Run]) -> tuple[AblateConfig, PlainStart | None, list[bool]]:
    """(the flags as runs were begun with them, what rows without pretraining start from, which runs are finished)."""
    complete_world(config.data)
    pairs = pairs_folder(config.data)
    if any(one.row.pretraining is not None for one in runs) and not pairs.is_dir():
        raise UserError(f"{pairs}: no such folder; --suite {config.suite} needs region shards with captions there")
    start = plain_start(config, [one.row for one in runs])
    config = as_begun(runs, config, start)
    if start is not None and start.sizes is not None:
        path, sizes = Path(start.flags["config"]), start.sizes.to_dict()
        begun = any(call.begun for one in runs if not one.row.pretrained for call in calls_of(one, config, start))
        if begun and path.exists() and read_json(path) != sizes:
            raise UserError(f"{path}: runs have these sizes, --init {config.init} has others; give another --out")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, sizes)
    return config, start, [one.finished for one in runs]


def plain_start(config: AblateConfig, rows: list[Row]) -> PlainStart | None:
    """What rows without pretraining start from, None where there are none: a BERT, or random weights, at the size of
    the model that the other rows start from.

    The BERT is --bert, else the one that --init's pretraining began with.
    """
    own = any(row.pretraining is not None for row in rows)
    if all(row.pretrained for row in rows):
        if config.bert and not own:
            raise UserError(f"--bert {config.bert}: none of the rows of {config.suite} starts from a BERT")
        return None
    sizes, tokenizer, bert, place = None, None, config.bert, config.config or PretrainConfig.config
    if not own and config.init != "scratch":
        try:
            weights = find_weights(config.init, config.config)
        except UserError as error:
            raise UserError(str(error) if str(error).startswith("--") else f"--init {error}") from None
        its_bert = config.init if weights.kind == BERT else weights.facts.get("flags", {}).get("bert")
        sizes, tokenizer, bert = weights.sizes, weights.tokenizer, bert or its_bert
        place = str(Path(config.out) / config.suite / "model.json")
    size = f"of the sizes {'of ' + config.init if sizes else place}"
    if bert:
        flags = {"init": bert_folder(bert), "config": place}
        return PlainStart(flags, sizes, f"without pretraining: from the BERT {bert}, {size}")
    flags = {"init": "scratch", "config": place, "tokenizer": tokenizer}
    return PlainStart(flags, sizes, f"without pretraining: from random weights, {size} (--bert names a BERT)")


def calls_of(one: Run, config: AblateConfig, start: PlainStart | None) -> list[Call]:
    """The commands of a run in their order: pretraining, where the row has its own, and multi-task training."""
    machine = {"precision": config.precision, "device": config.device, "seed": one.seed}
    names = ("data", "iterations", "lr_scale", "clean")
    flags = {name: getattr(config, name) for name in names} | machine
    if not one.row.pretrained:
        return [Call("finetune.mt", flags | start.flags | one.row.flags, one.out)]
    if one.row.pretraining is None:
        return [Call("finetune.mt", flags | {"init": config.init, "config": config.config} | one.row.flags, one.out)]
    pretraining = {
        "data": str(pairs_folder(config.data)),
        "config": config.config or PretrainConfig.config,
        "bert": config.bert,
        "epochs": config.epochs,
    }
    return [
        Call("pretrain.run", pretraining | machine | one.row.pretraining, one.pretrained),
        Call("finetune.mt", flags | {"init": str(one.pretrained)} | one.row.flags, one.out),
    ]


def as_begun(runs: list[Run], config: AblateConfig, start: PlainStart | None) -> AblateConfig:
    """The flags, where nothing else is asked for with the rate and the epochs of runs that were begun before.

    A run that was begun, or finished, with other flags or when defaults were others is refused: a table would mix them.
    """
    for one in runs:
        for call in calls_of(one, config, start):
            stored = read_config(call.out)["flags"] if call.begun else {}
            for name, asked in call.settings.items():
                if name in OWN_DEFAULT and call.flags.get(name, asked) is None:
                    config = replace(config, **{name: stored.get(name)})
                elif stored.get(name, asked) not in (asked, absolute(asked, name)):
                    raise UserError(
                        f"{call.out}: was made with --{name} {stored[name]}, and not with "
                        f"{'the default' if asked is None else asked}; give the same flags, another --out, or remove it"
                    )
    return config


class Processes:
    """The commands of runs as processes of their own, which end with this one."""

    def __init__(self, jobs: int, ranks: Ranks):
        self.ranks, self.running, self.stopped = ranks, set(), False
        if ranks.count == 1:
            self.environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))}
        else:
            # A run's ranks meet in the store in which the ranks of this command have met (torchrun's own, or the first
            # rank's), each time under a new name (see pretrain.distributed), so that no run needs a port of its own.
            count = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            self.environment = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": count}

    def call(self, call: Call) -> None:
        """Runs a command to its end; a failure is a UserError that names its log."""
        log = call.log(self.ranks)
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "w", encoding="utf-8") as file:
            argv, environment = [sys.executable, *call.argv], os.environ | self.environment
            process = subprocess.Popen(argv, stdout=file, stderr=subprocess.STDOUT, env=environment)
            self.running.add(process)
            if self.stopped:  # since the last command ended
                process.terminate()
            status = process.wait()
            self.running.discard(process)
        if status:
            lines = log.read_text(encoding="utf-8", errors="backslashreplace").splitlines()
            sentence = f"{log}: python -m {call.module} ended with status {status}: {(lines or [''])[-1]}"
            raise UserError(sentence) if lines or self.ranks.first else ErrorElsewhere(sentence)

    @contextlib.contextmanager
    def threads(self, jobs: int) -> Iterator[ThreadPoolExecutor]:
        """Threads for `call`, meanwhile SIGTERM stops the commands; after an error, those that wait are not begun."""
        with ThreadPoolExecutor(jobs) as pool:
            before = signal.signal(signal.SIGTERM, self.stop)
            try:
                yield pool
            finally:
                pool.shutdown(cancel_futures=True)
                signal.signal(signal.SIGTERM, before)

    def stop(self, number: int, _) -> None:
        """Hands SIGTERM on, at which the runs save and stop, and ends this command."""
        self.stopped = True
        for process in list(self.running):
            process.send_signal(number)
        raise SystemExit(128 + number)


def _train(calls: list[Call], processes: Processes, ranks: Ranks) -> None:
    """Pretrains where the row says so, and trains; both go on where they were interrupted."""
    for call in calls:
        on_every_rank(ranks, lambda call=call: processes.call(call))


def table(suite: str, runs: list[Run]) -> str:
    """Means over seeds in the paper's layout, and how each row's MT score differs from the full method's."""
    by_row: dict[str, list[Run]] = {}
    for one in runs:
        by_row.setdefault(one.name, []).append(one)
    results = {
        name: [read_json(one.out / "result.json", MultiResult) for one in of_row] for name, of_row in by_row.items()
    }
    rows = {name: mean_row([result["tasks"] for result in of_row]) for name, of_row in results.items()}
    mark = ""
    if suite in PAPER_TABLES:
        if not all(is_cleaned(read_config(one.out)) for one in runs):
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
    if note := ranking_note(*(result["tasks"] for of_row in results.values() for result in of_row)):
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
    summary = "The paper's ablations on a data folder, with several seeds a row."
    with leaving():
        command(AblateConfig, run, "finetune.ablate", summary)

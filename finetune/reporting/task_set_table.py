"""The table of runs of sets of tasks, next to a run of all tasks together."""

import dataclasses
from pathlib import Path

from finetune.config import FREE_FLAGS, MtConfig
from finetune.evaluation.bootstrap import bootstrap_interval
from finetune.evaluation.paired_test import mean_difference
from finetune.evaluation.scores import load_values, ranking_note, render_rows, table_row
from finetune.run_dirs.result_files import VALUES, MultiResult
from finetune.tasks import all_tasks
from pretrain.engine.run_dir import RESULT, read_flags
from shards.common.files import read_json, whole_file

CHOSEN = ("tasks", "task_file", "groups", "together")  # flags that differ between a set and all tasks


def write_set_table(config: MtConfig, runs: list[MtConfig]) -> str:
    """Writes table.txt of the finished runs of `begin_sets`, and returns its text."""
    path, text = Path(config.out) / "table.txt", set_table(config, runs)
    with whole_file(path, "w", encoding="utf-8") as file:
        file.write(text + "\n")
    return f"{text}\ntable: {path}"


def set_table(config: MtConfig, runs: list[MtConfig]) -> str:
    """Scores of every task in its set, cost of every set, and the differences from all tasks together."""
    outs, together = [Path(one.out) for one in runs], Path(config.together)
    results = [read_json(out / RESULT, MultiResult) for out in outs]
    of_sets = {name: of for result in results for name, of in result["tasks"].items()}
    rows, compared, cost = {"sets": table_row(of_sets)}, [], {}
    if (together / RESULT).exists() and (together / VALUES).exists():
        whole = read_json(together / RESULT, MultiResult)
        shared = {name: of for name, of in whole["tasks"].items() if name in of_sets}
        rows |= {"all together": table_row(shared)}
        compared, cost = differences(config, outs), {f"all together, {together}": whole}
    lines = [f"{len(runs)} sets of tasks, validation", render_rows(rows), "", *compared]
    cost |= {f"set {number}: {one.tasks}": of for number, (one, of) in enumerate(zip(runs, results, strict=True), 1)}
    for name, result in cost.items():
        steps = sum(of["steps"] for of in result["tasks"].values())
        lines.append(f"{name}: {result['iterations']} iterations, {steps} task steps, {result['seconds']:.0f} s")
    if note := ranking_note(of_sets):
        lines.append(note)
    return "\n".join(lines)


def differences(config: MtConfig, outs: list[Path]) -> list[str]:
    """Lines with the difference of each task, and of their mean, from the run of all tasks together."""
    together, titles = Path(config.together), {name: task.title for name, task in all_tasks().items()}
    whole, clusters = load_values(together / VALUES)
    sets = {name: values for out in outs for name, values in load_values(out / VALUES)[0].items()}
    names = [name for name in whole if name in sets and len(whole[name]) == len(sets[name])]
    if not names:
        return [f"{together}: was validated on other examples and is not compared"]
    lines = [f"difference of the sets from all tasks together ({together}), with 95% intervals over images"]
    for name in names:
        low, high = bootstrap_interval(sets[name] - whole[name], clusters[name])
        difference = (sets[name] - whole[name]).mean()
        lines.append(f"{titles[name]:<32} {difference:+7.2%}  ({low:+.2%} to {high:+.2%})")
    shared = {name: sets[name] for name in names}
    lines.append(mean_difference([shared], [whole], clusters).line("mean of these tasks"))
    if other := _other_flags(together, outs):
        lines.append(f"flags of the sets that differ from those of {together}: {', '.join(other)}")
    return lines


def _other_flags(together: Path, outs: list[Path]) -> list[str]:
    """The flags that change what is computed in which a set differs from the run of all tasks together."""
    theirs, names = read_flags(together, MtConfig), [field.name for field in dataclasses.fields(MtConfig)]
    ours = [read_flags(out, MtConfig) for out in outs]
    compared = [name for name in names if name not in FREE_FLAGS and name not in CHOSEN]
    return [f"--{name}" for name in compared if any(flags.get(name) != theirs.get(name) for flags in ours)]

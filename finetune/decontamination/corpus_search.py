"""Finds the test images of known data sets in training data, and writes their evidence and the ids to exclude."""

import hashlib
from pathlib import Path

from finetune.config import CleanConfig
from finetune.decontamination.corpus_check import check_corpus
from finetune.decontamination.corpus_files import MANIFEST, write_results
from finetune.decontamination.corpus_images import CorpusPart, corpus_parts
from finetune.decontamination.corpus_part import PartJob, PartResult, search_part
from finetune.decontamination.fingerprint_file import read_checked_fingerprint, read_fingerprint, write_fingerprint
from finetune.decontamination.known_sources import tests_of_data, tests_of_images
from finetune.decontamination.known_tests import KnownTests
from shards.common.dist_info import ALONE, Ranks, launch_name
from shards.common.errors import UserError
from shards.common.excluded_ids import EXCLUDED
from shards.common.files import expand, read_json, split_paths, write_json
from shards.common.folder_lock import locked_by_first, wait_for
from shards.common.process_pool import run_tasks
from shards.world import DEFAULT_WORLD, check_data_folder

PLAN = "plan.json"  # of a running search
OUT = "runs/clean"  # without --out
KNOWN, PARTS = "known.safetensors", "parts"


def known_tests(config: CleanConfig) -> tuple[KnownTests, list[str]]:
    """The test sets that the flags name, and sentences on official files that were not found."""
    known, absent = KnownTests(), []
    for pattern in split_paths(config.known) if config.known else ():
        for path in expand(pattern, ".safetensors"):
            known = known.merged(read_checked_fingerprint(path))
    if config.test_images:
        own = tests_of_images(config.test_images, config.test_name, config.collection, config.processes)
        known = known.merged(own)
    if config.data or not (config.known or config.test_images):
        data = config.data or DEFAULT_WORLD
        check_data_folder(data)
        of_data, absent = tests_of_data(data, config.images, config.held_out == "validation", config.processes)
        known = known.merged(of_data)
    return known, absent


def check_corpus_flags(config: CleanConfig) -> None:
    """Raises UserError for flags of --corpus and --fingerprint that have no effect or cannot be combined."""
    if config.corpus and config.fingerprint:
        raise UserError(
            f"--fingerprint {config.fingerprint}: cannot be combined with --corpus, which writes the fingerprint to "
            f"OUT/{KNOWN}; run finetune.clean twice"
        )
    if config.test_images and not config.fingerprint:
        raise UserError(
            f"--test_images {config.test_images}: needs --fingerprint OUT; then search with --corpus and --known OUT"
        )
    if bool(config.test_images) != bool(config.test_name):
        raise UserError("--test_images and --test_name: set both, or neither")
    if not config.corpus and not config.fingerprint:
        given = {"known": config.known, "collection": config.collection}
        given["held_out"] = config.held_out if config.held_out != "tests" else None
        given["mirrored"] = "true" if config.mirrored else None
        for name, value in given.items():
            if value:
                raise UserError(f"--{name} {value}: needs --corpus or --fingerprint")
    if config.images and not config.data and (config.known or config.test_images):
        raise UserError(f"--images {config.images}: needs --data, whose tests have these images")


def make_fingerprint(config: CleanConfig) -> str:
    """Writes the fingerprint file of the known test sets and returns a report."""
    known, absent = known_tests(config)
    write_fingerprint(config.fingerprint, known)
    lines = [f"{'test set':<28} {'photos':>8} {'images':>8}"]
    lines += [f"{name:<28} {photos:>8} {seen:>8}" for name, (photos, seen) in known.sets().items()]
    lines += [f"not found: {what}" for what in absent]
    return "\n".join([*lines, f"{config.fingerprint}: search for them with --corpus DATA --known {config.fingerprint}"])


def search_corpus(config: CleanConfig, ranks: Ranks = ALONE) -> str:
    """Searches the corpus for the known test images and returns the report, on the first rank.

    Parts that an earlier run has finished are kept, and several ranks divide the parts.
    """
    out, parts = Path(config.out or OUT), corpus_parts(config.corpus)
    if ranks.rank >= len(parts):  # no part is left for this rank, and the first one does not wait for it
        return ""
    with locked_by_first(out, "finetune.clean", ranks):
        return _search(config, parts, out, ranks)


def check_searched(config: CleanConfig) -> list[str]:
    """One message per known test image that remains in the corpus, see corpus_check."""
    out = Path(config.out or OUT)
    return check_corpus(config.corpus, out, str(out / KNOWN), config.collection, config.mirrored, config.processes)


def _search(config: CleanConfig, parts: list[CorpusPart], out: Path, ranks: Ranks) -> str:
    absent: list[str] = []
    if ranks.first:
        for name in (MANIFEST, PLAN, EXCLUDED):
            (out / name).unlink(missing_ok=True)  # they exist only together with complete lists
        known, absent = known_tests(config)
        write_fingerprint(out / KNOWN, known)
        write_json(out / PLAN, {"launch": launch_name(), "known": _sha256(out / KNOWN)})
    wait_for(lambda: _plan(out).get("launch") == launch_name())
    sha256 = _plan(out)["known"]
    kept, flags = out / PARTS, (config.collection, config.search, config.mirrored)
    jobs = [
        PartJob(part, str(out / KNOWN), sha256, kept / f"{number:06d}.npz", *flags) for number, part in enumerate(parts)
    ]
    mine = jobs[ranks.rank :: ranks.count]
    results = _run(mine, config.processes)
    if not ranks.first:
        return ""
    others = [job for number, job in enumerate(jobs) if number % ranks.count]
    for job in others:
        wait_for(job.is_done)
    if others:
        results = _run(jobs, config.processes)
    (out / PLAN).unlink()
    return write_results(out, config.corpus, results, read_fingerprint(out / KNOWN).sets(), absent)


def _run(jobs: list[PartJob], processes: int) -> list[PartResult]:
    if not jobs:
        return []
    done = dict(run_tasks(search_part, jobs, processes, sum(job.part.bytes for job in jobs), "B"))
    return [done[number] for number in range(len(jobs))]


def _plan(out: Path) -> dict:
    """The content of PLAN, which the first rank writes when the known test sets are complete; empty before."""
    return read_json(out / PLAN) if (out / PLAN).exists() else {}


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
